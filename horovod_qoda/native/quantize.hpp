// Quantises part of a segment, whatever its quantiser.
#pragma once

#include "payload.hpp"

namespace qoda {

struct QuantizeContext {
  const float* values;      // the caller's array
  const Segment* segments;
  const float* const* sides;  // per segment, null where it has none
  const LevelSet* levels;
  Header header;
};

// Symbols of `n` coordinates from `start` (a multiple of 128) on; returns the number of escapes.
// `decoded`, unless null, receives the n values that decoding gives. Escapes must be finite for that.
size_t quantize(const QuantizeContext& context, uint32_t segment, uint64_t start, size_t n,
                CodeRange range, Symbols out, float* decoded = nullptr);

// Adds the codes of n symbols to counts; escapes within [-127, 127] count under their own code.
void count_symbols(const uint8_t* codes, size_t n, const float* escapes, size_t n_escapes,
                   Counts& counts);

}  // namespace qoda
