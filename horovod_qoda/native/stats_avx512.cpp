#include "avx512.hpp"
#include "intrinsics_avx512.hpp"

namespace qoda {
namespace {

struct Lanes {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();

  // The product of two float32 is exact in float64, so the fused operation rounds as the separate
  // ones do.
  void add_squares(__m512 x) {
    const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    low = _mm512_fmadd_pd(a, a, low);
    high = _mm512_fmadd_pd(b, b, high);
  }

  double sum() const {
    double lanes[8];
    _mm512_storeu_pd(lanes, _mm512_add_pd(low, high));
    for (int width = 4; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
  }
};

inline __mmask16 lanes_left(size_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xFFFFu : (1u << n) - 1);
}

constexpr int kNanOrInf = 0x01 | 0x08 | 0x10 | 0x80;  // quiet NaN, +Inf, -Inf, signalling NaN

}  // namespace

double avx512::sum_squares(const float* src, float* dst, size_t n, bool* finite) {
  Lanes lanes;
  __mmask16 bad = 0;
  for (size_t i = 0; i < n; i += 16) {
    // The hardware's own prefetching stops at each page.
    _mm_prefetch(reinterpret_cast<const char*>(src + i) + 4096, _MM_HINT_T0);
    const __mmask16 live = lanes_left(n - i);
    const __m512 x = _mm512_maskz_loadu_ps(live, src + i);
    bad |= _mm512_fpclass_ps_mask(x, kNanOrInf);
    lanes.add_squares(x);
    if (dst != nullptr) _mm512_mask_storeu_ps(dst + i, live, x);
  }
  if (bad != 0) *finite = false;
  return lanes.sum();
}

double avx512::sum_sq_diff(const float* a, const float* b, size_t n) {
  Lanes lanes;
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 live = lanes_left(n - i);
    lanes.add_squares(
        _mm512_sub_ps(_mm512_maskz_loadu_ps(live, a + i), _mm512_maskz_loadu_ps(live, b + i)));
  }
  return lanes.sum();
}

}  // namespace qoda
