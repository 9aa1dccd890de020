// Interleaved rANS (Duda, arXiv 1311.2540): 32 lanes, 32-bit states in [2^16, 2^32), 16-bit words,
// 12-bit probabilities. Symbol i belongs to lane i % 32 and all lanes share one stream of words.
#include "portable.hpp"
#include "wire.hpp"

namespace qoda {

uint16_t* portable::rans_encode(const uint8_t* codes, size_t n, const EncodeTable& table,
                                uint32_t states[32], uint16_t* words) {
  for (size_t i = n; i-- > 0;) {
    uint32_t x = states[i % kLanes];
    const uint32_t freq = table.freq[codes[i]];
    if (x >= freq << 20) {
      *--words = static_cast<uint16_t>(x);
      x >>= 16;
    }
    states[i % kLanes] = ((x / freq) << kScaleBits) + x % freq + table.start[codes[i]];
  }
  return words;
}

bool portable::rans_decode(const uint8_t* words, size_t n_words, uint32_t states[32],
                           const DecodeTable& table, uint8_t* codes, size_t n) {
  for (size_t lane = 0; lane < kLanes; ++lane)
    if (states[lane] < kStateLow) return false;
  size_t read = 0;
  for (size_t i = 0; i < n; ++i) {
    uint32_t x = states[i % kLanes];
    const uint32_t entry = table.slot[x & (kScale - 1)];
    x = (entry >> 8 & 0xFFF) * (x >> kScaleBits) + (entry >> 20);
    if (x < kStateLow) {
      if (read == n_words) return false;
      x = x << 16 | load<uint16_t>(words + 2 * read++);
    }
    codes[i] = static_cast<uint8_t>(entry);
    states[i % kLanes] = x;
  }
  return read == n_words;
}

}  // namespace qoda
