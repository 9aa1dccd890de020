// Sums over whole arrays: the same bits for every instruction set and thread count.
#pragma once

#include <cstdint>

namespace qoda {

struct Sum {
  double value;
  bool finite;
};

// Sum of squares; copies to dst unless it is null.
Sum copy_stats(const float* src, float* dst, uint64_t n, unsigned threads);
// Sum of squares of float32 differences a - b.
double sum_sq_diff(const float* a, const float* b, uint64_t n, unsigned threads);

struct Change {
  Sum now;
  double difference;
};

// copy_stats of `now` and sum_sq_diff of both, reading `now` from memory once.
Change change_stats(const float* now, const float* before, uint64_t n, unsigned threads);

}  // namespace qoda
