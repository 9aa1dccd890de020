// CRC32C (Castagnoli, reflected polynomial 0x82F63B78), four table look-ups per four bytes.
#include "portable.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

struct Tables {
  uint32_t at[4][256];
  Tables() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0);
      at[0][byte] = crc;
    }
    for (int k = 1; k < 4; ++k)
      for (uint32_t byte = 0; byte < 256; ++byte)
        at[k][byte] = at[0][at[k - 1][byte] & 0xFF] ^ (at[k - 1][byte] >> 8);
  }
};

}  // namespace

uint32_t portable::crc32c(uint32_t crc, const uint8_t* data, size_t n) {
  static const Tables tables;
  crc = ~crc;
  for (; n >= 4; n -= 4, data += 4) {
    crc ^= load<uint32_t>(data);
    crc = tables.at[3][crc & 0xFF] ^ tables.at[2][crc >> 8 & 0xFF] ^
          tables.at[1][crc >> 16 & 0xFF] ^ tables.at[0][crc >> 24];
  }
  for (; n > 0; --n, ++data) crc = tables.at[0][(crc ^ *data) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

}  // namespace qoda
