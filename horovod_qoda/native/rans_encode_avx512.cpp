// 32 rANS lanes to encode, in order in two registers.
#include "avx512.hpp"
#include "fetcher.hpp"
#include "intrinsics_avx512.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

struct Found {
  __m512i packed;
  __m512 reciprocal;
};

// Look-ups of a table's entries by code: in registers where the codes are few, which
// are then told apart by their low bits and the escape takes the code below the range.
template <int kRegisters>
class Lookup {
 public:
  static constexpr bool kLoads = false;
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
  static constexpr bool kLoads = true;
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
      row<false>(look_up(table(), _mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)),
                 live);
    }
    took(0);
  }

  // Whole rows left of the run at hand, 0 at the end; afterwards tell with `took`.
  size_t rows() const { return rows_; }
  Table table() const { return Table(*job_.runs[run_].table); }
  const EncodeTable* source() const { return job_.runs[run_].table; }

  // `more`: the run has a row behind this one.
  inline __attribute__((always_inline)) void whole_row(const Table& table, bool more) {
    if constexpr (Table::kLoads) {
      const Pair found = ahead_;
      if (more) ahead_ = next_row(table);
      row<true>(found, ~0u);
    } else {
      row<true>(next_row(table), ~0u);
    }
    fetcher_.step();
  }

  void took(size_t rows) {
    rows_ -= rows;
    if (rows_ != 0 && rows != 0) return;
    while (rows_ == 0 && run_ != 0) next_run();
    if (Table::kLoads && rows_ != 0) ahead_ = next_row(table());
  }

  void finish() {
    for (size_t rows; (rows = rows_) != 0; took(rows)) {
      const Table here = table();
      for (size_t r = 1; r <= rows; ++r) whole_row(here, r != rows);
    }
    for (int h = 0; h < 2; ++h) _mm512_storeu_si512(job_.states + 16 * h, x_[h]);
    job_.words = words_;
  }

 private:
  struct Pair {
    Found half[2];
  };

  void next_run() {
    if (run_ != 0) rows_ = job_.runs[--run_].n / kLanes;
  }

  static inline __attribute__((always_inline)) Pair look_up(const Table& table, __m128i first,
                                                            __m128i second) {
    return {{table.find(_mm512_cvtepu8_epi32(first)), table.find(_mm512_cvtepu8_epi32(second))}};
  }

  inline __attribute__((always_inline)) Pair next_row(const Table& table) {
    codes_ -= kLanes;
    const __m128i* codes = reinterpret_cast<const __m128i*>(codes_);
    return look_up(table, _mm_loadu_si128(codes), _mm_loadu_si128(codes + 1));
  }

  // `live` has a bit for each lane that has a symbol.
  template <bool kWhole>
  inline __attribute__((always_inline)) void row(const Pair& pair, __mmask32 live) {
    const Found* found = pair.half;
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
  // Look-ups from memory are made a row ahead: after this row's store they would wait until it is
  // known where its words go.
  Pair ahead_;
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
    const bool more[2] = {first.rows() != rows, second.rows() != rows};
    const Table table = first.table();
    if (first.source() == second.source()) {  // one copy of the table in registers
      for (size_t r = 1; r <= rows; ++r) {
        first.whole_row(table, r != rows || more[0]);
        second.whole_row(table, r != rows || more[1]);
      }
    } else {
      const Table other = second.table();
      for (size_t r = 1; r <= rows; ++r) {
        first.whole_row(table, r != rows || more[0]);
        second.whole_row(other, r != rows || more[1]);
      }
    }
    first.took(rows);
    second.took(rows);
  }
  first.finish();
  second.finish();
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

}  // namespace qoda
