// How the groups of a type are divided into classes, and whether that pays.
#pragma once

#include <array>

#include "classes.hpp"
#include "table.hpp"

namespace qoda {

// Counts of codes in a sample of groups, by the groups' size.
struct SizedCounts {
  std::array<Counts, kSizeBins> codes{};
  std::array<uint64_t, kSizeBins> groups{};
};

struct ChosenClasses {
  std::vector<CodeTable> tables;  // none where classes do not pay
  ClassOfBin class_of_bin{};
  double bits = 0;  // of the sample, class numbers included, tables not
};

// Bins are merged, each time the two neighbours whose common table costs least, until kMostClasses are
// left. `one` is the single table: classes share its range, and what they need must be less than
// `most_bits`, tables included; `scale` is the number of all symbols over the sample's.
ChosenClasses choose_classes(const SizedCounts& counts, const CodeTable& one, double scale,
                             double most_bits);

}  // namespace qoda
