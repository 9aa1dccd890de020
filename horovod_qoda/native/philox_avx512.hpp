// Philox4x32-10 for the 16 counters of a group at once.
#pragma once

#include "intrinsics_avx512.hpp"
#include "philox.hpp"

namespace qoda {
namespace {

// Word w of lane l in 32-bit element l of words[w]. The counters run in two halves, even and odd
// lanes, each in the low 32 bits of 64-bit elements: that is where vpmuludq wants its factors, and
// what it leaves in the upper bits never matters.
inline void philox_words(const Philox& p, uint32_t group, __m512i words[4]) {
  const __m512i m0 = _mm512_set1_epi64(kPhiloxM0), m1 = _mm512_set1_epi64(kPhiloxM1);
  const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  const __m512i first = _mm512_add_epi32(_mm512_set1_epi64(16u * group), even);
  __m512i c0[2] = {first, _mm512_add_epi32(first, _mm512_set1_epi64(1))};
  __m512i c1[2], c2[2], c3[2];
  for (int h = 0; h < 2; ++h) {
    c1[h] = _mm512_set1_epi64(p.c1);
    c2[h] = _mm512_set1_epi64(p.c2);
    c3[h] = _mm512_set1_epi64(p.c3);
  }
  uint32_t k0 = p.key0, k1 = p.key1;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const __m512i key0 = _mm512_set1_epi64(k0), key1 = _mm512_set1_epi64(k1);
    for (int h = 0; h < 2; ++h) {
      const __m512i p0 = _mm512_mul_epu32(c0[h], m0), p1 = _mm512_mul_epu32(c2[h], m1);
      c0[h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[h], key0, 0x96);
      c2[h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[h], key1, 0x96);
      c1[h] = p1;
      c3[h] = p0;
    }
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  const auto merge = [](const __m512i c[2]) {
    return _mm512_mask_blend_epi32(0xAAAA, c[0], _mm512_slli_epi64(c[1], 32));
  };
  words[0] = merge(c0);
  words[1] = merge(c1);
  words[2] = merge(c2);
  words[3] = merge(c3);
}

// The 16-bit numbers of row r of a group as float32.
inline __m512 row_numbers(const __m512i words[4], int row) {
  const __m512i word = words[row / 2];
  return _mm512_cvtepi32_ps(row % 2 == 0 ? _mm512_and_si512(word, _mm512_set1_epi32(0xFFFF))
                                         : _mm512_srli_epi32(word, 16));
}

// U = (n + 1/2) / 65536; every intermediate is exact.
inline __m512 row_uniforms(const __m512i words[4], int row) {
  return _mm512_fmadd_ps(row_numbers(words, row), _mm512_set1_ps(0x1p-16f),
                         _mm512_set1_ps(0x1p-17f));
}

// 1/2 - U, exact as well.
inline __m512 row_dither(const __m512i words[4], int row) {
  return _mm512_fnmadd_ps(row_numbers(words, row), _mm512_set1_ps(0x1p-16f),
                          _mm512_set1_ps(0.5f - 0x1p-17f));
}

inline __mmask16 first_lanes(size_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xFFFFu : (1u << n) - 1);
}

}  // namespace
}  // namespace qoda
