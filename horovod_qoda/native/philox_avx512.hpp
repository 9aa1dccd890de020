// Philox4x32-10 for the 16 counters of a group at once.
#pragma once

#include "intrinsics_avx512.hpp"
#include "philox.hpp"

namespace qoda {
namespace {

// The groups of one layer. The counters run in two halves, even and odd lanes, each in the low 32
// bits of 64-bit elements: that is where vpmuludq wants its factors, and what it leaves in the upper
// bits never matters.
class PhiloxLanes {
 public:
  explicit PhiloxLanes(const Philox& p) : fixed_{p.c1, p.c2, p.c3} {
    for (uint32_t round = 0; round < 10; ++round) {
      keys_[round][0] = p.key0 + round * kPhiloxW0;
      keys_[round][1] = p.key1 + round * kPhiloxW1;
    }
    // Kept in memory, from where the instructions broadcast for free.
    asm volatile("" : : "r"(keys_) : "memory");
  }

  // Word w of lane l of group first + g in 32-bit element l of words[g][w]. Two groups at once keep
  // eight chains of multiplications in flight, which one group's latency would leave idle.
  template <int kGroups>
  inline __attribute__((always_inline)) void groups(uint32_t first, __m512i words[][4]) const {
    constexpr int kHalves = 2 * kGroups;
    const __m512i m0 = _mm512_set1_epi64(kPhiloxM0), m1 = _mm512_set1_epi64(kPhiloxM1);
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    __m512i c0[kHalves], c1[kHalves], c2[kHalves], c3[kHalves];
    for (uint32_t h = 0; h < kHalves; ++h) {
      c0[h] = _mm512_add_epi32(_mm512_set1_epi64(16 * (first + h / 2) + h % 2), even);
      c1[h] = _mm512_set1_epi64(fixed_[0]);
      c2[h] = _mm512_set1_epi64(fixed_[1]);
      c3[h] = _mm512_set1_epi64(fixed_[2]);
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const __m512i key0 = _mm512_set1_epi64(keys_[round][0]);
      const __m512i key1 = _mm512_set1_epi64(keys_[round][1]);
#pragma GCC unroll 4
      for (int h = 0; h < kHalves; ++h) {
        const __m512i p0 = _mm512_mul_epu32(c0[h], m0), p1 = _mm512_mul_epu32(c2[h], m1);
        c0[h] = _mm512_ternarylogic_epi64(upper(p1), c1[h], key0, 0x96);
        c2[h] = _mm512_ternarylogic_epi64(upper(p0), c3[h], key1, 0x96);
        c1[h] = p1;
        c3[h] = p0;
      }
    }
    for (int g = 0; g < kGroups; ++g) {
      words[g][0] = merge(c0 + 2 * g);
      words[g][1] = merge(c1 + 2 * g);
      words[g][2] = merge(c2 + 2 * g);
      words[g][3] = merge(c3 + 2 * g);
    }
  }

 private:
  // A shuffle and not a shift: shifts compete with the multiplier.
  static __m512i upper(__m512i x) { return _mm512_shuffle_epi32(x, _MM_PERM_DDBB); }
  static __m512i merge(const __m512i c[2]) {
    return _mm512_mask_shuffle_epi32(c[0], 0xAAAA, c[1], _MM_PERM_CCAA);
  }

  int64_t keys_[10][2];
  uint32_t fixed_[3];
};

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
