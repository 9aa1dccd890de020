// Runs a function on a few threads over ranges of items; exceptions reach the caller.
#pragma once

#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

#include "float_environment.hpp"

namespace qoda {

// body(worker, first, last) for consecutive ranges that cover [0, n). The split depends on n and
// `threads` only; results must not depend on it.
template <typename Body>
void parallel_ranges(size_t n, unsigned threads, const Body& body) {
  const size_t workers = n < threads ? (n == 0 ? 1 : n) : (threads == 0 ? 1 : threads);
  std::vector<std::exception_ptr> failures(workers);
  const auto run = [&](size_t worker) {
    try {
      FloatEnvironment environment;
      body(worker, n * worker / workers, n * (worker + 1) / workers);
    } catch (...) {
      failures[worker] = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  for (size_t worker = 1; worker < workers; ++worker) pool.emplace_back(run, worker);
  run(0);
  for (std::thread& thread : pool) thread.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

}  // namespace qoda
