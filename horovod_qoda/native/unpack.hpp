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
  const uint8_t* bytes;                 // the payload, from whose first byte positions count
  std::vector<uint64_t> block_at;       // of each of Plan::blocks
  std::vector<const uint8_t*> entries;  // its row of the block table
  std::vector<uint64_t> raw_at;         // of the values of each raw segment, else 0
};

// Raises PayloadError for anything that does not fit. Reads nothing beyond the meta part.
Unpacked unpack(const Frame& frame, const Header& expect, const DecodeRequest& request,
                const Plan& plan);

}  // namespace qoda
