// Philox4x32-10 for the 16 counters of a group at once, in registers of eight.
#pragma once

#include <immintrin.h>

#include "philox.hpp"

namespace qoda {
namespace {

// Word w of lanes 8 h .. 8 h + 7 in words[w][h]. Counters sit in the low halves of 64-bit elements,
// even and odd ones apart, where vpmuludq wants them.
inline void philox_words(const Philox& p, uint32_t group, __m256i words[4][2]) {
  const __m256i m0 = _mm256_set1_epi64x(kPhiloxM0), m1 = _mm256_set1_epi64x(kPhiloxM1);
  const __m256i even = _mm256_setr_epi64x(0, 2, 4, 6);
  __m256i c0[4], c1[4], c2[4], c3[4];
  for (uint32_t q = 0; q < 4; ++q) {
    c0[q] = _mm256_add_epi32(_mm256_set1_epi64x(16 * group + 8 * (q / 2) + q % 2), even);
    c1[q] = _mm256_set1_epi64x(p.c1);
    c2[q] = _mm256_set1_epi64x(p.c2);
    c3[q] = _mm256_set1_epi64x(p.c3);
  }
  uint32_t k0 = p.key0, k1 = p.key1;
  for (int round = 0; round < 10; ++round) {
    const __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const __m256i p0 = _mm256_mul_epu32(c0[q], m0), p1 = _mm256_mul_epu32(c2[q], m1);
      c0[q] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1[q]), key0);
      c2[q] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3[q]), key1);
      c1[q] = p1;
      c3[q] = p0;
    }
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  const auto merge = [](const __m256i c[4], int h) {
    return _mm256_blend_epi32(c[2 * h], _mm256_slli_epi64(c[2 * h + 1], 32), 0xAA);
  };
  for (int h = 0; h < 2; ++h) {
    words[0][h] = merge(c0, h);
    words[1][h] = merge(c1, h);
    words[2][h] = merge(c2, h);
    words[3][h] = merge(c3, h);
  }
}

// The 16-bit numbers of coordinates 8 e .. 8 e + 7 of a group as float32.
inline __m256 eighth_numbers(const __m256i words[4][2], int e) {
  const int row = e / 2;
  const __m256i word = words[row / 2][e % 2];
  return _mm256_cvtepi32_ps(row % 2 == 0 ? _mm256_and_si256(word, _mm256_set1_epi32(0xFFFF))
                                         : _mm256_srli_epi32(word, 16));
}

// U = (n + 1/2) / 65536; every intermediate is exact.
inline __m256 eighth_uniforms(const __m256i words[4][2], int e) {
  return _mm256_add_ps(_mm256_mul_ps(eighth_numbers(words, e), _mm256_set1_ps(0x1p-16f)),
                       _mm256_set1_ps(0x1p-17f));
}

// 1/2 - U, exact as well.
inline __m256 eighth_dither(const __m256i words[4][2], int e) {
  return _mm256_sub_ps(_mm256_set1_ps(0.5f), eighth_uniforms(words, e));
}

}  // namespace
}  // namespace qoda
