// A payload's meta part, checked against the layout: what block decoding may rely on.
#pragma once

#include <memory>

#include "payload.hpp"

namespace qoda {

struct UnpackedTable {
  BlockTable coding;
  std::unique_ptr<DecodeTable[]> lookups;  // one a class, null if the type codes nothing or one certain symbol
};

struct Unpacked {
  Header header;
  std::vector<uint8_t> kinds;           // Kind per segment
  std::vector<float> steps;             // per segment
  std::vector<float> sides;             // at Plan::side_offset
  std::vector<UnpackedTable> tables;    // per Plan::types
  std::vector<const uint8_t*> blocks;   // start of each of Plan::blocks
  std::vector<const uint8_t*> entries;  // its row of the block table
  std::vector<const uint8_t*> raw;      // values of each raw segment, else null
};

// Raises PayloadError for anything that does not fit; the checksums have been checked.
Unpacked unpack(Bytes payload, const Header& expect, const DecodeRequest& request,
                const Plan& plan);

}  // namespace qoda
