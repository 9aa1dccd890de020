#include "quantize.hpp"

#include <cmath>

namespace qoda {

size_t quantize(const QuantizeContext& context, uint32_t row, uint64_t start, size_t n,
                CodeRange range, Symbols out, float* decoded) {
  const Segment& s = context.segments[row];
  const float* v = context.values + s.offset + start;
  const Stream stream = stream_of(context.header, s, start);
  if (s.quantizer == kOneStream)
    return kernels().quantize_step(v, n, s.step, stream, range, out,
                                   {decoded, s.reconstruction == kDithered});
  const Buckets sides = buckets_of(s, context.sides[row], start, n);
  const LevelSequence sequence = context.levels->sequence(s.levels);
  const bool pairs = s.quantizer == kMaxMin;
  const size_t escapes =
      pairs ? kernels().quantize_maxmin(v, n, sides, 2 * sequence.count - 1, stream, range, out)
            : kernels().quantize_levels(v, n, sides, sequence, stream, range, out);
  if (decoded != nullptr)
    kernels().dequantize_buckets(out.codes, n, sides, pairs,
                                 ValueOfCode(s, *context.levels).value, out.escapes,
                                 {decoded, 1.0f, false});
  return escapes;
}

void count_symbols(const uint8_t* codes, size_t n, const float* escapes, size_t n_escapes,
                   Counts& counts) {
  // Four tables, so that runs of one symbol do not wait for their own increment.
  uint32_t part[4][256] = {};
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (size_t j = 0; j < 4; ++j) ++part[j][codes[i + j]];
  for (; i < n; ++i) ++part[0][codes[i]];
  for (size_t code = 1; code < 256; ++code)
    counts[code] += uint64_t{part[0][code]} + part[1][code] + part[2][code] + part[3][code];
  for (size_t e = 0; e < n_escapes; ++e) {
    const bool inside = std::fabs(escapes[e]) <= static_cast<float>(kMaxCode);
    ++counts[inside ? static_cast<size_t>(static_cast<int>(escapes[e]) + kCodeZero) : 0];
  }
}

}  // namespace qoda
