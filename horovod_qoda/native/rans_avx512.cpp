// 32 rANS lanes in two registers. Decoding keeps even lanes in one and odd lanes in the other: side by
// side in 16-bit elements they are in lane order, and one expand load serves both. Encoding has its
// lanes in order.
#include "avx512.hpp"
#include "fetcher.hpp"
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

struct Found {
  __m512i packed;
  __m512 reciprocal;
};

// Look-ups of a table's entries by code: in registers where the codes are few, which
// are then told apart by their low bits and the escape takes the code below the range.
template <int kRegisters>
class Lookup {
 public:
  Lookup() = default;
  explicit Lookup(const EncodeTable& table) : below_(_mm512_set1_epi32(table.low - 1)) {
    alignas(64) uint32_t packed[16 * kRegisters] = {};
    alignas(64) float reciprocal[16 * kRegisters] = {};
    for (int code = table.low; code <= table.high; ++code) set(packed, reciprocal, table, code, code);
    set(packed, reciprocal, table, table.low - 1, 0);
    for (int r = 0; r < kRegisters; ++r) {
      packed_[r] = _mm512_load_si512(packed + 16 * r);
      reciprocal_[r] = _mm512_load_ps(reciprocal + 16 * r);
    }
  }

  Found find(__m512i codes) const {
    const __m512i index = _mm512_max_epi32(codes, below_);
    const Found low = {_mm512_permutex2var_epi32(packed_[0], index, packed_[1]),
                       _mm512_permutex2var_ps(reciprocal_[0], index, reciprocal_[1])};
    if constexpr (kRegisters == 2) return low;
    const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
    constexpr int kLast = kRegisters - 1;
    return {_mm512_mask_blend_epi32(
                upper, low.packed, _mm512_permutex2var_epi32(packed_[2], index, packed_[kLast])),
            _mm512_mask_blend_ps(
                upper, low.reciprocal,
                _mm512_permutex2var_ps(reciprocal_[2], index, reciprocal_[kLast]))};
  }

 private:
  static void set(uint32_t* packed, float* reciprocal, const EncodeTable& table, int at, int code) {
    packed[at % (16 * kRegisters)] = table.entry[code].packed;
    reciprocal[at % (16 * kRegisters)] = table.entry[code].reciprocal;
  }

  __m512i packed_[kRegisters];
  __m512 reciprocal_[kRegisters];
  __m512i below_;
};

// One load a code, for both numbers.
class GatherLookup {
 public:
  GatherLookup() = default;
  explicit GatherLookup(const EncodeTable& table) : entries_(table.entry) {}
  Found find(__m512i codes) const {
    const __m512i low = _mm512_i32gather_epi64(_mm512_castsi512_si256(codes), entries_, 8);
    const __m512i high = _mm512_i32gather_epi64(_mm512_extracti64x4_epi64(codes, 1), entries_, 8);
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return {_mm512_permutex2var_epi32(low, even, high),
            _mm512_castsi512_ps(_mm512_permutex2var_epi32(low, odd, high))};
  }

 private:
  const EncodeTable::Entry* entries_;
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

// Rows of 32 symbols from the last to the first.
template <typename Table>
class Encoder {
 public:
  explicit Encoder(EncodeJob& job)
      : job_(job), run_(job.n_runs), codes_(job.codes), words_(job.words), fetcher_(job.ahead) {
    for (int h = 0; h < 2; ++h) x_[h] = _mm512_loadu_si512(job.states + 16 * h);
    for (size_t r = 0; r < job.n_runs; ++r) codes_ += job.runs[r].n;
    next_run();
    if (run_ == job.n_runs) return;
    const size_t rest = job.runs[run_].n % kLanes;
    codes_ -= rest;
    if (rest != 0) {
      const __mmask32 live = _bzhi_u32(~0u, static_cast<unsigned>(rest));
      const __m256i codes = _mm256_maskz_loadu_epi8(live, codes_);
      row<false>(table(), _mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1), live);
    }
    took(0);
  }

  // Whole rows left of the run at hand, 0 at the end; afterwards tell with `took`.
  size_t rows() const { return rows_; }
  Table table() const { return Table(*job_.runs[run_].table); }
  const EncodeTable* source() const { return job_.runs[run_].table; }

  inline __attribute__((always_inline)) void whole_row(const Table& table) {
    codes_ -= kLanes;
    const __m128i* codes = reinterpret_cast<const __m128i*>(codes_);
    row<true>(table, _mm_loadu_si128(codes), _mm_loadu_si128(codes + 1), ~0u);
    fetcher_.step();
  }

  void took(size_t rows) {
    rows_ -= rows;
    while (rows_ == 0 && run_ != 0) next_run();
  }

