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

// seen(block, n) after each block, while it is in the cache.
template <typename Seen>
Sum copy_stats(const float* src, float* dst, uint64_t n, unsigned threads, const Seen& seen) {
  std::vector<unsigned char> finite((n + kBlock - 1) / kBlock, 1);
  const double value = sum_blocks(n, threads, [&](uint64_t block, uint64_t count) {
    bool all_finite = true;
    const uint64_t first = block * kBlock;
    const double sum =
        kernels().sum_squares(src + first, dst ? dst + first : nullptr, count, &all_finite);
    finite[block] = all_finite;
    seen(block, count);
    return sum;
  });
  return {value, std::all_of(finite.begin(), finite.end(), [](unsigned char f) { return f; })};
}

}  // namespace

Sum copy_stats(const float* src, float* dst, uint64_t n, unsigned threads) {
  return copy_stats(src, dst, n, threads, [](uint64_t, uint64_t) {});
}

double sum_sq_diff(const float* a, const float* b, uint64_t n, unsigned threads) {
  return sum_blocks(n, threads, [&](uint64_t block, uint64_t count) {
    return kernels().sum_sq_diff(a + block * kBlock, b + block * kBlock, count);
  });
}

Change change_stats(const float* now, const float* before, uint64_t n, unsigned threads) {
  std::vector<double> parts((n + kBlock - 1) / kBlock);
  const Sum sum = copy_stats(now, nullptr, n, threads, [&](uint64_t block, uint64_t count) {
    const uint64_t first = block * kBlock;
    parts[block] = kernels().sum_sq_diff(now + first, before + first, count);
  });
  double difference = 0;
  for (double part : parts) difference += part;
  return {sum, difference};
}

}  // namespace qoda
