// 32 rANS lanes to decode, sixteen in two registers: even lanes in one, odd lanes in the other, so that
// their halves side by side in 16-bit elements are in lane order. The expand load that AVX2 lacks is a
// byte shuffle from a table.
#include <immintrin.h>

#include <cstring>

#include "avx2.hpp"
#include "fetcher.hpp"
#include "gather_avx2.hpp"
#include "rans_decode.hpp"

namespace qoda {
namespace {

// By an 8-bit mask: gives each selected 16-bit element the next one from the front, and the others 0.
struct Expansions {
  alignas(16) uint8_t shuffle[256][16] = {};

  constexpr Expansions() {
    for (uint32_t mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (uint32_t i = 0; i < 8; ++i) {
        const bool selected = mask >> i & 1;
        shuffle[mask][2 * i] = selected ? next++ : 0x80;
        shuffle[mask][2 * i + 1] = selected ? next++ : 0x80;
      }
    }
  }
};

constexpr Expansions expansions;

inline __m256i load_two(const void* low, const void* high) {
  return _mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(low))),
      _mm_loadu_si128(static_cast<const __m128i*>(high)), 1);
}

// 16-bit elements of even and odd lanes in lane order.
inline __m256i lower_halves(__m256i even, __m256i odd) {
  return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xAA);
}
inline __m256i upper_halves(__m256i even, __m256i odd) {
  return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xAA);
}

// Undoes push for the slots in x's low 12 bits.
inline __m256i pop(__m256i x, __m256i entry) {
  const __m256i freq = _mm256_and_si256(_mm256_srli_epi32(entry, 8), _mm256_set1_epi32(0xFFF));
  return _mm256_add_epi32(_mm256_mullo_epi32(freq, _mm256_srli_epi32(x, kScaleBits)),
                          _mm256_srli_epi32(entry, 20));
}

// Sixteen lanes.
struct States {
  __m256i even, odd;

  void load(const uint32_t lanes[16]) {
    const __m256 low = _mm256_loadu_ps(reinterpret_cast<const float*>(lanes));
    const __m256 high = _mm256_loadu_ps(reinterpret_cast<const float*>(lanes + 8));
    even = in_order(_mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0)));
    odd = in_order(_mm256_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1)));
  }

  void store(uint32_t lanes[16]) const {
    const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    __m256i* to = reinterpret_cast<__m256i*>(lanes);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
  }

  // Takes a symbol from each lane and returns them in 16-bit elements.
  inline __attribute__((always_inline)) __m256i take(const uint32_t* slots) {
    const __m256i slot = _mm256_set1_epi32(kScale - 1);
    const __m256i first = gather(slots, _mm256_and_si256(even, slot));
    const __m256i second = gather(slots, _mm256_and_si256(odd, slot));
    even = pop(even, first);
    odd = pop(odd, second);
    return _mm256_and_si256(lower_halves(first, second), _mm256_set1_epi16(0xFF));
  }

  // Lanes that need a word: the upper half of their state is 0.
  __m256i need() const {
    return _mm256_cmpeq_epi16(upper_halves(even, odd), _mm256_setzero_si256());
  }

  // `words` is 0 for lanes that need none.
  inline __attribute__((always_inline)) void refill(__m256i need, __m256i words) {
    const __m256i sixteen = _mm256_set1_epi32(16);
    const __m256i first = _mm256_and_si256(need, sixteen);
    const __m256i second = _mm256_and_si256(_mm256_srli_epi32(need, 16), sixteen);
    even = _mm256_or_si256(_mm256_sllv_epi32(even, first),
                           _mm256_blend_epi16(words, _mm256_setzero_si256(), 0xAA));
    odd = _mm256_or_si256(_mm256_sllv_epi32(odd, second), _mm256_srli_epi32(words, 16));
  }

 private:
  static __m256i in_order(__m256 x) {
    return _mm256_permute4x64_epi64(_mm256_castps_si256(x), _MM_SHUFFLE(3, 1, 2, 0));
  }
};

