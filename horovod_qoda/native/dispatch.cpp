// Chooses the kernels once, by CPU features and HOROVOD_QODA_SIMD.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "portable.hpp"

namespace qoda {

const Kernels kPortableKernels = {
    "portable",
    portable::sum_squares,
    portable::sum_sq_diff,
    portable::quantize_step,
    portable::quantize_levels,
    portable::quantize_maxmin,
    portable::dequantize_rounded,
    portable::dequantize_dithered,
    portable::dequantize_buckets,
    portable::rans_encode,
    portable::rans_decode,
    portable::crc32c,
};

namespace {

const Kernels& choose() {
  const char* wanted = std::getenv("HOROVOD_QODA_SIMD");
  const std::string name = wanted == nullptr ? "" : wanted;
  if (name.empty() || name == "portable") return kPortableKernels;
  throw std::invalid_argument("HOROVOD_QODA_SIMD=" + name +
                              " is not available here; use avx512, avx2 or portable, or unset it");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace qoda
