// Prefetching beside rANS, which computes from the cache. Internal linkage: files compiled for
// different instruction sets each keep their own copy.
#pragma once

#include <immintrin.h>

#include "kernels.hpp"

namespace qoda {
namespace {

// Fetches 128 bytes, what 32 coordinates take, into the second-level cache.
class Fetcher {
 public:
  explicit Fetcher(Ahead ahead) : at_(ahead.at), end_(ahead.at + ahead.bytes) {}
  void step() {
    if (at_ >= end_) return;
    _mm_prefetch(at_, _MM_HINT_T1);
    _mm_prefetch(at_ + 64, _MM_HINT_T1);
    at_ += 128;
  }

 private:
  const char* at_;
  const char* end_;
};

}  // namespace
}  // namespace qoda
