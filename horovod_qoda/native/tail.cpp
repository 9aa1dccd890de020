#include <algorithm>

#include "block.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

constexpr size_t kStateWords = 2;
constexpr size_t kTailWords = kLanes - kStateWords;

}  // namespace

size_t write_tail(EncodeJob& job) {
  uint16_t words[kTailWords];
  uint32_t* states = job.states;
  size_t at = kTailWords, count = 0;
  uint32_t x = kStateLow;
  const uint8_t* next = job.codes;
  for (size_t r = 0; r < job.n_runs; ++r) next += job.runs[r].n;
  for (; count < kMostTail && job.n_runs != 0; ++count) {
    EncodeRun& run = job.runs[job.n_runs - 1];
    const EncodeTable& table = *run.table;
    const uint8_t code = *--next;
    const uint32_t freq = table.freq[code];
    if (x >= freq << 20) {
      if (at == 0) break;
      words[--at] = static_cast<uint16_t>(x);
      x >>= 16;
    }
    x = ((x / freq) << kScaleBits) + x % freq + table.start[code];
    if (--run.n == 0) --job.n_runs;
  }
  std::fill(states, states + kLanes, kStateLow);
  states[0] |= x & 0xFFFF;
  states[1] |= x >> 16;
  for (size_t i = at; i < kTailWords; ++i) states[kStateWords + i - at] |= words[i];
  return count;
}

bool read_tail(const uint32_t states[32], const std::vector<DecodeRun>& runs, uint8_t* codes) {
  for (size_t lane = 0; lane < kLanes; ++lane)
    if (states[lane] >> 16 != 1) return false;
  uint32_t x = (states[0] & 0xFFFF) | states[1] << 16;
  if (x < kStateLow) return false;
  size_t at = kStateWords;
  for (const DecodeRun& run : runs)
    for (size_t i = 0; i < run.n; ++i) {
      const uint32_t entry = run.table->slot[x & (kScale - 1)];
      x = (entry >> 8 & 0xFFF) * (x >> kScaleBits) + (entry >> 20);
      if (x < kStateLow) {
        if (at == kLanes) return false;
        x = x << 16 | (states[at++] & 0xFFFF);
      }
      *codes++ = static_cast<uint8_t>(entry);
    }
  for (; at < kLanes; ++at)
    if (states[at] != kStateLow) return false;
  return x == kStateLow;
}

}  // namespace qoda
