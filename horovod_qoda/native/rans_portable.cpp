// Interleaved rANS (Duda, arXiv 1311.2540): 32 lanes, 32-bit states in [2^16, 2^32), 16-bit words,
// 12-bit probabilities. Symbol i belongs to lane i % 32 and all lanes share one stream of words.
#include "portable.hpp"
#include "wire.hpp"

namespace qoda {

namespace {

void encode(EncodeJob& job) {
  size_t end = 0;
  for (size_t r = 0; r < job.n_runs; ++r) end += job.runs[r].n;
  for (size_t r = job.n_runs; r-- > 0;) {
    const EncodeTable& table = *job.runs[r].table;
    const size_t start = end - job.runs[r].n;
    for (size_t i = end; i-- > start;) {
      uint32_t x = job.states[i % kLanes];
      const uint32_t freq = table.freq[job.codes[i]];
      if (x >= freq << 20) {
        *--job.words = static_cast<uint16_t>(x);
        x >>= 16;
      }
      job.states[i % kLanes] = ((x / freq) << kScaleBits) + x % freq + table.start[job.codes[i]];
    }
    end = start;
  }
}

bool decode(DecodeJob& job) {
  for (uint32_t state : job.states)
    if (state < kStateLow) return false;
  size_t read = 0, i = 0;
  for (size_t r = 0; r < job.n_runs; ++r) {
    const uint32_t* slots = job.runs[r].table->slot;
    for (const size_t end = i + job.runs[r].n; i < end; ++i) {
      uint32_t x = job.states[i % kLanes];
      const uint32_t entry = slots[x & (kScale - 1)];
      x = (entry >> 8 & 0xFFF) * (x >> kScaleBits) + (entry >> 20);
      if (x < kStateLow) {
        if (read == job.n_words) return false;
        x = x << 16 | load<uint16_t>(job.words + 2 * read++);
      }
      job.codes[i] = static_cast<uint8_t>(entry);
      job.states[i % kLanes] = x;
    }
  }
  return read == job.n_words;
}

}  // namespace

void portable::rans_encode(EncodeJob* jobs, size_t n_jobs) {
  for (size_t j = 0; j < n_jobs; ++j) encode(jobs[j]);
}

void portable::rans_decode(DecodeJob* jobs, size_t n_jobs) {
  for (size_t j = 0; j < n_jobs; ++j) jobs[j].ok = decode(jobs[j]);
}

}  // namespace qoda
