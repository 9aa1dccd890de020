#include "choose_table.hpp"

#include <algorithm>
#include <limits>

#include "wire.hpp"

namespace qoda {
namespace {

// Groups of 128 coordinates from which a table is estimated. Estimation costs about
// (alphabet - 1) / (2 ln 2 * samples) bits a symbol: 0.0002 bits for 16 symbols at 512 groups.
// Up to kFewestGroups every symbol is counted, so that small payloads get their exact table.
constexpr uint64_t kGroupSize = 128;
constexpr uint64_t kFewestGroups = 512;
constexpr uint64_t kMostGroups = 1024;

constexpr CodeRange kFullRange = {-kMaxCode, kMaxCode};

struct Sample {
  Counts counts{};
  uint64_t symbols = 0;
  bool exact = false;
};

uint64_t groups_of(uint64_t numel) { return (numel + kGroupSize - 1) / kGroupSize; }

// Pseudo-random place within a stride, so that sampled groups do not follow a matrix's columns.
uint64_t jitter(uint64_t i, uint64_t stride) {
  uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull;
  x ^= x >> 29;
  return x % stride;
}

Sample sample_symbols(const QuantizeContext& context, const Plan& plan, const TypeRun& run,
                      const uint8_t* kinds, Workspace& workspace) {
  const auto first = plan.pieces.begin() + plan.blocks[run.first_block].first_piece;
  const auto end = plan.pieces.begin() + plan.blocks[run.end_block - 1].end_piece;
  uint64_t total = 0;
  for (auto piece = first; piece != end; ++piece)
    if (kinds[piece->segment] == kCoded) total += groups_of(piece->numel);
  Sample sample;
  const uint64_t wanted = std::clamp(total / 8, kFewestGroups, kMostGroups);
  const uint64_t stride = std::max<uint64_t>(1, total / wanted);
  sample.exact = stride == 1;
  uint64_t before = 0, drawn = 0, next = jitter(0, stride);
  for (auto piece = first; piece != end; ++piece) {
    if (kinds[piece->segment] != kCoded) continue;
    const uint64_t here = groups_of(piece->numel);
    while (next < before + here) {
      const uint64_t start = (next - before) * kGroupSize;
      const size_t n = std::min(piece->numel - start, kGroupSize);
      Symbols out = {workspace.codes.data(), workspace.escapes.data()};
      const size_t escapes =
          quantize(context, piece->segment, piece->start + start, n, kFullRange, out);
      count_symbols(out.codes, n, out.escapes, escapes, sample.counts);
      sample.symbols += n;
      ++drawn;
      next = drawn * stride + jitter(drawn, stride);
    }
    before += here;
  }
  return sample;
}

}  // namespace

ChosenTable choose_table(const QuantizeContext& context, const Plan& plan, const TypeRun& run,
                         const uint8_t* kinds, const Book* book, Workspace& workspace) {
  uint64_t coordinates = 0;
  for (uint32_t b = run.first_block; b < run.end_block; ++b)
    for (uint32_t p = plan.blocks[b].first_piece; p < plan.blocks[b].end_piece; ++p)
      if (kinds[plan.pieces[p].segment] == kCoded) coordinates += plan.pieces[p].numel;
  if (coordinates == 0) return {kNoTable, {}};
  const Sample sample = sample_symbols(context, plan, run, kinds, workspace);
  const CodeTable own = normalize(sample.counts, sample.exact);
  const CodeTable* agreed = nullptr;
  if (book != nullptr && run.type < book->tables.size() && book->tables[run.type].present())
    agreed = &book->tables[run.type];
  if (agreed == nullptr || agreed->freq[0] == 0) return {kInline, own};
  const double scale = static_cast<double>(coordinates) / static_cast<double>(sample.symbols);
  const double own_bits = coded_bits(own, sample.counts) * scale +
                          8.0 * static_cast<double>(serialize(own).size());
  if (coded_bits(*agreed, sample.counts) * scale <= own_bits) return {kAgreed, *agreed};
  return {kInline, own};
}

}  // namespace qoda
