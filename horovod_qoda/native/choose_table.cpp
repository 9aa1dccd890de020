#include "choose_table.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "choose_classes.hpp"
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

// Classes must bring this share of the bits, as they cost time.
constexpr double kLeastGain = 0.01;

// Where a type's symbols are, and which of them are looked at.
struct Sample {
  uint64_t coordinates = 0;
  uint64_t groups = 0;
  uint64_t stride = 1;

  bool exact() const { return stride == 1; }  // every symbol
};

uint64_t groups_of(uint64_t numel) { return (numel + kGroupSize - 1) / kGroupSize; }

// Pseudo-random place within a stride, so that sampled groups do not follow a matrix's columns.
uint64_t jitter(uint64_t i, uint64_t stride) {
  uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull;
  x ^= x >> 29;
  return x % stride;
}

class Sampler {
 public:
  Sampler(const QuantizeContext& context, const Plan& plan, const TypeRun& run,
          const uint8_t* kinds)
      : context_(context) {
    const uint32_t first = plan.blocks[run.first_block].first_piece;
    const uint32_t end = plan.blocks[run.end_block - 1].end_piece;
    for (uint32_t p = first; p != end; ++p) {
      const Piece& piece = plan.pieces[p];
      if (kinds[piece.segment] != kCoded) continue;
      pieces_.push_back(piece);
      sample_.groups += groups_of(piece.numel);
      sample_.coordinates += piece.numel;
    }
    const uint64_t wanted = std::clamp(sample_.groups / 8, kFewestGroups, kMostGroups);
    sample_.stride = std::max<uint64_t>(1, sample_.groups / wanted);
  }

  const Sample& sample() const { return sample_; }

  // count(codes, n, escapes, n_escapes) for each group looked at.
  template <typename Count>
  void visit(CodeRange range, const Count& count) const {
    uint8_t codes[kGroupSize + 64];
    float escapes[kGroupSize + 16];
    uint64_t before = 0, drawn = 0, next = jitter(0, sample_.stride);
    for (const Piece& piece : pieces_) {
      const uint64_t here = groups_of(piece.numel);
      while (next < before + here) {
        const uint64_t start = (next - before) * kGroupSize;
        const size_t n = std::min(piece.numel - start, kGroupSize);
        const size_t n_escapes =
            quantize(context_, piece.segment, piece.start + start, n, range, {codes, escapes});
        count(codes, n, escapes, n_escapes);
        ++drawn;
        next = drawn * sample_.stride + jitter(drawn, sample_.stride);
      }
      before += here;
    }
  }

 private:
  const QuantizeContext& context_;
  std::vector<Piece> pieces_;
  Sample sample_;
};

SizedCounts count_codes(const Sampler& sampler) {
  SizedCounts counts;
  sampler.visit({-kMaxCode, kMaxCode},
                [&](const uint8_t* codes, size_t n, const float*, size_t) {
                  const size_t bin = size_bin(codes, n);
                  ++counts.groups[bin];
                  for (size_t i = 0; i < n; ++i) ++counts.codes[bin][codes[i]];
                });
  return counts;
}

Counts sum(const SizedCounts& counts) {
  Counts total{};
  for (const Counts& part : counts.codes)
    for (size_t code = 0; code < total.size(); ++code) total[code] += part[code];
  return total;
}

// Counts of floor(k / 2^shift).
Counts count_shifted(const Sampler& sampler, uint8_t shift) {
  const float scale = 1.0f / static_cast<float>(1 << shift);
  Counts counts{};
  // An empty range makes every symbol an escape, which is k itself.
  sampler.visit({1, 0}, [&](const uint8_t*, size_t, const float* symbols, size_t n) {
    for (size_t i = 0; i < n; ++i) {
      const float h = std::floor(symbols[i] * scale);
      const bool inside = std::fabs(h) <= static_cast<float>(kMaxCode);
      ++counts[inside ? static_cast<size_t>(static_cast<int>(h) + kCodeZero) : 0];
    }
  });
  return counts;
}

}  // namespace

ChosenTable choose_table(const QuantizeContext& context, const Plan& plan, const TypeRun& run,
                         const uint8_t* kinds, const Book* book) {
  const Sampler sampler(context, plan, run, kinds);
  const Sample& sample = sampler.sample();
  if (sample.coordinates == 0) return {kNoTable, {}, {}};
  const SizedCounts sized = count_codes(sampler);
  const Counts counts = sum(sized);
  const double symbols =
      static_cast<double>(std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  const double scale = static_cast<double>(sample.coordinates) / symbols;
  const auto cost = [&](const BlockTable& coding, const Counts& counts) {
    return (coded_bits(coding.table, counts) + coding.shift * symbols) * scale;
  };
  ChosenTable best = {kInline, {normalize(counts, sample.exact()), 0, {}}, {}};
  double best_bits = cost(best.coding, counts);
  if (static_cast<double>(counts[0]) > kLargeShare * symbols) {
    for (uint8_t shift : kShifts) {
      if (shift == 0) continue;
      const Counts shifted = count_shifted(sampler, shift);
      const BlockTable coding = {normalize(shifted, false), shift, {}};
      const double bits = cost(coding, shifted);
      if (bits >= best_bits) continue;
      best = {kInline, coding, {}};
      best_bits = bits;
    }
  }
  double best_tables = table_bits(&best.coding.table, 1);
  if (best.coding.shift == 0) {
    const ChosenClasses classes = choose_classes(sized, best.coding.table, scale,
                                                 (1.0 - kLeastGain) * (best_bits + best_tables));
    if (!classes.tables.empty()) {
      best = {kClasses, {classes.tables[0], 0, {classes.tables.begin() + 1, classes.tables.end()}},
              classes.class_of_bin};
      best_bits = classes.bits * scale;
      best_tables = table_bits(classes.tables.data(), classes.tables.size());
    }
  }
  if (book == nullptr || run.type >= book->tables.size()) return best;
  const BlockTable agreed = {book->tables[run.type], 0, {}};
  if (!agreed.table.present() || agreed.table.freq[0] == 0) return best;
  if (cost(agreed, counts) <= best_bits + best_tables) return {kAgreed, agreed, {}};
  return best;
}

}  // namespace qoda
