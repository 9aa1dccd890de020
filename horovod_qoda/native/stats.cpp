#include "stats.hpp"

#include <algorithm>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"

namespace qoda {
namespace {

constexpr uint64_t kBlock = 65536;

// block(first, n) -> double; blocks are added in order.
template <typename BlockSum>
double sum_blocks(uint64_t n, unsigned threads, const BlockSum& block_sum) {
  std::vector<double> sums((n + kBlock - 1) / kBlock);
  parallel_ranges(sums.size(), threads, [&](size_t, size_t block, size_t end) {
    for (; block < end; ++block)
      sums[block] = block_sum(block, std::min(n - block * kBlock, kBlock));
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace

Sum copy_stats(const float* src, float* dst, uint64_t n, unsigned threads) {
  std::vector<unsigned char> finite((n + kBlock - 1) / kBlock, 1);
  const double value = sum_blocks(n, threads, [&](uint64_t block, uint64_t count) {
    bool all_finite = true;
    const uint64_t first = block * kBlock;
    const double sum =
        kernels().sum_squares(src + first, dst ? dst + first : nullptr, count, &all_finite);
    finite[block] = all_finite;
    return sum;
  });
  return {value, std::all_of(finite.begin(), finite.end(), [](unsigned char f) { return f; })};
}

double sum_sq_diff(const float* a, const float* b, uint64_t n, unsigned threads) {
  return sum_blocks(n, threads, [&](uint64_t block, uint64_t count) {
    return kernels().sum_sq_diff(a + block * kBlock, b + block * kBlock, count);
  });
}

}  // namespace qoda
