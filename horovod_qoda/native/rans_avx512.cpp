// 32 rANS lanes in two registers: even lanes in one, odd lanes in the other. Side by side in 16-bit
// elements they are in lane order, so one compress store or expand load serves both.
#include "avx512.hpp"
#include "intrinsics_avx512.hpp"

namespace qoda {
namespace {

constexpr size_t kLanes = 32;
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

// Look-ups of (start << 16 | freq, 1 / freq) by code: in registers where the codes are few, which
// are then told apart by their low bits and the escape takes the first code above the range.
template <int kRegisters>
class Lookup {
 public:
  explicit Lookup(const EncodeTable& table) : escape_(static_cast<char>(table.high + 1)) {
    alignas(64) uint32_t packed[16 * kRegisters] = {};
    alignas(64) float reciprocal[16 * kRegisters] = {};
    for (int code = table.low; code <= table.high; ++code) set(packed, reciprocal, table, code, code);
    set(packed, reciprocal, table, table.high + 1, 0);
    for (int r = 0; r < kRegisters; ++r) {
      packed_[r] = _mm512_load_si512(packed + 16 * r);
      reciprocal_[r] = _mm512_load_ps(reciprocal + 16 * r);
    }
  }

  __m256i index(__m256i codes) const {
    return _mm256_mask_mov_epi8(codes, _mm256_testn_epi8_mask(codes, codes),
                                _mm256_set1_epi8(escape_));
  }
  __m512i packed(__m512i index) const {
    const __m512i low = _mm512_permutex2var_epi32(packed_[0], index, packed_[1]);
    if constexpr (kRegisters == 2) return low;
    return _mm512_mask_blend_epi32(
        upper(index), low, _mm512_permutex2var_epi32(packed_[2], index, packed_[kRegisters - 1]));
  }
  __m512 reciprocal(__m512i index) const {
    const __m512 low = _mm512_permutex2var_ps(reciprocal_[0], index, reciprocal_[1]);
    if constexpr (kRegisters == 2) return low;
    return _mm512_mask_blend_ps(
        upper(index), low,
        _mm512_permutex2var_ps(reciprocal_[2], index, reciprocal_[kRegisters - 1]));
  }

 private:
  static void set(uint32_t* packed, float* reciprocal, const EncodeTable& table, int at, int code) {
    packed[at % (16 * kRegisters)] = table.packed[code];
    reciprocal[at % (16 * kRegisters)] = table.reciprocal[code];
  }
  static __mmask16 upper(__m512i index) {
    return _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
  }

  __m512i packed_[kRegisters];
  __m512 reciprocal_[kRegisters];
  char escape_;
};

class GatherLookup {
 public:
  explicit GatherLookup(const EncodeTable& table) : table_(table) {}
  __m256i index(__m256i codes) const { return codes; }
  __m512i packed(__m512i code) const {
    return _mm512_i32gather_epi32(byte(code), table_.packed, 4);
  }
  __m512 reciprocal(__m512i code) const {
    return _mm512_i32gather_ps(byte(code), table_.reciprocal, 4);
  }

 private:
  static __m512i byte(__m512i code) { return _mm512_and_si512(code, _mm512_set1_epi32(0xFF)); }
  const EncodeTable& table_;
};

// x <- (x / freq) * 4096 + x % freq + start for x < freq * 2^20. The quotient's estimate is rounded
// down at every step and misses by less than 3 * 2^-23 * 2^20 < 1, so it is right or one too small.
inline __m512i push(__m512i x, __m512i freq, __m512i start, __m512 reciprocal) {
  constexpr int kDown = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
  const __m512 ratio = _mm512_mul_round_ps(_mm512_cvt_roundepu32_ps(x, kDown), reciprocal, kDown);
  const __m512i quotient = _mm512_cvttps_epi32(ratio);
  const __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, freq));
  const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(quotient, kScaleBits),
                                       _mm512_add_epi32(rest, start));
  const __mmask16 short_by_one = _mm512_cmpge_epu32_mask(rest, freq);
  return _mm512_mask_add_epi32(sum, short_by_one, sum,
                               _mm512_sub_epi32(_mm512_set1_epi32(kScale), freq));
}

template <typename Table>
class Encoder {
 public:
  Encoder(const EncodeTable& table, const uint32_t states[32], uint16_t* words)
      : table_(table), states_(states), words_(words) {}

  // Symbols of one group; `live` has a bit for each lane that has one.
  template <bool kWhole>
  inline __attribute__((always_inline)) void group(__m256i codes, __mmask32 live) {
    const __m512i pairs = _mm512_cvtepu16_epi32(table_.index(codes));
    const __m512i even_code = pairs, odd_code = _mm512_srli_epi32(pairs, 8);
    const __m512i even = table_.packed(even_code), odd = table_.packed(odd_code);
    const __m512i low_half = _mm512_set1_epi32(0xFFFF);
    const __m512i even_freq = _mm512_and_si512(even, low_half);
    const __m512i odd_freq = _mm512_and_si512(odd, low_half);
    __mmask16 even_full = _mm512_cmpge_epu32_mask(states_.even, _mm512_slli_epi32(even_freq, 20));
    __mmask16 odd_full = _mm512_cmpge_epu32_mask(states_.odd, _mm512_slli_epi32(odd_freq, 20));
    const __mmask16 even_live = kWhole ? 0xFFFF : _pext_u32(live, ~kOdd);
    const __mmask16 odd_live = kWhole ? 0xFFFF : _pext_u32(live, kOdd);
    even_full &= even_live;
    odd_full &= odd_live;
    emit(_pdep_u32(even_full, ~kOdd) | _pdep_u32(odd_full, kOdd));
    states_.even = _mm512_mask_srli_epi32(states_.even, even_full, states_.even, 16);
    states_.odd = _mm512_mask_srli_epi32(states_.odd, odd_full, states_.odd, 16);
    const __m512i new_even = push(states_.even, even_freq, _mm512_srli_epi32(even, 16),
                                  table_.reciprocal(even_code));
    const __m512i new_odd =
        push(states_.odd, odd_freq, _mm512_srli_epi32(odd, 16), table_.reciprocal(odd_code));
    states_.even = _mm512_mask_mov_epi32(states_.even, even_live, new_even);
    states_.odd = _mm512_mask_mov_epi32(states_.odd, odd_live, new_odd);
  }

