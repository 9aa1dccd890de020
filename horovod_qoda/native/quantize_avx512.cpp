#include "avx512.hpp"
#include "philox_avx512.hpp"
#include "portable.hpp"

namespace qoda {
namespace {

// Four rows of floor(s) as 64 codes; symbols outside the range become escapes.
class Packer {
 public:
  Packer(CodeRange range, Symbols out)
      : codes_(out.codes),
        escapes_(out.escapes),
        first_(out.escapes),
        low_(_mm512_set1_epi8(static_cast<char>(range.low + kCodeZero))),
        // An empty range (low > high) has negative width: then everything escapes.
        width_(_mm512_set1_epi8(static_cast<char>(range.high - range.low))),
        all_(range.high < range.low),
        saturates_(range.high == kMaxCode) {}

  void put(size_t i, const __m512 s[4], uint64_t live) {
    __m512i k[4];
    for (int r = 0; r < 4; ++r)
      k[r] = _mm512_cvt_roundps_epi32(s[r], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    // Saturating packs keep what is too large out of range; in each 128-bit part they leave four
    // bytes of each row.
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(k[0], k[1]),
                                              _mm512_packs_epi32(k[2], k[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_permutexvar_epi32(order, packed);
    const __m512i codes = _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(0x80)));
    uint64_t outside = _mm512_cmpgt_epu8_mask(_mm512_sub_epi8(codes, low_), width_);
    if (all_) outside = ~uint64_t{0};
    if (saturates_) outside |= above_127(k);
    outside &= live;
    _mm512_storeu_si512(codes_ + i, _mm512_maskz_mov_epi8(~outside, codes));
    if (__builtin_expect(outside != 0, 0)) escape(s, outside);
  }

  size_t escapes() const { return static_cast<size_t>(escapes_ - first_); }

 private:
  static uint64_t above_127(const __m512i k[4]) {
    uint64_t mask = 0;
    for (int r = 0; r < 4; ++r)
      mask |= uint64_t{_mm512_cmpgt_epi32_mask(k[r], _mm512_set1_epi32(kMaxCode))} << (16 * r);
    return mask;
  }

  void escape(const __m512 s[4], uint64_t outside) {
    for (int r = 0; r < 4; ++r) {
      const __mmask16 mask = static_cast<__mmask16>(outside >> (16 * r));
      const __m512 k = _mm512_roundscale_ps(s[r], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
      _mm512_mask_compressstoreu_ps(escapes_, mask, k);
      escapes_ += __builtin_popcount(mask);
    }
  }

  uint8_t* codes_;
  float* escapes_;
  float* first_;
  __m512i low_, width_;
  bool all_, saturates_;
};

// Sees every row and its random numbers, and does nothing.
struct NoMirror {
  void operator()(size_t, size_t, __m512, __m512) const {}
};

// Writes what a decoder makes of floor(s).
template <bool kDithered>
struct StepMirror {
  float* to;
  __m512 step;

  void operator()(size_t i, size_t left, __m512 s, __m512 u) const {
    __m512 k = _mm512_roundscale_ps(s, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    if (kDithered) k = _mm512_add_ps(k, _mm512_sub_ps(_mm512_set1_ps(0.5f), u));
    _mm512_mask_storeu_ps(to + i, first_lanes(left), _mm512_mul_ps(k, step));
  }
};

// row(i, v, U) -> s, whose floor is the symbol; i is a multiple of 16. One group of 128, `n` of
// whose coordinates exist.
template <typename Row, typename Mirrored>
inline __attribute__((always_inline)) void quantize_group(const float* v, size_t i, size_t n,
                                                          const __m512i words[4], Packer& packer,
                                                          const Row& row,
                                                          const Mirrored& mirror) {
  for (size_t half = 0; half < 2 && 64 * half < n; ++half, i += 64) {
    const size_t left = n - 64 * half;
    __m512 s[4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) {
      const __m512 u = row_uniforms(words, static_cast<int>(4 * half + r));
      if (left >= 64) {
        s[r] = row(i + 16 * r, _mm512_loadu_ps(v + i + 16 * r), u);
        mirror(i + 16 * r, 16, s[r], u);
      } else if (left > 16 * r) {
        const __mmask16 live = first_lanes(left - 16 * r);
        s[r] = row(i + 16 * r, _mm512_maskz_loadu_ps(live, v + i + 16 * r), u);
        mirror(i + 16 * r, left - 16 * r, s[r], u);
      } else {
        s[r] = _mm512_setzero_ps();
      }
    }
    packer.put(i, s, left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1);
  }
}

template <typename Row, typename Mirrored = NoMirror>
inline __attribute__((always_inline)) size_t quantize(const float* v, size_t n,
                                                      const Stream& stream, CodeRange range,
                                                      Symbols out, const Row& row,
                                                      const Mirrored& mirror = {}) {
  Packer packer(range, out);
  const PhiloxLanes philox(stream.philox);
  __m512i words[2][4];
  uint32_t group = stream.group;
  size_t i = 0;
  for (; i + 2 * kGroup <= n; i += 2 * kGroup, group += 2) {
    philox.groups<2>(group, words);
    quantize_group(v, i, kGroup, words[0], packer, row, mirror);
    quantize_group(v, i + kGroup, kGroup, words[1], packer, row, mirror);
  }
  for (; i < n; i += kGroup, ++group) {
    philox.groups<1>(group, words);
    quantize_group(v, i, n - i < kGroup ? n - i : kGroup, words[0], packer, row, mirror);
  }
  return packer.escapes();
}

// Index of the bucket of coordinate i; rows of 16 never straddle buckets.
class BucketIndex {
 public:
  explicit BucketIndex(uint32_t bucket) : shift_(bucket == 0 ? 63 : __builtin_ctz(bucket)) {}
  size_t operator()(size_t i) const { return i >> shift_; }

 private:
  int shift_;
};

}  // namespace

size_t avx512::quantize_step(const float* v, size_t n, float step, const Stream& stream,
                             CodeRange range, Symbols out, Mirror mirror) {
  const __m512 inverse = _mm512_set1_ps(1.0f / step), scale = _mm512_set1_ps(step);
  const auto row = [=](size_t, __m512 x, __m512 u) {
    return _mm512_add_ps(_mm512_mul_ps(x, inverse), u);
  };
  if (mirror.values == nullptr) return quantize(v, n, stream, range, out, row);
  if (mirror.dithered)
    return quantize(v, n, stream, range, out, row, StepMirror<true>{mirror.values, scale});
  return quantize(v, n, stream, range, out, row, StepMirror<false>{mirror.values, scale});
}

size_t avx512::quantize_levels(const float* v, size_t n, Buckets norms, const LevelSequence& seq,
                               const Stream& stream, CodeRange range, Symbols out) {
  if (seq.count > 16) return portable::quantize_levels(v, n, norms, seq, stream, range, out);
  const __mmask16 live = first_lanes(static_cast<size_t>(seq.count));
  const __m512 level = _mm512_maskz_loadu_ps(live, seq.level);
  const __m512 inverse_gap = _mm512_maskz_loadu_ps(live >> 1, seq.inverse_gap);
  const BucketIndex bucket_of(norms.bucket);
  return quantize(v, n, stream, range, out, [&](size_t i, __m512 x, __m512 u) {
    const float norm = norms.values[bucket_of(i)];
    if (!(norm > 0.0f)) return _mm512_setzero_ps();
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 r = _mm512_min_ps(_mm512_div_ps(_mm512_abs_ps(x), _mm512_set1_ps(norm)), one);
    __m512i j = _mm512_setzero_si512();
    for (int l = 1; l + 1 < seq.count; ++l) {
      const __mmask16 reached = _mm512_cmp_ps_mask(r, _mm512_set1_ps(seq.level[l]), _CMP_GE_OQ);
      j = _mm512_mask_set1_epi32(j, reached, l);
    }
    const __m512 below = _mm512_permutexvar_ps(j, level);
    const __m512 up = _mm512_mul_ps(_mm512_sub_ps(r, below), _mm512_permutexvar_ps(j, inverse_gap));
    const __m512 floor = _mm512_cvtepi32_ps(j);
    const __m512 k =
        _mm512_mask_add_ps(floor, _mm512_cmp_ps_mask(u, up, _CMP_LT_OQ), floor, one);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mask_sub_ps(k, negative, _mm512_setzero_ps(), k);
  });
}

size_t avx512::quantize_maxmin(const float* v, size_t n, Buckets pairs, int top,
                               const Stream& stream, CodeRange range, Symbols out) {
  const __m512 highest = _mm512_set1_ps(static_cast<float>(top));
  const __m512 half = _mm512_set1_ps(static_cast<float>((top + 1) / 2));
  const BucketIndex bucket_of(pairs.bucket);
  return quantize(v, n, stream, range, out, [&](size_t i, __m512 x, __m512 u) {
    const float* pair = pairs.values + 2 * bucket_of(i);
    if (!(pair[1] > 0.0f)) return _mm512_sub_ps(_mm512_setzero_ps(), half);
    const __m512 scaled =
        _mm512_div_ps(_mm512_sub_ps(x, _mm512_set1_ps(pair[0])), _mm512_set1_ps(pair[1]));
    const __m512 q = _mm512_roundscale_ps(_mm512_add_ps(scaled, u),
                                          _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return _mm512_sub_ps(_mm512_min_ps(q, highest), half);
  });
}

}  // namespace qoda
