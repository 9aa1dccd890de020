// Philox4x32-10 (Salmon et al., SC 2011), one 128-coordinate group at a time. Internal linkage: files
// compiled for different instruction sets each keep their own copy.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace qoda {
namespace {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr size_t kGroup = 128;

[[maybe_unused]] inline void philox4x32_10(const uint32_t key[2], uint32_t c[4]) {
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kPhiloxM0} * c[0];
    const uint64_t p1 = uint64_t{kPhiloxM1} * c[2];
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[0] = n0;
    c[1] = static_cast<uint32_t>(p1);
    c[2] = n2;
    c[3] = static_cast<uint32_t>(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
}

// The 16-bit numbers of coordinates 128 * group .. 128 * group + 127 of a layer.
[[maybe_unused]] inline void philox_group(const Philox& p, uint32_t group, uint16_t bits[kGroup]) {
  const uint32_t key[2] = {p.key0, p.key1};
  for (uint32_t lane = 0; lane < 16; ++lane) {
    uint32_t c[4] = {16 * group + lane, p.c1, p.c2, p.c3};
    philox4x32_10(key, c);
    for (uint32_t word = 0; word < 4; ++word) {
      bits[32 * word + lane] = static_cast<uint16_t>(c[word]);
      bits[32 * word + 16 + lane] = static_cast<uint16_t>(c[word] >> 16);
    }
  }
}

// U = (n + 1/2) / 65536, exact in float32.
[[maybe_unused]] inline float unit_uniform(uint16_t bits) {
  return (static_cast<float>(bits) + 0.5f) * 0x1p-16f;
}

}  // namespace
}  // namespace qoda
