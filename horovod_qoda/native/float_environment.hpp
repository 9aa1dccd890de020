// Round to nearest and keep subnormals, whatever the calling thread has set (a job may have called
// torch.set_flush_denormal): symbols must not depend on it.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace qoda {

class FloatEnvironment {
 public:
#if defined(__SSE__)
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FloatEnvironment() {}
  ~FloatEnvironment() {}

#endif
 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};

}  // namespace qoda
