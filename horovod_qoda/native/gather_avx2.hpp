// Gathers of AVX2. Internal linkage, as all that is compiled for one instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qoda {
namespace {

// Gathers merge into a register, and compilers take any. From one of zeros that they cannot see
// through, a look-up does not wait for the register's last value.
inline __m256i gather_target() {
  __m256i zeros = _mm256_setzero_si256();
  asm("" : "+x"(zeros));
  return zeros;
}

// Eight 32-bit numbers.
inline __m256i gather(const uint32_t* table, __m256i index) {
  return _mm256_mask_i32gather_epi32(gather_target(), reinterpret_cast<const int*>(table), index,
                                     _mm256_set1_epi32(-1), 4);
}

// Four pairs of 32-bit numbers.
inline __m256 gather_pairs(const void* table, __m128i index) {
  return _mm256_castsi256_ps(_mm256_mask_i32gather_epi64(gather_target(),
                                                         static_cast<const long long*>(table), index,
                                                         _mm256_set1_epi32(-1), 8));
}

}  // namespace
}  // namespace qoda
