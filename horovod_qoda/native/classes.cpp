#include "classes.hpp"

#include <algorithm>
#include <cstring>

namespace qoda {
namespace {

// Of two arrays, because compilers know the sum of absolute differences as an instruction.
uint32_t size_of(const uint8_t* codes, const uint8_t* zeros, size_t n) {
  uint32_t sum = 0;
  for (size_t i = 0; i < n; ++i) {
    const int k = int{codes[i]} - int{zeros[i]};
    sum += static_cast<uint32_t>(k < 0 ? -k : k);
  }
  return sum;
}

constexpr std::array<uint8_t, kClassGroup> kZeros = [] {
  std::array<uint8_t, kClassGroup> codes{};
  for (uint8_t& code : codes) code = kCodeZero;
  return codes;
}();

}  // namespace

size_t size_bin(const uint8_t* codes, size_t n) {
  // A length known to the compiler makes the sum a few instructions.
  const uint32_t size = n == kClassGroup
                            ? size_of(codes, kZeros.data(), kClassGroup)
                            : size_of(codes, kZeros.data(), n) * uint32_t{kClassGroup} /
                                  static_cast<uint32_t>(n);
  if (size < 2) return size;
  // Exponent and the first bit behind the point of a float32.
  const float value = static_cast<float>(size);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits >> 22) - (127u << 1);
}

GroupOrder::GroupOrder(const uint8_t* ids, size_t n) : n_(n) {
  const size_t whole = n / kClassGroup, rest = n % kClassGroup;
  std::array<uint16_t, kMostClasses> count{}, next{};
  for (size_t g = 0; g < whole; ++g) ++count[ids[g]];
  uint16_t at = 0;
  for (size_t c = 0; c < kMostClasses; ++c) {
    next[c] = at;
    at = static_cast<uint16_t>(at + count[c]);
    if (count[c] != 0) runs_[n_runs_++] = {static_cast<uint8_t>(c), count[c] * kClassGroup};
  }
  for (size_t g = 0; g < whole; ++g) place_[g] = next[ids[g]]++;
  if (rest != 0) runs_[n_runs_++] = {ids[whole], rest};
}

void GroupOrder::sort(const uint8_t* codes, uint8_t* sorted) const {
  const size_t whole = n_ / kClassGroup * kClassGroup;
  for (size_t g = 0; g < n_ / kClassGroup; ++g)
    std::memcpy(sorted + place_[g] * kClassGroup, codes + g * kClassGroup, kClassGroup);
  std::copy_n(codes + whole, n_ - whole, sorted + whole);
}

void GroupOrder::unsort(const uint8_t* sorted, uint8_t* codes) const {
  const size_t whole = n_ / kClassGroup * kClassGroup;
  for (size_t g = 0; g < n_ / kClassGroup; ++g)
    std::memcpy(codes + g * kClassGroup, sorted + place_[g] * kClassGroup, kClassGroup);
  std::copy_n(sorted + whole, n_ - whole, codes + whole);
}

void pack_ids(const uint8_t* ids, size_t n_groups, uint8_t* to, size_t bytes) {
  std::memset(to, 0, bytes);
  for (size_t g = 0; g < n_groups; ++g)
    to[g / 4] = static_cast<uint8_t>(to[g / 4] | ids[g] << (g % 4 * kIdBits));
}

void unpack_ids(const uint8_t* from, size_t n_groups, uint8_t* ids) {
  for (size_t g = 0; g < n_groups; ++g)
    ids[g] = from[g / 4] >> (g % 4 * kIdBits) & (kMostClasses - 1);
}

}  // namespace qoda
