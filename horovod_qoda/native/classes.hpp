// Classes: groups of 128 symbols of a block, each coded with one of a few tables of its type. Rows and
// regions of a gradient differ in size, which one table for all of them would not see.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels.hpp"

namespace qoda {

constexpr size_t kClassGroup = 128;    // a multiple of the 32 lanes
constexpr size_t kMostGroups = 65536 / kClassGroup;
constexpr size_t kIdBits = 2;          // a class number in a block
static_assert(kMostClasses == size_t{1} << kIdBits, "class numbers take two bits");

// Sizes of groups, sum |code - 128|, by half octaves: [0], [1], then [2^e, 1.5 * 2^e) and
// [1.5 * 2^e, 2^(e + 1)).
constexpr size_t kSizeBins = 29;

// Which class the groups of a size get.
using ClassOfBin = std::array<uint8_t, kSizeBins>;

inline size_t groups_of_symbols(size_t n) { return (n + kClassGroup - 1) / kClassGroup; }

// Bytes of the class numbers of n symbols, padded to a multiple of 4.
inline size_t id_bytes(size_t n) {
  return (groups_of_symbols(n) * kIdBits + 31) / 32 * 4;
}

// The bin of up to 128 codes; fewer count as if their mean went on.
size_t size_bin(const uint8_t* codes, size_t n);

// In which order a block codes its groups: by class, so that a coder changes its table a few times
// only, and within a class as they come; a last group of fewer than 128 symbols stays last, so that
// every run but the last is a multiple of the lanes.
class GroupOrder {
 public:
  struct Run {
    uint8_t of_class;
    size_t symbols;
  };

  // `ids`: class of each group, below kMostClasses.
  GroupOrder(const uint8_t* ids, size_t n);
  const Run* runs() const { return runs_.data(); }
  size_t n_runs() const { return n_runs_; }
  // From the order of symbols to that of coding, and back.
  void sort(const uint8_t* codes, uint8_t* sorted) const;
  void unsort(const uint8_t* sorted, uint8_t* codes) const;

 private:
  size_t n_;
  std::array<uint16_t, kMostGroups> place_;  // of each group, in groups
  std::array<Run, kMostRuns> runs_{};
  size_t n_runs_ = 0;
};

void pack_ids(const uint8_t* ids, size_t n_groups, uint8_t* to, size_t bytes);
void unpack_ids(const uint8_t* from, size_t n_groups, uint8_t* ids);

}  // namespace qoda
