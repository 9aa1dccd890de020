// The payload: encode floats to bytes, open and check bytes, decode bytes to floats.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "block.hpp"
#include "kernels.hpp"
#include "segment.hpp"
#include "table.hpp"

namespace qoda {

struct Header {
  uint64_t layout_hash = 0;
  uint64_t exchange = 0;
  uint64_t key = 0;
  uint64_t book_hash = 0;
  uint32_t rank = 0;
  uint32_t chunk = 0;
  uint32_t stage = 0;
  double sum_sq = 0;
  double sum_sq_diff = 0;
  double aux = 0;
};

// Agreed tables, indexed by type id; absent where a type has none.
struct Book {
  std::vector<CodeTable> tables;
  uint64_t hash = 0;
};

// Level sequences in force, checked and with the derived numbers that quantisers use.
class LevelSet {
 public:
  // Raises std::invalid_argument unless a sequence rises strictly from 0 to 1 with 2..128 entries.
  explicit LevelSet(std::vector<std::vector<float>> sequences);
  const std::vector<int>& counts() const { return counts_; }
  LevelSequence sequence(size_t i) const;
  uint32_t crc() const { return crc_; }

 private:
  std::vector<std::vector<float>> levels_;
  std::vector<std::vector<float>> inverse_gaps_;
  std::vector<int> counts_;
  uint32_t crc_ = 0;
};

// value[code] of a level quantiser: signed levels, or the unit count of max-min. NaN elsewhere.
struct ValueOfCode {
  ValueOfCode(const Segment& segment, const LevelSet& levels);
  float value[256];
};

Stream stream_of(const Header& header, const Segment& segment, uint64_t start);
Buckets buckets_of(const Segment& segment, const float* sides, uint64_t start, uint64_t n);

struct EncodeRequest {
  const float* values;
  uint64_t n_values;
  const Segment* segments;
  size_t n_segments;
  Header header;
  const Book* book;  // may be null
  const LevelSet* levels;
  float* decoded;      // [n_values], may be null: receives what decoding gives, apart from `values`
  int64_t* histogram;  // [n_types, 256], may be null
  size_t n_types;
  unsigned threads;
};

// Returns the true length. Raises std::invalid_argument for what the caller did wrong.
uint64_t encode(const EncodeRequest& request, uint8_t* out, uint64_t capacity);

// A payload whose meta part is intact. Nothing in it is trusted beyond what is said here.
struct Frame {
  const uint8_t* bytes = nullptr;
  uint64_t length = 0;
  uint64_t meta_bytes = 0;
  uint64_t coordinates = 0;
  uint32_t n_segments = 0;
  uint32_t n_blocks = 0;
  uint32_t levels_crc = 0;
  Header header;

  const uint8_t* record(size_t segment) const;
  const uint8_t* block_entry(size_t block) const;
};

// Writes the scalars and the checksum of the meta part.
void stamp(uint8_t* bytes, uint64_t meta_bytes, double sum_sq, double sum_sq_diff, double aux);
// Raises PayloadError unless magic, version, lengths and the meta part's checksum hold. The meta part
// is all that is read, and all that has to be there.
Frame open_meta(const uint8_t* bytes, uint64_t n);
// The same of a whole payload, whose blocks' checksums must hold too.
Frame open_frame(const uint8_t* bytes, uint64_t n);
// Stamps a payload anew, of which the meta part is read. Raises PayloadError.
void seal(uint8_t* bytes, uint64_t n, double sum_sq, double sum_sq_diff, double aux);

struct DecodeRequest {
  const Segment* segments;
  size_t n_segments;
  std::vector<Header> expect;  // one per payload
  const Book* book;
  const LevelSet* levels;
  bool add;
  float scale;
  unsigned threads;
};

struct Bytes {
  const uint8_t* data;
  uint64_t size;
};

// Adds the payloads' values in the order given. Raises PayloadError.
std::vector<Header> decode(const std::vector<Bytes>& payloads, const DecodeRequest& request,
                           float* out, uint64_t n_out);

// How a segment's record names its quantiser (docs/wire-format.md).
uint8_t mode_byte(const Segment& segment);
uint8_t bucket_byte(const Segment& segment);
uint8_t levels_byte(const Segment& segment, const LevelSet& levels);

}  // namespace qoda
