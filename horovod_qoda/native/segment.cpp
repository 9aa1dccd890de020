#include "segment.hpp"

#include <algorithm>

#include "wire.hpp"

namespace qoda {
namespace {

[[noreturn]] void refuse(size_t row, const std::string& why) {
  throw std::invalid_argument("segment " + std::to_string(row) + ": " + why);
}

void check_levels(size_t row, const Segment& s, const std::vector<int>& counts) {
  if (s.levels >= counts.size())
    refuse(row, "levels = " + std::to_string(s.levels) + " but only " +
                    std::to_string(counts.size()) + " level sequences were passed");
  if (s.quantizer == kMaxMin && counts[s.levels] > 127)
    refuse(row, "max-min quantisation takes level sequences of at most 127 entries");
  const bool power_of_two = s.bucket != 0 && (s.bucket & (s.bucket - 1)) == 0;
  if (s.bucket != 0 && (!power_of_two || s.bucket < 16 || s.bucket > kAlignment))
    refuse(row, "bucket must be 0 or a power of two from 16 to 1024, not " +
                    std::to_string(s.bucket));
  if (s.norm > kL2) refuse(row, "norm must be 0 (L-infinity) or 1 (L2)");
}

void check_segment(size_t row, const Segment& s, uint64_t n_values,
                   const std::vector<int>& level_counts) {
  if (s.numel == 0) refuse(row, "numel must be positive");
  if (s.offset > n_values || s.numel > n_values - s.offset)
    refuse(row, "coordinates " + std::to_string(s.offset) + " + " + std::to_string(s.numel) +
                    " lie outside the array of " + std::to_string(n_values));
  if (s.quantizer > kMaxMin)
    refuse(row, "quantizer must be 0..3, not " + std::to_string(s.quantizer));
  if (s.quantizer == kRawQuantizer) return;
  if (s.index % kAlignment != 0) refuse(row, "index must be a multiple of 1024");
  if (s.index > (uint64_t{1} << 34) || s.numel > (uint64_t{1} << 34))
    refuse(row, "layers of more than 2^34 coordinates are not supported");
  if (s.layer >= (1u << 24)) refuse(row, "layer must be below 2^24");
  if (s.quantizer == kOneStream) {
    if (s.reconstruction > kDithered)
      refuse(row, "reconstruction must be 0 (rounded) or 1 (dithered)");
  } else {
    check_levels(row, s, level_counts);
  }
}

void add_pieces(Plan& plan, uint32_t row, const Segment& s) {
  uint64_t start = 0;
  while (start < s.numel) {
    Block* block = &plan.blocks.back();
    const uint64_t left = s.numel - start;
    const uint64_t room = kBlockSymbols - block->numel;
    const uint64_t take = left <= room ? left : room / kAlignment * kAlignment;
    if (take == 0) {
      const uint32_t next = static_cast<uint32_t>(plan.pieces.size());
      const uint32_t slot = block->slot;
      plan.blocks.push_back({slot, next, next, 0});
      continue;
    }
    plan.pieces.push_back({row, start, static_cast<uint32_t>(take)});
    block->end_piece = static_cast<uint32_t>(plan.pieces.size());
    block->numel += static_cast<uint32_t>(take);
    start += take;
  }
}

}  // namespace

uint64_t side_values(const Segment& s) {
  if (s.quantizer != kLevels && s.quantizer != kMaxMin) return 0;
  const uint64_t buckets = s.bucket == 0 ? 1 : (s.numel + s.bucket - 1) / s.bucket;
  return s.quantizer == kMaxMin ? 2 * buckets : buckets;
}

Plan make_plan(const Segment* segments, size_t n_segments, uint64_t n_values,
               const std::vector<int>& level_counts) {
  if (n_segments > (size_t{1} << 24)) throw std::invalid_argument("more than 2^24 segments");
  Plan plan;
  plan.side_offset.assign(n_segments + 1, 0);
  std::vector<bool> seen(65536, false);
  for (size_t row = 0; row < n_segments; ++row) {
    const Segment& s = segments[row];
    check_segment(row, s, n_values, level_counts);
    plan.coordinates += s.numel;
    plan.side_offset[row + 1] = plan.side_offset[row] + side_values(s);
    if (s.quantizer == kRawQuantizer) continue;
    if (plan.types.empty() || plan.types.back().type != s.type) {
      if (seen[s.type])
        refuse(row, "segments of type " + std::to_string(s.type) + " are not contiguous");
      seen[s.type] = true;
      const uint32_t block = static_cast<uint32_t>(plan.blocks.size());
      const uint32_t piece = static_cast<uint32_t>(plan.pieces.size());
      const uint32_t slot = static_cast<uint32_t>(plan.types.size());
      plan.types.push_back({s.type, block, block});
      plan.blocks.push_back({slot, piece, piece, 0});
    }
    add_pieces(plan, static_cast<uint32_t>(row), s);
    plan.types.back().end_block = static_cast<uint32_t>(plan.blocks.size());
  }
  for (const Block& block : plan.blocks)
    plan.largest_block = std::max(plan.largest_block, block.numel);
  return plan;
}

uint64_t max_payload_bytes(const Segment* segments, size_t n_segments) {
  uint64_t values = 0, sides = 0, types = 0;
  const Segment* previous = nullptr;
  for (size_t row = 0; row < n_segments; ++row) {
    values += segments[row].numel;
    sides += side_values(segments[row]);
    if (segments[row].quantizer == kRawQuantizer) continue;
    types += previous == nullptr || segments[row].type != previous->type;
    previous = &segments[row];
  }
  // A block of fewer than kBlockSymbols - kAlignment symbols is the last of its type. Segments that
  // turn out to be raw have both the blocks that the layout gives them and raw ones.
  const uint64_t blocks =
      values / (kBlockSymbols - kAlignment) + types + values / kBlockSymbols + 2;
  return kHeaderBytes + n_segments * kRecordBytes + 4 * sides + types * kMaxTableBytes +
         blocks * kBlockEntryBytes + 4 * values + 64;
}

}  // namespace qoda
