// 32 rANS lanes to decode in two registers, even lanes in one and odd lanes in the other: side by side
// in 16-bit elements they are in lane order, and one expand load serves both.
#include "avx512.hpp"
#include "fetcher.hpp"
#include "intrinsics_avx512.hpp"
#include "rans_decode.hpp"

namespace qoda {
namespace {

constexpr __mmask32 kOdd = 0xAAAAAAAAu;

struct States {
  __m512i even, odd;

  explicit States(const uint32_t lanes[32]) {
    const __m512i low = _mm512_loadu_si512(lanes), high = _mm512_loadu_si512(lanes + 16);
    const __m512i pick = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = _mm512_permutex2var_epi32(low, pick, high);
    odd = _mm512_permutex2var_epi32(low, _mm512_add_epi32(pick, _mm512_set1_epi32(1)), high);
  }

  void store(uint32_t lanes[32]) const {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    _mm512_storeu_si512(lanes, _mm512_permutex2var_epi32(even, low, odd));
    _mm512_storeu_si512(lanes + 16, _mm512_permutex2var_epi32(even, high, odd));
  }
};

// Undoes push for the slots in x's low 12 bits.
inline __m512i pop(__m512i x, __m512i entry) {
  const __m512i freq = _mm512_and_si512(_mm512_srli_epi32(entry, 8), _mm512_set1_epi32(0xFFF));
  return _mm512_add_epi32(_mm512_mullo_epi32(freq, _mm512_srli_epi32(x, kScaleBits)),
                          _mm512_srli_epi32(entry, 20));
}

class Decoder {
 public:
  explicit Decoder(DecodeJob& job)
      : job_(job),
        states_(job.states),
        words_(job.words),
        left_(job.n_words),
        codes_(job.codes),
        rest_(job.n_runs == 0 ? 0 : job.runs[job.n_runs - 1].n % kLanes),
        fetcher_(job.ahead) {
    took(0);
  }

  // Whole rows left of the run at hand, 0 at the end; afterwards tell with `took`.
  size_t rows() const { return rows_; }

  void took(size_t rows) {
    rows_ -= rows;
    for (; rows_ == 0 && run_ != job_.n_runs; ++run_) {
      table_ = job_.runs[run_].table->slot;
      rows_ = job_.runs[run_].n / kLanes;
    }
  }

  // Decodes a row of 32; false if the words do not suffice.
  inline __attribute__((always_inline)) bool row() { return row<true>(); }

  // Whole rows, then the rest; true if that uses all words.
  bool finish() {
    for (; rows_ != 0; took(1))
      if (!row()) return false;
    if (rest_ != 0 && !row<false>()) return false;
    states_.store(job_.states);
    return left_ == 0;
  }

 private:
  template <bool kWhole>
  inline __attribute__((always_inline)) bool row() {
    const __m512i slot = _mm512_set1_epi32(kScale - 1);
    const __m512i even = _mm512_i32gather_epi32(_mm512_and_si512(states_.even, slot), table_, 4);
    const __m512i odd = _mm512_i32gather_epi32(_mm512_and_si512(states_.odd, slot), table_, 4);
    __m512i new_even = pop(states_.even, even), new_odd = pop(states_.odd, odd);
    if constexpr (!kWhole) {
      const __mmask32 live = _bzhi_u32(~0u, static_cast<unsigned>(rest_));
      new_even = _mm512_mask_mov_epi32(states_.even, _pext_u32(live, ~kOdd), new_even);
      new_odd = _mm512_mask_mov_epi32(states_.odd, _pext_u32(live, kOdd), new_odd);
    }
    // A lane needs a word where the upper half of its state is 0.
    const __m512i upper = _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(new_even, 16), new_odd);
    const __mmask32 need = _mm512_testn_epi16_mask(upper, upper);
    const size_t count = static_cast<size_t>(__builtin_popcount(need));
    __m512i next;
    if (__builtin_expect(left_ >= kLanes, 1)) {
      next = _mm512_loadu_si512(words_);
    } else {
      if (count > left_) return false;
      next = _mm512_maskz_loadu_epi16(_bzhi_u32(~0u, static_cast<unsigned>(left_)), words_);
    }
    const __m512i words = _mm512_maskz_expand_epi16(need, next);
    words_ += 2 * count;
    left_ -= count;
    const __m512i low = _mm512_set1_epi32(kStateLow);
    states_.even = _mm512_mask_shldi_epi32(new_even, _mm512_cmplt_epu32_mask(new_even, low),
                                           new_even, _mm512_slli_epi32(words, 16), 16);
    states_.odd = _mm512_mask_shldi_epi32(new_odd, _mm512_cmplt_epu32_mask(new_odd, low), new_odd,
                                          words, 16);
    const __m512i pairs =
        _mm512_mask_blend_epi8(0x2222222222222222u, even, _mm512_slli_epi32(odd, 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes_), _mm512_cvtepi32_epi16(pairs));
    fetcher_.step();
    codes_ += kLanes;
    return true;
  }

  DecodeJob& job_;
  size_t run_ = 0;
  size_t rows_ = 0;
  const uint32_t* table_ = nullptr;
  States states_;
  const uint8_t* words_;
  size_t left_;
  uint8_t* codes_;
  size_t rest_;
  Fetcher fetcher_;
};

}  // namespace

void avx512::rans_decode(DecodeJob* jobs, size_t n_jobs) { decode_jobs<Decoder>(jobs, n_jobs); }

}  // namespace qoda
