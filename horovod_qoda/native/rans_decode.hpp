// How a decoder goes through its jobs, two streams side by side. Internal linkage: files compiled for
// different instruction sets each keep their own copy.
#pragma once

#include "kernels.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

bool valid(const DecodeJob& job) {
  for (uint32_t state : job.states)
    if (state < kStateLow) return false;
  return true;
}

// False if one of the streams ended early; then neither job's states are of use.
template <class Decoder>
bool decode_side_by_side(Decoder& first, Decoder& second) {
  while (first.rows() != 0 && second.rows() != 0) {
    const size_t rows = first.rows() < second.rows() ? first.rows() : second.rows();
    for (size_t r = 0; r < rows; ++r)
      if (!first.row() || !second.row()) return false;
    first.took(rows);
    second.took(rows);
  }
  return true;
}

template <class Decoder>
void decode_jobs(DecodeJob* jobs, size_t n_jobs) {
  if (n_jobs == 2 && valid(jobs[0]) && valid(jobs[1])) {
    Decoder first(jobs[0]), second(jobs[1]);
    if (decode_side_by_side(first, second)) {
      jobs[0].ok = first.finish();
      jobs[1].ok = second.finish();
      return;
    }
  }
  for (size_t j = 0; j < n_jobs; ++j) jobs[j].ok = valid(jobs[j]) && Decoder(jobs[j]).finish();
}

}  // namespace
}  // namespace qoda
