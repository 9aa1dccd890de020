#include <immintrin.h>

#include "avx2.hpp"

namespace qoda {
namespace {

// Lanes 4 j .. 4 j + 3 of the 16 in lane[j].
struct Lanes {
  __m256d lane[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                     _mm256_setzero_pd()};

  // The product of two float32 is exact in float64.
  void add_squares(int j, __m128 x) {
    const __m256d d = _mm256_cvtps_pd(x);
    lane[j] = _mm256_add_pd(lane[j], _mm256_mul_pd(d, d));
  }

  void add_squares(__m256 low, __m256 high) {
    add_squares(0, _mm256_castps256_ps128(low));
    add_squares(1, _mm256_extractf128_ps(low, 1));
    add_squares(2, _mm256_castps256_ps128(high));
    add_squares(3, _mm256_extractf128_ps(high, 1));
  }

  double sum() const {
    double lanes[8];
    _mm256_storeu_pd(lanes, _mm256_add_pd(lane[0], lane[2]));
    _mm256_storeu_pd(lanes + 4, _mm256_add_pd(lane[1], lane[3]));
    for (int width = 4; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
  }
};

// Up to 16 values, the rest zeros.
void load_rest(const float* from, size_t n, float to[16]) {
  for (size_t i = 0; i < 16; ++i) to[i] = i < n ? from[i] : 0.0f;
}

}  // namespace

double avx2::sum_squares(const float* src, float* dst, size_t n, bool* finite) {
  Lanes lanes;
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  const __m256 largest = _mm256_set1_ps(3.4028234663852886e38f);
  __m256 bad = _mm256_setzero_ps();
  const auto check = [&](__m256 x) {
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(_mm256_and_ps(x, magnitude), largest, _CMP_NLE_UQ));
  };
  float rest[16];
  for (size_t i = 0; i < n; i += 16) {
    // The hardware's own prefetching stops at each page.
    _mm_prefetch(reinterpret_cast<const char*>(src + i) + 4096, _MM_HINT_T0);
    const float* from = src + i;
    if (n - i < 16) {
      load_rest(from, n - i, rest);
      if (dst != nullptr)
        for (size_t j = 0; j < n - i; ++j) dst[i + j] = rest[j];
      from = rest;
    }
    const __m256 low = _mm256_loadu_ps(from), high = _mm256_loadu_ps(from + 8);
    check(low);
    check(high);
    lanes.add_squares(low, high);
    if (dst != nullptr && n - i >= 16) {
      _mm256_storeu_ps(dst + i, low);
      _mm256_storeu_ps(dst + i + 8, high);
    }
  }
  if (_mm256_movemask_ps(bad) != 0) *finite = false;
  return lanes.sum();
}

double avx2::sum_sq_diff(const float* a, const float* b, size_t n) {
  Lanes lanes;
  float rest[2][16];
  for (size_t i = 0; i < n; i += 16) {
    const float *x = a + i, *y = b + i;
    if (n - i < 16) {
      load_rest(x, n - i, rest[0]);
      load_rest(y, n - i, rest[1]);
      x = rest[0];
      y = rest[1];
    }
    lanes.add_squares(_mm256_sub_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(y)),
                      _mm256_sub_ps(_mm256_loadu_ps(x + 8), _mm256_loadu_ps(y + 8)));
  }
  return lanes.sum();
}

}  // namespace qoda
