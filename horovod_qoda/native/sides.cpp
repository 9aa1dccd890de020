#include "sides.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace qoda {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

// The order of sum_squares, and blocks of 65,536 added in order.
double sum_squares(const float* v, uint64_t n, bool* finite) {
  double sum = 0;
  for (uint64_t i = 0; i < n; i += kBlockSymbols)
    sum += kernels().sum_squares(v + i, nullptr, std::min(n - i, kBlockSymbols), finite);
  return sum;
}

float largest_magnitude(const float* v, uint64_t n, bool* finite) {
  float largest = 0;
  bool all_finite = true;
  for (uint64_t i = 0; i < n; ++i) {
    const float a = std::fabs(v[i]);
    all_finite &= a <= kLargest;
    largest = a > largest ? a : largest;
  }
  if (!all_finite) *finite = false;
  return largest;
}

// Minimum and unit = (maximum - minimum) / top, never -0, so that their bytes are unique.
void minimum_and_unit(const float* v, uint64_t n, int top, float pair[2], bool* finite) {
  float low = v[0], high = v[0];
  bool all_finite = true;
  for (uint64_t i = 0; i < n; ++i) {
    all_finite &= std::fabs(v[i]) <= kLargest;
    low = v[i] < low ? v[i] : low;
    high = v[i] > high ? v[i] : high;
  }
  if (!all_finite) *finite = false;
  pair[0] = low + 0.0f;
  pair[1] = (high - low) / static_cast<float>(top) + 0.0f;
}

}  // namespace

Sides compute_sides(const float* values, const Segment& s, const LevelSet& levels, float* sides) {
  bool finite = true, zero = true;
  float largest = 0;  // norm or unit; NaN does not occur where the values are finite
  const uint64_t each = s.bucket == 0 ? s.numel : s.bucket;
  const int top = 2 * levels.sequence(s.levels).count - 1;
  for (uint64_t start = 0; start < s.numel; start += each) {
    const uint64_t n = std::min(each, s.numel - start);
    const float* v = values + start;
    if (s.quantizer == kMaxMin) {
      minimum_and_unit(v, n, top, sides, &finite);
      zero &= sides[0] == 0.0f && sides[1] == 0.0f;
      largest = std::max(largest, sides[1]);
      sides += 2;
    } else {
      *sides = s.norm == kLinf ? largest_magnitude(v, n, &finite)
                               : static_cast<float>(std::sqrt(sum_squares(v, n, &finite)));
      zero &= *sides == 0.0f;
      largest = std::max(largest, *sides);
      ++sides;
    }
  }
  if (!finite) return Sides::kNotFinite;
  if (zero) return Sides::kAllZero;
  const bool tiny = largest > 0.0f && largest < kMinStep;
  return tiny || largest > kLargest ? Sides::kOutOfRange : Sides::kUsable;
}

}  // namespace qoda
