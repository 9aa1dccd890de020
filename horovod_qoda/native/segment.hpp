// What the caller says about a chunk: one row per segment, and the geometry that follows from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace qoda {

// Raised for bytes that are not a well-formed payload of the expected exchange.
struct PayloadError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum Quantizer : uint8_t { kRawQuantizer = 0, kOneStream = 1, kLevels = 2, kMaxMin = 3 };
enum Reconstruction : uint8_t { kRounded = 0, kDithered = 1 };
enum Norm : uint8_t { kLinf = 0, kL2 = 1 };

// The same bytes as the NumPy dtype horovod_qoda.coding.SEGMENT.
struct Segment {
  uint64_t offset;
  uint64_t numel;
  uint64_t index;
  uint32_t layer;
  uint16_t type;
  uint8_t quantizer;
  uint8_t reconstruction;
  uint8_t nonfinite;
  uint8_t norm;
  uint32_t bucket;
  uint16_t levels;
  float step;
};
static_assert(sizeof(Segment) == 48, "must match the NumPy dtype");

constexpr uint64_t kBlockSymbols = 65536;
constexpr uint64_t kAlignment = 1024;  // every piece starts at a multiple of this inside its layer
constexpr float kMinStep = 0x1p-120f;  // outside [kMinStep, kMaxStep] 1/step loses its exactness
constexpr float kMaxStep = 0x1p+120f;

// A run of one segment inside one coding block. `start` counts from the segment's first coordinate.
struct Piece {
  uint32_t segment;
  uint64_t start;
  uint32_t numel;
};

struct Block {
  uint32_t slot;  // index into Plan::types
  uint32_t first_piece;
  uint32_t end_piece;
  uint32_t numel;
};

struct TypeRun {
  uint16_t type;
  uint32_t first_block;
  uint32_t end_block;
};

// Geometry of the quantised segments of a chunk. It depends on the layout alone, never on the data,
// so that payloads of different ranks can be decoded block by block side by side.
struct Plan {
  std::vector<TypeRun> types;
  std::vector<Block> blocks;
  std::vector<Piece> pieces;
  std::vector<uint64_t> side_offset;  // [n_segments + 1], float32 side values before each segment
  uint64_t coordinates = 0;           // of all segments, raw ones included
  uint32_t largest_block = 0;         // in coordinates
};

// Float32 side values of a segment: bucket norms, or (minimum, unit) pairs.
uint64_t side_values(const Segment& segment);

// `level_counts`: entries of each level sequence. Raises std::invalid_argument naming the segment and
// the field for rows that break the contract.
Plan make_plan(const Segment* segments, size_t n_segments, uint64_t n_values,
               const std::vector<int>& level_counts);

// Safe capacity in bytes for any payload of these segments.
uint64_t max_payload_bytes(const Segment* segments, size_t n_segments);

}  // namespace qoda
