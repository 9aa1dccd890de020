// Side values of level quantisers: bucket norms, or (minimum, unit) pairs.
#pragma once

#include "payload.hpp"

namespace qoda {

enum class Sides { kUsable, kAllZero, kOutOfRange, kNotFinite };

// Fills `sides` for one segment whose first coordinate is *values. kOutOfRange: finite values whose
// largest norm or unit overflows, or is so small that subnormals would spoil the reconstruction; such
// a segment travels raw.
Sides compute_sides(const float* values, const Segment& segment, const LevelSet& levels,
                    float* sides);

}  // namespace qoda
