#include <algorithm>

#include "avx2.hpp"
#include "philox_avx2.hpp"

namespace qoda {
namespace {

constexpr size_t kRow = 32;  // coordinates whose codes fill a register

// Rows of symbols, float32 integers, as codes; symbols outside the range become escapes.
class Packer {
 public:
  Packer(CodeRange range, Symbols out)
      : codes_(out.codes),
        escapes_(out.escapes),
        first_(out.escapes),
        low_(_mm256_set1_epi8(static_cast<char>(range.low))),
        high_(_mm256_set1_epi8(static_cast<char>(range.high))),
        saturates_(range.high == kMaxCode) {}

  inline __attribute__((always_inline)) void put(size_t i, const __m256 k[4], uint32_t live) {
    __m256i whole[4];
    for (int e = 0; e < 4; ++e) whole[e] = _mm256_cvtps_epi32(k[e]);
    // Saturating packs keep what is too large out of range; NaN and what no int32 holds become the
    // least number.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                              _mm256_packs_epi32(whole[2], whole[3]));
    const __m256i bytes =
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    __m256i outside =
        _mm256_or_si256(_mm256_cmpgt_epi8(low_, bytes), _mm256_cmpgt_epi8(bytes, high_));
    uint32_t mask = static_cast<uint32_t>(_mm256_movemask_epi8(outside));
    if (saturates_) mask |= above_127(k);
    const __m256i codes = _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes_ + i),
                        _mm256_andnot_si256(outside, codes));
    mask &= live;
    if (__builtin_expect(mask != 0, 0)) escape(i, k, mask);
  }

  size_t escapes() const { return static_cast<size_t>(escapes_ - first_); }

 private:
  static uint32_t above_127(const __m256 k[4]) {
    uint32_t mask = 0;
    for (int e = 0; e < 4; ++e) {
      const __m256 above = _mm256_cmp_ps(k[e], _mm256_set1_ps(kMaxCode), _CMP_GT_OQ);
      mask |= static_cast<uint32_t>(_mm256_movemask_ps(above)) << (8 * e);
    }
    return mask;
  }

  void escape(size_t i, const __m256 k[4], uint32_t mask) {
    float values[kRow];
    for (int e = 0; e < 4; ++e) _mm256_storeu_ps(values + 8 * e, k[e]);
    for (; mask != 0; mask &= mask - 1) {
      const int j = __builtin_ctz(mask);
      codes_[i + static_cast<size_t>(j)] = 0;
      *escapes_++ = values[j];
    }
  }

  uint8_t* codes_;
  float* escapes_;
  float* first_;
  __m256i low_, high_;
  bool saturates_;
};

enum class Decoded { kNone, kRounded, kDithered };

// Rows of 32 coordinates.
template <Decoded kDecoded>
class StepQuantizer {
 public:
  StepQuantizer(float step, CodeRange range, Symbols out)
      : step_(_mm256_set1_ps(step)), inverse_(_mm256_set1_ps(1.0f / step)), packer_(range, out) {}

  // Coordinates from v on, the i-th of a piece and so on, whose numbers begin with eighth `first` of
  // words; `decoded` receives what they decode to.
  inline __attribute__((always_inline)) void row(const float* v, size_t i, uint32_t live,
                                                 const __m256i words[4][2], int first,
                                                 float* decoded) {
    __m256 k[4];
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      const __m256 u = eighth_uniforms(words, first + e);
      const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(v + 8 * e), inverse_);
      k[e] = _mm256_floor_ps(_mm256_add_ps(x, u));
      if (kDecoded == Decoded::kNone) continue;
      const __m256 dither = _mm256_sub_ps(_mm256_set1_ps(0.5f), u);
      const __m256 sum = kDecoded == Decoded::kDithered ? _mm256_add_ps(k[e], dither) : k[e];
      _mm256_storeu_ps(decoded + 8 * e, _mm256_mul_ps(sum, step_));
    }
    packer_.put(i, k, live);
  }

  // The rows of one group, `n` of whose coordinates exist.
  void group(const float* v, size_t i, size_t n, const __m256i words[4][2], float* decoded) {
    if (n == kGroup) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r)
        row(v + i + kRow * r, i + kRow * r, ~0u, words, 4 * r,
            kDecoded == Decoded::kNone ? nullptr : decoded + i + kRow * r);
      return;
    }
    float padded[kGroup] = {}, values[kGroup];
    std::copy_n(v + i, n, padded);
    for (int r = 0; kRow * r < n; ++r) {
      const size_t left = n - kRow * r;
      row(padded + kRow * r, i + kRow * r, left < kRow ? (1u << left) - 1 : ~0u, words, 4 * r,
          values + kRow * r);
    }
    if (kDecoded != Decoded::kNone) std::copy_n(values, n, decoded + i);
  }

  size_t escapes() const { return packer_.escapes(); }

 private:
  __m256 step_, inverse_;
  Packer packer_;
};

template <Decoded kDecoded>
size_t quantize(const float* v, size_t n, float step, const Stream& stream, CodeRange range,
                Symbols out, float* decoded) {
  StepQuantizer<kDecoded> quantizer(step, range, out);
  const PhiloxLanes philox(stream.philox);
  uint32_t group = stream.group;
  for (size_t i = 0; i < n; i += kGroup, ++group) {
    __m256i words[4][2];
    philox.group(group, words);
    quantizer.group(v, i, std::min(n - i, kGroup), words, decoded);
  }
  return quantizer.escapes();
}

}  // namespace

size_t avx2::quantize_step(const float* v, size_t n, float step, const Stream& stream,
                           CodeRange range, Symbols out, Mirror mirror) {
  const auto run = mirror.values == nullptr ? quantize<Decoded::kNone>
                   : mirror.dithered        ? quantize<Decoded::kDithered>
                                            : quantize<Decoded::kRounded>;
  return run(v, n, step, stream, range, out, mirror.values);
}

}  // namespace qoda