class Decoder {
 public:
  explicit Decoder(DecodeJob& job)
      : job_(job),
        words_(job.words),
        left_(job.n_words),
        codes_(job.codes),
        rest_(job.n_runs == 0 ? 0 : job.runs[job.n_runs - 1].n % kLanes),
        fetcher_(job.ahead) {
    for (size_t p = 0; p < 2; ++p) x_[p].load(job.states + 16 * p);
    took(0);
  }

  // Whole rows left of the run at hand, 0 at the end; afterwards tell with `took`.
  size_t rows() const { return rows_; }

  void took(size_t rows) {
    rows_ -= rows;
    for (; rows_ == 0 && run_ != job_.n_runs; ++run_) {
      slots_ = job_.runs[run_].table->slot;
      rows_ = job_.runs[run_].n / kLanes;
    }
  }

  // Decodes a row of 32; false if the words do not suffice.
  inline __attribute__((always_inline)) bool row() {
    States x[2] = {x_[0], x_[1]};  // in registers until all is known
    const __m256i codes = _mm256_packus_epi16(x[0].take(slots_), x[1].take(slots_));
    const __m256i need[2] = {x[0].need(), x[1].need()};
    // Packing leaves lanes 0-7, 16-23, 8-15, 24-31.
    const uint32_t mask =
        static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_packs_epi16(need[0], need[1])));
    const size_t count = static_cast<size_t>(__builtin_popcount(mask));
    const uint8_t* next = words_;
    uint8_t last[2 * kLanes];
    if (__builtin_expect(left_ < kLanes, 0)) {
      if (count > left_) return false;
      std::memcpy(last, words_, 2 * left_);
      next = last;
    }
    words_ += 2 * count;
    left_ -= count;
    const auto& shuffle = expansions.shuffle;
    const uint8_t* second = next + 2 * __builtin_popcount(mask & 0x00FF00FF);
    x[0].refill(need[0],
                _mm256_shuffle_epi8(load_two(next, next + 2 * __builtin_popcount(mask & 0xFF)),
                                    load_two(shuffle[mask & 0xFF], shuffle[mask >> 16 & 0xFF])));
    x[1].refill(
        need[1],
        _mm256_shuffle_epi8(load_two(second, second + 2 * __builtin_popcount(mask & 0xFF00)),
                            load_two(shuffle[mask >> 8 & 0xFF], shuffle[mask >> 24])));
    for (size_t p = 0; p < 2; ++p) x_[p] = x[p];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes_),
                        _mm256_permute4x64_epi64(codes, _MM_SHUFFLE(3, 1, 2, 0)));
    codes_ += kLanes;
    fetcher_.step();
    return true;
  }

  // Whole rows, then the rest; true if that uses all words.
  bool finish() {
    for (; rows_ != 0; took(1))
      if (!row()) return false;
    for (size_t p = 0; p < 2; ++p) x_[p].store(job_.states + 16 * p);
    for (size_t i = 0; i < rest_; ++i)
      if (!one(job_.states[i])) return false;
    return left_ == 0;
  }

 private:
  // A symbol of a row that is not whole.
  bool one(uint32_t& state) {
    const uint32_t entry = slots_[state & (kScale - 1)];
    state = (entry >> 8 & 0xFFF) * (state >> kScaleBits) + (entry >> 20);
    *codes_++ = static_cast<uint8_t>(entry);
    if (state >= kStateLow) return true;
    if (left_ == 0) return false;
    uint16_t word;
    std::memcpy(&word, words_, 2);
    state = state << 16 | word;
    words_ += 2;
    --left_;
    return true;
  }

  DecodeJob& job_;
  size_t run_ = 0;
  size_t rows_ = 0;
  const uint32_t* slots_ = nullptr;
  States x_[2];
  const uint8_t* words_;
  size_t left_;
  uint8_t* codes_;
  size_t rest_;
  Fetcher fetcher_;
};

}  // namespace

void avx2::rans_decode(DecodeJob* jobs, size_t n_jobs) { decode_jobs<Decoder>(jobs, n_jobs); }

}  // namespace qoda
