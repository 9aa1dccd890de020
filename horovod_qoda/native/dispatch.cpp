// Chooses the kernels once, by CPU features and HOROVOD_QODA_SIMD.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "portable.hpp"

#if !defined(__x86_64__)
#define HOROVOD_QODA_NO_SSE42
#define HOROVOD_QODA_NO_AVX2
#define HOROVOD_QODA_NO_AVX512
#endif
#ifndef HOROVOD_QODA_NO_SSE42
#include "crc32c.hpp"
#endif
#ifndef HOROVOD_QODA_NO_AVX2
#include "avx2.hpp"
#endif
#ifndef HOROVOD_QODA_NO_AVX512
#include "avx512.hpp"
#endif

namespace qoda {
namespace {

Kernels portable_kernels() {
  Kernels k{};
  k.name = "portable";
  k.sum_squares = portable::sum_squares;
  k.sum_sq_diff = portable::sum_sq_diff;
  k.quantize_step = portable::quantize_step;
  k.quantize_levels = portable::quantize_levels;
  k.quantize_maxmin = portable::quantize_maxmin;
  k.dequantize_rounded = portable::dequantize_rounded;
  k.dequantize_dithered = portable::dequantize_dithered;
  k.dequantize_buckets = portable::dequantize_buckets;
  k.rans_encode = portable::rans_encode;
  k.rans_decode = portable::rans_decode;
  k.crc32c = portable::crc32c;
  return k;
}

#ifndef HOROVOD_QODA_NO_SSE42
bool has_sse42() { return __builtin_cpu_supports("sse4.2"); }
#endif

#ifndef HOROVOD_QODA_NO_AVX2
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }

void use_avx2(Kernels& k) {
  k.name = "avx2";
  k.sum_squares = avx2::sum_squares;
  k.sum_sq_diff = avx2::sum_sq_diff;
  k.quantize_step = avx2::quantize_step;
  k.dequantize_rounded = avx2::dequantize_rounded;
  k.dequantize_dithered = avx2::dequantize_dithered;
  k.rans_encode = avx2::rans_encode;
  k.rans_decode = avx2::rans_decode;
}
#endif

#ifndef HOROVOD_QODA_NO_AVX512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("bmi2");
}

void use_avx512(Kernels& k) {
  k.name = "avx512";
  k.sum_squares = avx512::sum_squares;
  k.sum_sq_diff = avx512::sum_sq_diff;
  k.quantize_step = avx512::quantize_step;
  k.quantize_levels = avx512::quantize_levels;
  k.quantize_maxmin = avx512::quantize_maxmin;
  k.dequantize_rounded = avx512::dequantize_rounded;
  k.dequantize_dithered = avx512::dequantize_dithered;
  k.dequantize_buckets = avx512::dequantize_buckets;
  k.rans_encode = avx512::rans_encode;
  k.rans_decode = avx512::rans_decode;
}
#endif

Kernels choose() {
  const char* value = std::getenv("HOROVOD_QODA_SIMD");
  const std::string wanted = value == nullptr ? "" : value;
  Kernels k = portable_kernels();
  if (wanted == "portable") return k;
#ifndef HOROVOD_QODA_NO_SSE42
  if (has_sse42()) k.crc32c = sse42::crc32c;
#endif
#ifndef HOROVOD_QODA_NO_AVX512
  if (has_avx512() && (wanted.empty() || wanted == "avx512")) {
    use_avx512(k);
    return k;
  }
#endif
#ifndef HOROVOD_QODA_NO_AVX2
  if (has_avx2() && (wanted.empty() || wanted == "avx2")) {
    use_avx2(k);
    return k;
  }
#endif
  if (wanted.empty()) return k;
  throw std::invalid_argument("HOROVOD_QODA_SIMD=" + wanted +
                              " is not available here; use avx512, avx2 or portable, or unset it");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace qoda
