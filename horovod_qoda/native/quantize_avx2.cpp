#include <algorithm>

#include "avx2.hpp"
#include "philox_avx2.hpp"

namespace qoda {
namespace {

struct Scaling {
  __m256 step, inverse, low, high;
};

// 32 coordinates from v on; k receives the symbols, and mirror.values what they decode to. Returns a
// bit for each that must escape.
uint32_t quantize_32(const float* v, const __m256i words[4][2], int first_eighth,
                     const Scaling& s, uint8_t* codes, float k[32], Mirror mirror) {
  __m256i whole[4];
  uint32_t outside = 0;
#pragma GCC unroll 4
  for (int e = 0; e < 4; ++e) {
    const __m256 u = eighth_uniforms(words, first_eighth + e);
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(v + 8 * e), s.inverse);
    const __m256 symbol = _mm256_floor_ps(_mm256_add_ps(x, u));
    const __m256 inside = _mm256_and_ps(_mm256_cmp_ps(symbol, s.low, _CMP_GE_OQ),
                                        _mm256_cmp_ps(symbol, s.high, _CMP_LE_OQ));
    outside |= (0xFFu & ~static_cast<uint32_t>(_mm256_movemask_ps(inside))) << (8 * e);
    _mm256_storeu_ps(k + 8 * e, symbol);
    if (mirror.values != nullptr) {
      const __m256 dither = _mm256_sub_ps(_mm256_set1_ps(0.5f), u);
      const __m256 sum = mirror.dithered ? _mm256_add_ps(symbol, dither) : symbol;
      _mm256_storeu_ps(mirror.values + 8 * e, _mm256_mul_ps(sum, s.step));
    }
    whole[e] = _mm256_cvtps_epi32(symbol);
  }
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                            _mm256_packs_epi32(whole[2], whole[3]));
  const __m256i bytes =
      _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes),
                      _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80))));
  return outside;
}

}  // namespace

size_t avx2::quantize_step(const float* v, size_t n, float step, const Stream& stream,
                           CodeRange range, Symbols out, Mirror mirror) {
  const Scaling scaling = {_mm256_set1_ps(step), _mm256_set1_ps(1.0f / step),
                           _mm256_set1_ps(static_cast<float>(range.low)),
                           _mm256_set1_ps(static_cast<float>(range.high))};
  size_t escapes = 0;
  float rest[32], k[32], decoded[32];
  __m256i words[4][2];
  for (size_t i = 0; i < n; i += 32) {
    if (i % kGroup == 0)
      philox_words(stream.philox, stream.group + static_cast<uint32_t>(i / kGroup), words);
    const float* from = v + i;
    const size_t count = n - i < 32 ? n - i : 32;
    if (count < 32) {
      for (size_t j = 0; j < 32; ++j) rest[j] = j < count ? from[j] : 0.0f;
      from = rest;
    }
    Mirror here = mirror;
    if (mirror.values != nullptr) here.values = count < 32 ? decoded : mirror.values + i;
    uint32_t outside = quantize_32(from, words, static_cast<int>(i % kGroup / 8), scaling,
                                   out.codes + i, k, here);
    if (here.values == decoded) std::copy_n(decoded, count, mirror.values + i);
    outside &= count < 32 ? (1u << count) - 1 : ~0u;
    for (; outside != 0; outside &= outside - 1) {
      const int j = __builtin_ctz(outside);
      out.codes[i + static_cast<size_t>(j)] = 0;
      out.escapes[escapes++] = k[j];
    }
  }
  return escapes;
}

}  // namespace qoda
