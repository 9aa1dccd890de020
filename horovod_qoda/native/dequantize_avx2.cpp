#include "avx2.hpp"
#include "philox_avx2.hpp"

namespace qoda {
namespace {

// Eight symbols as float32; `count` of them exist.
__m256 symbols(const uint8_t* codes, size_t count, const float*& escapes) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  const __m256i code = _mm256_cvtepu8_epi32(bytes);
  const __m256 k = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(kCodeZero)));
  uint32_t escaped = static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128())));
  escaped &= count < 8 ? (1u << count) - 1 : 0xFFu;
  if (__builtin_expect(escaped == 0, 1)) return k;
  float values[8];
  _mm256_storeu_ps(values, k);
  for (; escaped != 0; escaped &= escaped - 1) values[__builtin_ctz(escaped)] = *escapes++;
  return _mm256_loadu_ps(values);
}

void emit(const Output& out, size_t i, size_t count, __m256 value) {
  if (out.scale != 1.0f) value = _mm256_mul_ps(value, _mm256_set1_ps(out.scale));
  if (count >= 8) {
    if (out.add) value = _mm256_add_ps(_mm256_loadu_ps(out.values + i), value);
    _mm256_storeu_ps(out.values + i, value);
    return;
  }
  float values[8];
  _mm256_storeu_ps(values, value);
  for (size_t j = 0; j < count; ++j)
    out.values[i + j] = out.add ? out.values[i + j] + values[j] : values[j];
}

}  // namespace

// Codes have 64 bytes of slack, so whole registers of them may be read.
const float* avx2::dequantize_rounded(const uint8_t* codes, size_t n, float step,
                                      const float* escapes, Output out) {
  const __m256 scale = _mm256_set1_ps(step);
  for (size_t i = 0; i < n; i += 8) {
    const __m256 k = symbols(codes + i, n - i, escapes);
    emit(out, i, n - i, _mm256_mul_ps(k, scale));
  }
  return escapes;
}

const float* avx2::dequantize_dithered(const uint8_t* codes, size_t n, float step,
                                       const Stream& stream, const float* escapes, Output out) {
  const __m256 scale = _mm256_set1_ps(step);
  __m256i words[4][2];
  for (size_t i = 0; i < n; i += 8) {
    if (i % kGroup == 0)
      philox_words(stream.philox, stream.group + static_cast<uint32_t>(i / kGroup), words);
    const __m256 dither = eighth_dither(words, static_cast<int>(i % kGroup / 8));
    const __m256 k = _mm256_add_ps(symbols(codes + i, n - i, escapes), dither);
    emit(out, i, n - i, _mm256_mul_ps(k, scale));
  }
  return escapes;
}

}  // namespace qoda
