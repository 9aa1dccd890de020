#include <limits>

#include "avx512.hpp"
#include "philox_avx512.hpp"

namespace qoda {
namespace {

// Rows of 16 symbols as float32, escapes included.
class Reader {
 public:
  Reader(const uint8_t* codes, const float* escapes) : codes_(codes), escapes_(escapes) {}

  __m512 row(size_t i, __mmask16 live) {
    const __m128i codes = _mm_maskz_loadu_epi8(live, codes_ + i);
    const __m128i centred = _mm_xor_si128(codes, _mm_set1_epi8(static_cast<char>(0x80)));
    const __m512 k = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(centred));
    const __mmask16 escaped = _mm_mask_testn_epi8_mask(live, codes, codes);
    return __builtin_expect(escaped != 0, 0) ? expand(k, escaped) : k;
  }

  __m512i code_row(size_t i, __mmask16 live) const {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(live, codes_ + i));
  }

  __m512 expand(__m512 k, __mmask16 escaped) {
    const __m512 result = _mm512_mask_expandloadu_ps(k, escaped, escapes_);
    escapes_ += __builtin_popcount(escaped);
    return result;
  }

  const float* escapes() const { return escapes_; }

 private:
  const uint8_t* codes_;
  const float* escapes_;
};

inline void emit(const Output& out, size_t i, __mmask16 live, __m512 value) {
  if (out.scale != 1.0f) value = _mm512_mul_ps(value, _mm512_set1_ps(out.scale));
  if (out.add) value = _mm512_add_ps(_mm512_maskz_loadu_ps(live, out.values + i), value);
  _mm512_mask_storeu_ps(out.values + i, live, value);
}

}  // namespace

const float* avx512::dequantize_rounded(const uint8_t* codes, size_t n, float step,
                                        const float* escapes, Output out) {
  Reader reader(codes, escapes);
  const __m512 scale = _mm512_set1_ps(step);
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 live = first_lanes(n - i);
    emit(out, i, live, _mm512_mul_ps(reader.row(i, live), scale));
  }
  return reader.escapes();
}

const float* avx512::dequantize_dithered(const uint8_t* codes, size_t n, float step,
                                         const Stream& stream, const float* escapes, Output out) {
  Reader reader(codes, escapes);
  const PhiloxLanes philox(stream.philox);
  const __m512 scale = _mm512_set1_ps(step);
  const auto rows = [&](size_t base, size_t count, const __m512i words[4]) {
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      const size_t i = 16 * static_cast<size_t>(r);
      if (i >= count) break;
      const __mmask16 live = first_lanes(count - i);
      const __m512 k = _mm512_add_ps(reader.row(base + i, live), row_dither(words, r));
      emit(out, base + i, live, _mm512_mul_ps(k, scale));
    }
  };
  __m512i words[2][4];
  uint32_t group = stream.group;
  size_t i = 0;
  for (; i + 2 * kGroup <= n; i += 2 * kGroup, group += 2) {
    philox.groups<2>(group, words);
    rows(i, kGroup, words[0]);
    rows(i + kGroup, kGroup, words[1]);
  }
  for (; i < n; i += kGroup, ++group) {
    philox.groups<1>(group, words);
    rows(i, n - i < kGroup ? n - i : kGroup, words[0]);
  }
  return reader.escapes();
}

const float* avx512::dequantize_buckets(const uint8_t* codes, size_t n, Buckets sides, bool pairs,
                                        const float value[256], const float* escapes, Output out) {
  Reader reader(codes, escapes);
  const int shift = sides.bucket == 0 ? 63 : __builtin_ctz(sides.bucket);
  __mmask16 unknown = 0;
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 live = first_lanes(n - i);
    __m512i code = reader.code_row(i, live);
    const __mmask16 escaped = _mm512_mask_testn_epi32_mask(live, code, code);
    if (__builtin_expect(escaped != 0, 0)) {
      // Escaped symbols within the alphabet are looked up as well; others stay at code 0, whose
      // value is NaN.
      const __m512 k = reader.expand(_mm512_setzero_ps(), escaped);
      const __mmask16 small = _mm512_mask_cmp_ps_mask(
          escaped, _mm512_abs_ps(k), _mm512_set1_ps(static_cast<float>(kMaxCode)), _CMP_LE_OQ);
      const __m512i whole = _mm512_cvttps_epi32(k);
      const __mmask16 exact =
          _mm512_mask_cmp_ps_mask(small, _mm512_cvtepi32_ps(whole), k, _CMP_EQ_OQ);
      code = _mm512_mask_add_epi32(code, exact, whole, _mm512_set1_epi32(kCodeZero));
    }
    const __m512 h = _mm512_i32gather_ps(code, value, 4);
    unknown |= _mm512_mask_cmp_ps_mask(live, h, h, _CMP_UNORD_Q);
    const size_t bucket = i >> shift;
    __m512 x;
    if (pairs)
      x = _mm512_add_ps(_mm512_mul_ps(h, _mm512_set1_ps(sides.values[2 * bucket + 1])),
                        _mm512_set1_ps(sides.values[2 * bucket]));
    else
      x = _mm512_mul_ps(h, _mm512_set1_ps(sides.values[bucket]));
    emit(out, i, live, x);
  }
  return unknown != 0 ? nullptr : reader.escapes();
}

}  // namespace qoda
