#include "crc32c.hpp"

#include <nmmintrin.h>

#include <cstring>

namespace qoda {
namespace {

constexpr size_t kStripe = 1024;  // bytes of each of three streams that run side by side

// crc <- crc * x^(8 * kStripe) modulo the polynomial: a linear map, by one table per byte.
struct Advance {
  uint32_t at[4][256];
  Advance() {
    uint32_t image[32];
    for (int bit = 0; bit < 32; ++bit) {
      uint64_t crc = 1u << bit;
      for (size_t i = 0; i < kStripe; i += 8) crc = _mm_crc32_u64(crc, 0);
      image[bit] = static_cast<uint32_t>(crc);
    }
    for (int byte = 0; byte < 4; ++byte)
      for (int value = 0; value < 256; ++value) {
        at[byte][value] = 0;
        for (int bit = 0; bit < 8; ++bit)
          if (value >> bit & 1) at[byte][value] ^= image[8 * byte + bit];
      }
  }
  uint64_t operator()(uint64_t crc) const {
    return at[0][crc & 0xFF] ^ at[1][crc >> 8 & 0xFF] ^ at[2][crc >> 16 & 0xFF] ^
           at[3][crc >> 24 & 0xFF];
  }
};

inline uint64_t word(const uint8_t* at) {
  uint64_t value;
  std::memcpy(&value, at, 8);
  return value;
}

}  // namespace

uint32_t sse42::crc32c(uint32_t start, const uint8_t* data, size_t n) {
  static const Advance advance;
  uint64_t crc = ~start;
  // The instruction takes three cycles and one can start each cycle.
  for (; n >= 3 * kStripe; n -= 3 * kStripe, data += 3 * kStripe) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kStripe; i += 8) {
      crc = _mm_crc32_u64(crc, word(data + i));
      second = _mm_crc32_u64(second, word(data + kStripe + i));
      third = _mm_crc32_u64(third, word(data + 2 * kStripe + i));
    }
    crc = advance(advance(crc) ^ second) ^ third;
  }
  for (; n >= 8; n -= 8, data += 8) crc = _mm_crc32_u64(crc, word(data));
  for (; n > 0; --n, ++data) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), *data);
  return ~static_cast<uint32_t>(crc);
}

}  // namespace qoda
