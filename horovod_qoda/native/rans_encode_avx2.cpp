// 32 rANS lanes in four registers of eight; the compress and expand that AVX2 lacks are permutations
// from a table.
#include <immintrin.h>

#include <cstring>

#include "avx2.hpp"

namespace qoda {
namespace {

constexpr size_t kLanes = 32;

// Permutations by an 8-bit mask: `expand` gives each selected lane the next element from the front;
// `compress` moves selected lanes to the back, in order.
struct Permutations {
  alignas(32) uint32_t expand[256][8];
  alignas(32) uint32_t compress[256][8];

  Permutations() {
    for (uint32_t mask = 0; mask < 256; ++mask) {
      const uint32_t count = static_cast<uint32_t>(__builtin_popcount(mask));
      uint32_t next = 0;
      for (uint32_t lane = 0; lane < 8; ++lane) compress[mask][lane] = 0;
      for (uint32_t lane = 0; lane < 8; ++lane) {
        const bool selected = mask >> lane & 1;
        expand[mask][lane] = selected ? next : 0;
        if (selected) compress[mask][8 - count + next++] = lane;
      }
    }
  }
};

const Permutations& permutations() {
  static const Permutations tables;
  return tables;
}

inline __m256i load_permutation(const uint32_t* at) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
}

inline __m256i load8(const uint32_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

template <int kBytes = 4>
inline __m256i gather(const uint32_t* table, __m256i index) {
  return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), index, kBytes);
}

inline uint32_t mask_of(__m256i lanes) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}

// x <- (x / freq) * 4096 + x % freq + start. x * floor((2^32 - 1) / freq) / 2^32 misses the quotient
// by less than x / 2^32 + freq / 2^32 * x / freq < 2, and for x < freq * 2^20 by at most one.
inline __m256i push(__m256i x, __m256i freq, __m256i start, __m256i inverse) {
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, inverse), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(inverse, 32));
  const __m256i quotient = _mm256_blend_epi32(even, odd, 0xAA);
  const __m256i rest = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, freq));
  const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(quotient, kScaleBits),
                                       _mm256_add_epi32(rest, start));
  const __m256i exact = _mm256_cmpgt_epi32(freq, rest);
  const __m256i more = _mm256_sub_epi32(_mm256_set1_epi32(kScale), freq);
  return _mm256_add_epi32(sum, _mm256_andnot_si256(exact, more));
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

// Eight symbols. The store reaches eight words below, where only unwritten ones lie.
inline __m256i push_eight(__m256i x, const uint8_t* codes, const EncodeTable& table,
                          uint16_t*& words) {
  const __m256i code =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  const __m256i entry = gather<sizeof(EncodeTable::Entry)>(&table.entry[0].packed, code);
  const __m256i freq = _mm256_and_si256(entry, _mm256_set1_epi32(0xFFFF));
  const __m256i fits = _mm256_cmpgt_epi32(freq, _mm256_srli_epi32(x, 20));
  const uint32_t full = 0xFFu & ~mask_of(fits);
  const __m256i moved = _mm256_permutevar8x32_epi32(
      _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF)), load_permutation(permutations().compress[full]));
  const __m128i low = _mm_packus_epi32(_mm256_castsi256_si128(moved),
                                       _mm256_extracti128_si256(moved, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(words - 8), low);
  words -= __builtin_popcount(full);
  x = _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, fits);
  return push(x, freq, _mm256_srli_epi32(entry, 16), gather(table.inverse, code));
}

void encode(EncodeJob& job) {
  uint32_t* states = job.states;
  uint16_t* words = job.words;
  size_t i = 0;
  for (size_t r = 0; r < job.n_runs; ++r) i += job.runs[r].n;
  for (; i % kLanes != 0; --i)
    states[(i - 1) % kLanes] = push_one(states[(i - 1) % kLanes], job.codes[i - 1],
                                        *job.runs[job.n_runs - 1].table, words);
  __m256i x[4];
  for (int r = 0; r < 4; ++r) x[r] = load8(states + 8 * r);
  for (size_t run = job.n_runs; run-- > 0;) {
    const EncodeTable& table = *job.runs[run].table;
    for (size_t rows = job.runs[run].n / kLanes; rows != 0; --rows, i -= kLanes)
#pragma GCC unroll 4
      for (int r = 3; r >= 0; --r)
        x[r] = push_eight(x[r], job.codes + i - kLanes + 8 * r, table, words);
  }
  for (int r = 0; r < 4; ++r)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(states + 8 * r), x[r]);
  job.words = words;
}

}  // namespace

void avx2::rans_encode(EncodeJob* jobs, size_t n_jobs) {
  for (size_t j = 0; j < n_jobs; ++j) encode(jobs[j]);
}

}  // namespace qoda
