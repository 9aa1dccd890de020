// 32 rANS lanes to encode, in four registers of eight; the compress that AVX2 lacks is a permutation
// from a table.
#include <immintrin.h>

#include "avx2.hpp"
#include "fetcher.hpp"
#include "gather_avx2.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

// By an 8-bit mask: moves selected lanes to the back, in order.
struct Compressions {
  alignas(32) uint32_t permutation[256][8] = {};

  constexpr Compressions() {
    for (uint32_t mask = 0; mask < 256; ++mask) {
      uint32_t next = 8;
      for (uint32_t lane = 8; lane-- > 0;)
        if (mask >> lane & 1) permutation[mask][--next] = lane;
    }
  }
};

constexpr Compressions compressions;

inline __m256i load8(const uint32_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// x <- (x / freq) * 4096 + x % freq + start. x * floor((2^32 - 1) / freq) / 2^32 misses the quotient
// by less than x / 2^32 + freq / 2^32 * x / freq < 2, and for x < freq * 2^20 by at most one. The rest
// has 13 bits, so 16-bit products do.
inline __m256i push(__m256i x, __m256i freq, __m256i start, __m256i inverse) {
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, inverse), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(inverse, 32));
  const __m256i quotient = _mm256_blend_epi32(even, odd, 0xAA);
  const __m256i rest = _mm256_and_si256(_mm256_sub_epi16(x, _mm256_mullo_epi16(quotient, freq)),
                                        _mm256_set1_epi32(0xFFFF));
  const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(quotient, kScaleBits),
                                       _mm256_add_epi32(rest, start));
  const __m256i exact = _mm256_cmpgt_epi32(freq, rest);
  const __m256i more = _mm256_sub_epi32(_mm256_set1_epi32(kScale), freq);
  return _mm256_add_epi32(sum, _mm256_andnot_si256(exact, more));
}

// What a table says of eight symbols.
struct Found {
  __m256i packed, inverse;

  Found() = default;
  // One load a code, for both numbers; codes 0, 1, 4, 5 and 2, 3, 6, 7 come out in order.
  Found(const uint8_t* codes, const EncodeTable::IntegerEntry* table) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    const __m128i first = _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 4, -1, -1, -1, 5, -1, -1, -1);
    const __m128i second =
        _mm_setr_epi8(2, -1, -1, -1, 3, -1, -1, -1, 6, -1, -1, -1, 7, -1, -1, -1);
    const __m256 a = gather_pairs(table, _mm_shuffle_epi8(eight, first));
    const __m256 b = gather_pairs(table, _mm_shuffle_epi8(eight, second));
    packed = _mm256_castps_si256(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
    inverse = _mm256_castps_si256(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
  }
};

// Eight symbols. The store reaches eight words below, where only unwritten ones lie.
inline __attribute__((always_inline)) __m256i push_eight(__m256i x, const Found& found,
                                                         uint16_t*& words) {
  const __m256i freq = _mm256_and_si256(found.packed, _mm256_set1_epi32(0xFFFF));
  const __m256i fits = _mm256_cmpgt_epi32(freq, _mm256_srli_epi32(x, 20));
  const uint32_t full =
      0xFFu & ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(fits)));
  const __m256i moved = _mm256_permutevar8x32_epi32(
      _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF)), load8(compressions.permutation[full]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(words - 8),
                   _mm_packus_epi32(_mm256_castsi256_si128(moved),
                                    _mm256_extracti128_si256(moved, 1)));
  words -= __builtin_popcount(full);
  x = _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, fits);
  return push(x, freq, _mm256_srli_epi32(found.packed, 16), found.inverse);
}

// One symbol of one lane, for groups that are not whole.
inline uint32_t push_one(uint32_t x, uint8_t code, const EncodeTable& table, uint16_t*& words) {
  const uint32_t freq = table.freq[code];
  if (x >= freq << 20) {
    *--words = static_cast<uint16_t>(x);
    x >>= 16;
  }
  return ((x / freq) << kScaleBits) + x % freq + table.start[code];
}

// Whole rows of 32 symbols of one table, the last of which ends at `end`.
void encode_rows(const uint8_t* end, size_t rows, const EncodeTable& table, __m256i x[4],
                 uint16_t*& words, Fetcher& fetcher) {
  Found next[4];
  const auto look_up = [&] {
    end -= kLanes;
    for (int e = 0; e < 4; ++e) next[e] = Found(end + 8 * e, table.integer_entry);
  };
  if (rows != 0) look_up();
  for (; rows != 0; --rows) {
    const Found found[4] = {next[0], next[1], next[2], next[3]};
    // A row ahead: after this row's stores they would wait until it is known where its words go.
    if (rows != 1) look_up();
#pragma GCC unroll 4
    for (int e = 3; e >= 0; --e) x[e] = push_eight(x[e], found[e], words);
    fetcher.step();
  }
}

// Two jobs side by side were no faster: with look-ups a row ahead one of them keeps the core busy.
void encode(EncodeJob& job) {
  uint32_t* states = job.states;
  uint16_t* words = job.words;
  const uint8_t* end = job.codes;
  for (size_t r = 0; r < job.n_runs; ++r) end += job.runs[r].n;
  if (job.n_runs != 0) {
    const EncodeRun& last = job.runs[job.n_runs - 1];
    for (size_t i = last.n % kLanes; i-- > 0;)
      states[i] = push_one(states[i], *--end, *last.table, words);
  }
  Fetcher fetcher(job.ahead);
  __m256i x[4];
  for (int e = 0; e < 4; ++e) x[e] = load8(states + 8 * e);
  for (size_t r = job.n_runs; r-- > 0;) {
    const size_t rows = job.runs[r].n / kLanes;
    encode_rows(end, rows, *job.runs[r].table, x, words, fetcher);
    end -= rows * kLanes;
  }
  for (int e = 0; e < 4; ++e)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(states + 8 * e), x[e]);
  job.words = words;
}

}  // namespace

void avx2::rans_encode(EncodeJob* jobs, size_t n_jobs) {
  for (size_t j = 0; j < n_jobs; ++j) encode(jobs[j]);
}

}  // namespace qoda