  void finish() {
    for (size_t rows; (rows = rows_) != 0; took(rows)) {
      const Table here = table();
      for (size_t r = 0; r < rows; ++r) whole_row(here);
    }
    for (int h = 0; h < 2; ++h) _mm512_storeu_si512(job_.states + 16 * h, x_[h]);
    job_.words = words_;
  }

 private:
  void next_run() {
    if (run_ != 0) rows_ = job_.runs[--run_].n / kLanes;
  }

  // `live` has a bit for each lane that has a symbol.
  template <bool kWhole>
  inline __attribute__((always_inline)) void row(const Table& table, __m128i first, __m128i second,
                                                 __mmask32 live) {
    const Found found[2] = {table.find(_mm512_cvtepu8_epi32(first)),
                            table.find(_mm512_cvtepu8_epi32(second))};
    __m512i freq[2];
    __mmask16 full[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      freq[h] = _mm512_and_si512(found[h].packed, _mm512_set1_epi32(0xFFFF));
      full[h] = _mm512_cmpge_epu32_mask(x_[h], _mm512_slli_epi32(freq[h], 20));
      if constexpr (!kWhole) full[h] &= static_cast<__mmask16>(live >> (16 * h));
    }
    emit(_mm512_kunpackw(full[1], full[0]));
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512i x = _mm512_mask_srli_epi32(x_[h], full[h], x_[h], 16);
      const __m512i pushed =
          push(x, freq[h], _mm512_srli_epi32(found[h].packed, 16), found[h].reciprocal);
      x_[h] = kWhole ? pushed
                     : _mm512_mask_mov_epi32(x, static_cast<__mmask16>(live >> (16 * h)), pushed);
    }
  }

  inline __attribute__((always_inline)) void emit(__mmask32 full) {
    const __m512i even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34,
                                          32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2,
                                          0);
    const __m512i low = _mm512_permutex2var_epi16(x_[0], even, x_[1]);
    const int count = __builtin_popcount(full);
    words_ -= count;
    _mm512_mask_storeu_epi16(words_, _bzhi_u32(~0u, static_cast<unsigned>(count)),
                             _mm512_maskz_compress_epi16(full, low));
  }

  EncodeJob& job_;
  size_t run_;
  size_t rows_ = 0;
  __m512i x_[2];
  const uint8_t* codes_;
  uint16_t* words_;
  Fetcher fetcher_;
};

template <typename Table>
void encode(EncodeJob* jobs, size_t n_jobs) {
  if (n_jobs == 1) return Encoder<Table>(jobs[0]).finish();
  Encoder<Table> first(jobs[0]), second(jobs[1]);
  while (first.rows() != 0 && second.rows() != 0) {
    const size_t rows = first.rows() < second.rows() ? first.rows() : second.rows();
    const Table table = first.table();
    if (first.source() == second.source()) {  // one copy of the table in registers
      for (size_t r = 0; r < rows; ++r) {
        first.whole_row(table);
        second.whole_row(table);
      }
    } else {
      const Table other = second.table();
      for (size_t r = 0; r < rows; ++r) {
        first.whole_row(table);
        second.whole_row(other);
      }
    }
    first.took(rows);
    second.took(rows);
  }
  first.finish();
  second.finish();
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

  // Whole rows, then the rest; true if that uses all words.
  bool finish(uint32_t states[32]) {
    for (; rows_ != 0; took(1))
      if (!row<true>()) return false;
    if (rest_ != 0 && !row<false>()) return false;
    states_.store(states);
    return left_ == 0;
  }

 private:
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
  while (first.rows() != 0 && second.rows() != 0) {
    const size_t rows = first.rows() < second.rows() ? first.rows() : second.rows();
    for (size_t r = 0; r < rows; ++r)
      if (!first.row<true>() || !second.row<true>()) return false;
    first.took(rows);
    second.took(rows);
  }
  return true;
}

}  // namespace

void avx512::rans_encode(EncodeJob* jobs, size_t n_jobs) {
  int used = 0;  // codes of the largest table, the escape included
  for (size_t j = 0; j < n_jobs; ++j)
    for (size_t r = 0; r < jobs[j].n_runs; ++r) {
      const EncodeTable& table = *jobs[j].runs[r].table;
      const int here = table.high - table.low + 2;
      used = here > used ? here : used;
    }
  if (n_jobs == 0) return;
  if (used <= 32) return encode<Lookup<2>>(jobs, n_jobs);
  if (used <= 64) return encode<Lookup<4>>(jobs, n_jobs);
  return encode<GatherLookup>(jobs, n_jobs);
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
