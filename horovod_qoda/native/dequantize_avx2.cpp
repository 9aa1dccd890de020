#include <immintrin.h>

#include <algorithm>

#include "avx2.hpp"
#include "philox_avx2.hpp"

namespace qoda {
namespace {

constexpr size_t kRow = 32;  // coordinates whose codes fill a register

// Eight symbols as float32, whatever code 0 stands for.
inline __m256 symbols(const uint8_t* codes) {
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return _mm256_cvtepi32_ps(
      _mm256_sub_epi32(_mm256_cvtepu8_epi32(eight), _mm256_set1_epi32(kCodeZero)));
}

// Rows of 32 symbols to values. Codes have 64 bytes of slack, so whole registers of them may be read.
class Writer {
 public:
  Writer(const uint8_t* codes, const float* escapes, Output out)
      : codes_(codes), escapes_(escapes), out_(out) {}

  // From the i-th of n on; value(e, k) makes values of eighth e, counted from the row's first.
  template <typename Value>
  inline __attribute__((always_inline)) void row(size_t i, size_t n, const Value& value) {
    const uint32_t escaped = escapes_at(i);
    if (__builtin_expect(escaped == 0 && n - i >= kRow, 1)) {
#pragma GCC unroll 4
      for (int e = 0; e < 4; ++e)
        emit(out_.values + i + 8 * e, value(e, symbols(codes_ + i + 8 * e)));
      return;
    }
    const size_t count = std::min(n - i, kRow);
    float k[kRow], values[kRow] = {};
    unpack(i, count < kRow ? escaped & ((1u << count) - 1) : escaped, k);
    if (out_.add) std::copy_n(out_.values + i, count, values);
    for (int e = 0; e < 4; ++e) emit(values + 8 * e, value(e, _mm256_loadu_ps(k + 8 * e)));
    std::copy_n(values, count, out_.values + i);
  }

  const float* escapes() const { return escapes_; }

 private:
  uint32_t escapes_at(size_t i) const {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes_ + i));
    return static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(codes, _mm256_setzero_si256())));
  }

  void unpack(size_t i, uint32_t escaped, float k[kRow]) {
    for (int e = 0; e < 4; ++e) _mm256_storeu_ps(k + 8 * e, symbols(codes_ + i + 8 * e));
    for (; escaped != 0; escaped &= escaped - 1) k[__builtin_ctz(escaped)] = *escapes_++;
  }

  void emit(float* to, __m256 value) const {
    if (out_.scale != 1.0f) value = _mm256_mul_ps(value, _mm256_set1_ps(out_.scale));
    if (out_.add) value = _mm256_add_ps(_mm256_loadu_ps(to), value);
    _mm256_storeu_ps(to, value);
  }

  const uint8_t* codes_;
  const float* escapes_;
  Output out_;
};

}  // namespace

const float* avx2::dequantize_rounded(const uint8_t* codes, size_t n, float step,
                                      const float* escapes, Output out) {
  Writer writer(codes, escapes, out);
  const __m256 scale = _mm256_set1_ps(step);
  for (size_t i = 0; i < n; i += kRow)
    writer.row(i, n, [=](int, __m256 k) { return _mm256_mul_ps(k, scale); });
  return writer.escapes();
}

const float* avx2::dequantize_dithered(const uint8_t* codes, size_t n, float step,
                                       const Stream& stream, const float* escapes, Output out) {
  Writer writer(codes, escapes, out);
  const PhiloxLanes philox(stream.philox);
  const __m256 scale = _mm256_set1_ps(step);
  uint32_t group = stream.group;
  for (size_t base = 0; base < n; base += kGroup, ++group) {
    __m256i words[4][2];
    philox.group(group, words);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const size_t i = base + kRow * static_cast<size_t>(r);
      if (i >= n) break;
      writer.row(i, n, [&](int e, __m256 k) {
        return _mm256_mul_ps(_mm256_add_ps(k, eighth_dither(words, 4 * r + e)), scale);
      });
    }
  }
  return writer.escapes();
}

}  // namespace qoda
