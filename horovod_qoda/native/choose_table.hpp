// The code tables of one type in one payload: agreed, inline, or inline for several classes of groups,
// whichever costs fewer bits.
#pragma once

#include "quantize.hpp"

namespace qoda {

struct ChosenTable {
  uint8_t kind;  // TableKind
  BlockTable coding;
  ClassOfBin class_of_bin{};
};

// `kinds` holds the Kind of every segment. A type without coded coordinates gets kNoTable.
ChosenTable choose_table(const QuantizeContext& context, const Plan& plan, const TypeRun& run,
                         const uint8_t* kinds, const Book* book);

}  // namespace qoda