  uint16_t* finish(uint32_t states[32]) const {
    states_.store(states);
    return words_;
  }

 private:
  inline __attribute__((always_inline)) void emit(__mmask32 full) {
    const __m512i low =
        _mm512_mask_blend_epi16(kOdd, states_.even, _mm512_slli_epi32(states_.odd, 16));
    const int count = __builtin_popcount(full);
    words_ -= count;
    _mm512_mask_storeu_epi16(words_, _bzhi_u32(~0u, static_cast<unsigned>(count)),
                             _mm512_maskz_compress_epi16(full, low));
  }

  Table table_;
  States states_;
  uint16_t* words_;
};

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

template <typename Table>
uint16_t* encode(const uint8_t* codes, size_t n, const EncodeTable& table, uint32_t states[32],
                 uint16_t* words, Ahead ahead) {
  Encoder<Table> encoder(table, states, words);
  Fetcher fetcher(ahead);
  const size_t rest = n % kLanes;
  if (rest != 0) {
    const __mmask32 live = _bzhi_u32(~0u, static_cast<unsigned>(rest));
    encoder.template group<false>(_mm256_maskz_loadu_epi8(live, codes + n - rest), live);
  }
  for (size_t i = n - rest; i != 0; i -= kLanes) {
    encoder.template group<true>(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i - kLanes)), ~0u);
    fetcher.step();
  }
  return encoder.finish(states);
}

// Undoes push for the slots in x's low 12 bits.
inline __m512i pop(__m512i x, __m512i entry) {
  const __m512i freq = _mm512_and_si512(_mm512_srli_epi32(entry, 8), _mm512_set1_epi32(0xFFF));
  return _mm512_add_epi32(_mm512_mullo_epi32(freq, _mm512_srli_epi32(x, kScaleBits)),
                          _mm512_srli_epi32(entry, 20));
}

class Decoder {
 public:
  explicit Decoder(DecodeJob& job)
      : table_(job.table->slot),
        states_(job.states),
        words_(job.words),
        left_(job.n_words),
        codes_(job.codes),
        symbols_(job.n),
        fetcher_(job.ahead) {}

  size_t whole_groups() const { return symbols_ / kLanes; }

  // Decodes a group; false if the words do not suffice.
  template <bool kWhole>
  inline __attribute__((always_inline)) bool group() {
    const __m512i slot = _mm512_set1_epi32(kScale - 1);
    const __m512i even = _mm512_i32gather_epi32(_mm512_and_si512(states_.even, slot), table_, 4);
    const __m512i odd = _mm512_i32gather_epi32(_mm512_and_si512(states_.odd, slot), table_, 4);
    __m512i new_even = pop(states_.even, even), new_odd = pop(states_.odd, odd);
    if constexpr (!kWhole) {
      const __mmask32 live = _bzhi_u32(~0u, static_cast<unsigned>(symbols_));
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
    symbols_ -= kWhole ? kLanes : symbols_;
    return true;
  }

  // Whole groups, then the rest; true if that uses all words.
  bool finish(uint32_t states[32]) {
    while (symbols_ >= kLanes)
      if (!group<true>()) return false;
    if (symbols_ != 0 && !group<false>()) return false;
    states_.store(states);
    return left_ == 0;
  }

 private:
  const uint32_t* table_;
  States states_;
  const uint8_t* words_;
  size_t left_;
  uint8_t* codes_;
  size_t symbols_;
  Fetcher fetcher_;
};

bool valid(const DecodeJob& job) {
  for (uint32_t state : job.states)
    if (state < kStateLow) return false;
  return true;
}

void decode_one(DecodeJob& job) {
  Decoder decoder(job);
  job.ok = valid(job) && decoder.finish(job.states);
}

// False if one of the streams ended early; then neither job's states are of use.
bool decode_side_by_side(Decoder& first, Decoder& second) {
  const size_t a = first.whole_groups(), b = second.whole_groups();
  for (size_t groups = a < b ? a : b; groups != 0; --groups)
    if (!first.group<true>() || !second.group<true>()) return false;
  return true;
}

}  // namespace

uint16_t* avx512::rans_encode(const uint8_t* codes, size_t n, const EncodeTable& table,
                              uint32_t states[32], uint16_t* words, Ahead ahead) {
  const int used = table.high - table.low + 2;  // the escape included
  if (used <= 32) return encode<Lookup<2>>(codes, n, table, states, words, ahead);
  if (used <= 64) return encode<Lookup<4>>(codes, n, table, states, words, ahead);
  return encode<GatherLookup>(codes, n, table, states, words, ahead);
}

void avx512::rans_decode(DecodeJob* jobs, size_t n_jobs) {
  if (n_jobs == 2 && valid(jobs[0]) && valid(jobs[1])) {
    Decoder first(jobs[0]), second(jobs[1]);
    if (decode_side_by_side(first, second)) {
      jobs[0].ok = first.finish(jobs[0].states);
      jobs[1].ok = second.finish(jobs[1].states);
      return;
    }
  }
  for (size_t j = 0; j < n_jobs; ++j) decode_one(jobs[j]);
}

}  // namespace qoda
