// Declarations of the portable kernels; kernels.hpp says what each does.
#pragma once

#include "kernels.hpp"

namespace qoda::portable {

double sum_squares(const float* src, float* dst, size_t n, bool* finite);
double sum_sq_diff(const float* a, const float* b, size_t n);
size_t quantize_step(const float* v, size_t n, float step, const Stream&, CodeRange, Symbols,
                     Mirror);
size_t quantize_levels(const float* v, size_t n, Buckets norms, const LevelSequence&, const Stream&,
                       CodeRange, Symbols);
size_t quantize_maxmin(const float* v, size_t n, Buckets pairs, int top, const Stream&, CodeRange,
                       Symbols);
const float* dequantize_rounded(const uint8_t* codes, size_t n, float step, const float* escapes,
                                Output);
const float* dequantize_dithered(const uint8_t* codes, size_t n, float step, const Stream&,
                                 const float* escapes, Output);
const float* dequantize_buckets(const uint8_t* codes, size_t n, Buckets sides, bool pairs,
                                const float value[256], const float* escapes, Output);
void rans_encode(EncodeJob* jobs, size_t n_jobs);
void rans_decode(DecodeJob* jobs, size_t n_jobs);
uint32_t crc32c(uint32_t crc, const uint8_t* data, size_t n);

}  // namespace qoda::portable
