#include "choose_table.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "wire.hpp"

namespace qoda {
namespace {

// Groups of 128 coordinates from which a table is estimated. Estimation costs about
// (alphabet - 1) / (2 ln 2 * samples) bits a symbol: 0.0002 bits for 16 symbols at 512 groups.
// Up to kFewestGroups every symbol is counted, so that small payloads get their exact table.
constexpr uint64_t kGroupSize = 128;
constexpr uint64_t kFewestGroups = 512;
constexpr uint64_t kMostGroups = 1024;

// Above this share of |k| > 127 it is worth trying to send low bits as they are.
constexpr double kLargeShare = 0.001;

struct Sample {
  std::vector<float> k;
  uint64_t coordinates = 0;
  bool exact = false;  // k holds every symbol
};

uint64_t groups_of(uint64_t numel) { return (numel + kGroupSize - 1) / kGroupSize; }

// Pseudo-random place within a stride, so that sampled groups do not follow a matrix's columns.
uint64_t jitter(uint64_t i, uint64_t stride) {
  uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull;
  x ^= x >> 29;
  return x % stride;
}

Sample draw_sample(const QuantizeContext& context, const Plan& plan, const TypeRun& run,
                   const uint8_t* kinds) {
  const auto first = plan.pieces.begin() + plan.blocks[run.first_block].first_piece;
  const auto end = plan.pieces.begin() + plan.blocks[run.end_block - 1].end_piece;
  Sample sample;
  uint64_t total = 0;
  for (auto piece = first; piece != end; ++piece) {
    if (kinds[piece->segment] != kCoded) continue;
    total += groups_of(piece->numel);
    sample.coordinates += piece->numel;
  }
  const uint64_t wanted = std::clamp(total / 8, kFewestGroups, kMostGroups);
  const uint64_t stride = std::max<uint64_t>(1, total / wanted);
  sample.exact = stride == 1;
  uint8_t codes[kGroupSize + 64];
  uint64_t before = 0, drawn = 0, next = jitter(0, stride);
  for (auto piece = first; piece != end; ++piece) {
    if (kinds[piece->segment] != kCoded) continue;
    const uint64_t here = groups_of(piece->numel);
    while (next < before + here) {
      const uint64_t start = (next - before) * kGroupSize;
      const size_t n = std::min(piece->numel - start, kGroupSize);
      const size_t at = sample.k.size();
      sample.k.resize(at + n);
      // An empty range makes every symbol an escape, which is k itself.
      quantize(context, piece->segment, piece->start + start, n, {1, 0},
               {codes, sample.k.data() + at});
      ++drawn;
      next = drawn * stride + jitter(drawn, stride);
    }
    before += here;
  }
  return sample;
}

Counts count(const Sample& sample, uint8_t shift) {
  const float scale = 1.0f / static_cast<float>(1 << shift);
  Counts counts{};
  for (float k : sample.k) {
    const float h = std::floor(k * scale);
    const bool inside = std::fabs(h) <= static_cast<float>(kMaxCode);
    ++counts[inside ? static_cast<size_t>(static_cast<int>(h) + kCodeZero) : 0];
  }
  return counts;
}

}  // namespace

ChosenTable choose_table(const QuantizeContext& context, const Plan& plan, const TypeRun& run,
                         const uint8_t* kinds, const Book* book) {
  const Sample sample = draw_sample(context, plan, run, kinds);
  if (sample.coordinates == 0) return {kNoTable, {}};
  const double symbols = static_cast<double>(sample.k.size());
  const double scale = static_cast<double>(sample.coordinates) / symbols;
  const auto cost = [&](const BlockTable& coding, const Counts& counts) {
    return (coded_bits(coding.table, counts) + coding.shift * symbols) * scale;
  };
  const Counts counts = count(sample, 0);
  ChosenTable best = {kInline, {normalize(counts, sample.exact), 0}};
  double best_bits = cost(best.coding, counts);
  if (static_cast<double>(counts[0]) > kLargeShare * symbols) {
    for (uint8_t shift : kShifts) {
      if (shift == 0) continue;
      const Counts shifted = count(sample, shift);
      const BlockTable coding = {normalize(shifted, false), shift};
      const double bits = cost(coding, shifted);
      if (bits >= best_bits) continue;
      best = {kInline, coding};
      best_bits = bits;
    }
  }
  if (book == nullptr || run.type >= book->tables.size()) return best;
  const BlockTable agreed = {book->tables[run.type], 0};
  if (!agreed.table.present() || agreed.table.freq[0] == 0) return best;
  const double table_bits = 8.0 * static_cast<double>(serialize(best.coding.table).size());
  if (cost(agreed, counts) <= best_bits + table_bits) return {kAgreed, agreed};
  return best;
}

}  // namespace qoda
