// Philox4x32-10 for the 16 counters of a group at once, in registers of eight.
#pragma once

#include <immintrin.h>

#include "philox.hpp"

namespace qoda {
namespace {

// The groups of one layer. Counters sit in the low halves of 64-bit elements, even and odd ones apart,
// where vpmuludq wants them; what is in the upper halves never matters. Half a group at a time fits the
// registers.
class PhiloxLanes {
 public:
  explicit PhiloxLanes(const Philox& p) : fixed_{p.c1, p.c2, p.c3} {
    for (uint32_t round = 0; round < 10; ++round) {
      key_[round][0] = _mm256_set1_epi64x(p.key0 + round * kPhiloxW0);
      key_[round][1] = _mm256_set1_epi64x(p.key1 + round * kPhiloxW1);
    }
    // Kept in memory: the registers are needed.
    asm volatile("" : : "r"(key_) : "memory");
  }

  // Word w of lanes 8 h .. 8 h + 7 in words[w][h].
  inline __attribute__((always_inline)) void group(uint32_t group, __m256i words[4][2]) const {
    const __m256i m0 = _mm256_set1_epi64x(kPhiloxM0), m1 = _mm256_set1_epi64x(kPhiloxM1);
    const __m256i even = _mm256_setr_epi64x(0, 2, 4, 6);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i c0[2], c1[2], c2[2], c3[2];
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        c0[q] = _mm256_add_epi32(_mm256_set1_epi64x(16 * group + 8 * static_cast<uint32_t>(h) +
                                                    static_cast<uint32_t>(q)),
                                 even);
        c1[q] = _mm256_set1_epi64x(fixed_[0]);
        c2[q] = _mm256_set1_epi64x(fixed_[1]);
        c3[q] = _mm256_set1_epi64x(fixed_[2]);
      }
#pragma GCC unroll 10
      for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
        for (int q = 0; q < 2; ++q) {
          const __m256i p0 = _mm256_mul_epu32(c0[q], m0), p1 = _mm256_mul_epu32(c2[q], m1);
          c0[q] = _mm256_xor_si256(_mm256_xor_si256(upper(p1), c1[q]), key_[round][0]);
          c2[q] = _mm256_xor_si256(_mm256_xor_si256(upper(p0), c3[q]), key_[round][1]);
          c1[q] = p1;
          c3[q] = p0;
        }
      }
      words[0][h] = merge(c0);
      words[1][h] = merge(c1);
      words[2][h] = merge(c2);
      words[3][h] = merge(c3);
    }
  }

 private:
  // A shuffle and not a shift: shifts compete with the multiplier.
  static __m256i upper(__m256i x) { return _mm256_shuffle_epi32(x, _MM_SHUFFLE(3, 3, 1, 1)); }
  static __m256i merge(const __m256i c[2]) {
    return _mm256_blend_epi32(c[0], _mm256_shuffle_epi32(c[1], _MM_SHUFFLE(2, 2, 0, 0)), 0xAA);
  }

  __m256i key_[10][2];
  uint32_t fixed_[3];
};

// 128 + n / 65536 for the 16-bit numbers n of coordinates 8 e .. 8 e + 7 of a group: n is the end of
// the significand.
inline __m256 eighth_numbers(const __m256i words[4][2], int e) {
  const __m256i exponent = _mm256_set1_epi32(0x43000000);
  const int row = e / 2;
  const __m256i word = words[row / 2][e % 2];
  return _mm256_castsi256_ps(row % 2 == 0
                                 ? _mm256_blend_epi16(word, exponent, 0xAA)
                                 : _mm256_or_si256(_mm256_srli_epi32(word, 16), exponent));
}

// U = (n + 1/2) / 65536, exact: the constant has 24 significant bits.
inline __m256 eighth_uniforms(const __m256i words[4][2], int e) {
  return _mm256_sub_ps(eighth_numbers(words, e), _mm256_set1_ps(128.0f - 0x1p-17f));
}

// 1/2 - U, exact as well.
inline __m256 eighth_dither(const __m256i words[4][2], int e) {
  return _mm256_sub_ps(_mm256_set1_ps(0.5f), eighth_uniforms(words, e));
}

}  // namespace
}  // namespace qoda
