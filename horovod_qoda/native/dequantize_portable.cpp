// Symbols back to floats, written to or added to the output.
#include <algorithm>
#include <cmath>
#include <limits>

#include "philox.hpp"
#include "portable.hpp"

namespace qoda {
namespace {

inline void emit(Output out, size_t i, float value) {
  if (out.scale != 1.0f) value *= out.scale;
  out.values[i] = out.add ? out.values[i] + value : value;
}

inline float symbol(uint8_t code, const float*& escapes) {
  return code == 0 ? *escapes++ : static_cast<float>(static_cast<int>(code) - kCodeZero);
}

// The table's value of an escaped symbol; NaN if it is none.
float escaped_value(const float value[256], float k) {
  if (!(std::fabs(k) <= static_cast<float>(kMaxCode)) || k != std::floor(k))
    return std::numeric_limits<float>::quiet_NaN();
  return value[static_cast<int>(k) + kCodeZero];
}

}  // namespace

const float* portable::dequantize_rounded(const uint8_t* codes, size_t n, float step,
                                          const float* escapes, Output out) {
  for (size_t i = 0; i < n; ++i) emit(out, i, symbol(codes[i], escapes) * step);
  return escapes;
}

const float* portable::dequantize_dithered(const uint8_t* codes, size_t n, float step,
                                           const Stream& stream, const float* escapes,
                                           Output out) {
  uint16_t bits[kGroup];
  for (size_t base = 0; base < n; base += kGroup) {
    philox_group(stream.philox, stream.group + static_cast<uint32_t>(base / kGroup), bits);
    const size_t end = std::min(n - base, kGroup);
    for (size_t i = 0; i < end; ++i) {
      const float k = symbol(codes[base + i], escapes);
      emit(out, base + i, (k + (0.5f - unit_uniform(bits[i]))) * step);
    }
  }
  return escapes;
}

const float* portable::dequantize_buckets(const uint8_t* codes, size_t n, Buckets sides,
                                          bool pairs, const float value[256],
                                          const float* escapes, Output out) {
  bool known = true;
  for (size_t i = 0; i < n; ++i) {
    const size_t bucket = sides.bucket == 0 ? 0 : i / sides.bucket;
    const float h = codes[i] == 0 ? escaped_value(value, *escapes++) : value[codes[i]];
    known &= h == h;
    if (pairs)
      emit(out, i, h * sides.values[2 * bucket + 1] + sides.values[2 * bucket]);
    else
      emit(out, i, h * sides.values[bucket]);
  }
  return known ? escapes : nullptr;
}

}  // namespace qoda
