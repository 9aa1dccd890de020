// Sums of squares in the one order that every instruction set shares.
#include <cmath>
#include <cstring>

#include "portable.hpp"

namespace qoda {
namespace {

double reduce(double lanes[16]) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

}  // namespace

double portable::sum_squares(const float* src, float* dst, size_t n, bool* finite) {
  double lanes[16] = {};
  bool all_finite = true;
  for (size_t i = 0; i < n; ++i) {
    all_finite &= std::fabs(src[i]) <= 3.4028234663852886e38f;
    const double x = src[i];
    lanes[i % 16] += x * x;  // exact product: both factors have 24 bits
  }
  if (dst != nullptr && n != 0) std::memcpy(dst, src, n * sizeof(float));
  if (!all_finite) *finite = false;
  return reduce(lanes);
}

double portable::sum_sq_diff(const float* a, const float* b, size_t n) {
  double lanes[16] = {};
  for (size_t i = 0; i < n; ++i) {
    const float difference = a[i] - b[i];
    lanes[i % 16] += static_cast<double>(difference) * difference;
  }
  return reduce(lanes);
}

}  // namespace qoda
