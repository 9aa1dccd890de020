// Declarations of the AVX2 kernels (with BMI2); kernels.hpp says what each does. Level quantisers have
// none: they run portable.
#pragma once

#include "kernels.hpp"

namespace qoda::avx2 {

double sum_squares(const float* src, float* dst, size_t n, bool* finite);
double sum_sq_diff(const float* a, const float* b, size_t n);
size_t quantize_step(const float* v, size_t n, float step, const Stream&, CodeRange, Symbols,
                     Mirror);
const float* dequantize_rounded(const uint8_t* codes, size_t n, float step, const float* escapes,
                                Output);
const float* dequantize_dithered(const uint8_t* codes, size_t n, float step, const Stream&,
                                 const float* escapes, Output);
void rans_encode(EncodeJob* jobs, size_t n_jobs);
void rans_decode(DecodeJob* jobs, size_t n_jobs);

}  // namespace qoda::avx2
