// Opens and seals payloads: everything that can be checked without knowing the layout.
#include <string>

#include "payload.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

[[noreturn]] void refuse_truncated(uint64_t n, uint64_t length) {
  throw PayloadError("truncated: " + std::to_string(n) + " of " + std::to_string(length) +
                     " bytes");
}

constexpr size_t kAfterMetaCrc = kAtMetaCrc + 4;
static_assert(kAfterMetaCrc == kHeaderBytes, "the checksum is the header's last field");

uint32_t meta_crc(const uint8_t* bytes, uint64_t meta_bytes) {
  const uint32_t head = kernels().crc32c(0, bytes, kAtMetaCrc);
  return kernels().crc32c(head, bytes + kAfterMetaCrc, meta_bytes - kAfterMetaCrc);
}

// Calls check(block, position, bytes, checksum) for one block after the other.
template <typename Check>
void walk_blocks(const Frame& frame, const Check& check) {
  uint64_t at = frame.meta_bytes;
  for (uint32_t b = 0; b < frame.n_blocks; ++b) {
    const uint8_t* entry = frame.block_entry(b);
    const uint64_t bytes = padded4(load<uint32_t>(entry));
    if (bytes > frame.length - at) throw PayloadError("blocks reach beyond the payload's length");
    check(b, at, bytes, load<uint32_t>(entry + 8));
    at += bytes;
  }
  if (at != frame.length) throw PayloadError("bytes left over behind the last block");
}

}  // namespace

const uint8_t* Frame::record(size_t segment) const {
  return bytes + kHeaderBytes + segment * kRecordBytes;
}

const uint8_t* Frame::block_entry(size_t block) const {
  return bytes + meta_bytes - (n_blocks - block) * kBlockEntryBytes;
}

void stamp(uint8_t* bytes, uint64_t meta_bytes, double sum_sq, double sum_sq_diff, double aux) {
  store(bytes + kAtSumSq, sum_sq);
  store(bytes + kAtSumSqDiff, sum_sq_diff);
  store(bytes + kAtAux, aux);
  store(bytes + kAtMetaCrc, meta_crc(bytes, meta_bytes));
}

Frame open_meta(const uint8_t* bytes, uint64_t n) {
  if (n < kHeaderBytes) throw PayloadError("truncated: shorter than a header");
  if (load<uint32_t>(bytes + kAtMagic) != kMagic) throw PayloadError("not a payload: wrong magic");
  const uint16_t version = load<uint16_t>(bytes + kAtVersion);
  if (version != kVersion)
    throw PayloadError("format version " + std::to_string(version) + ", this build reads " +
                       std::to_string(kVersion) + "; install the same release on all ranks");
  if (load<uint16_t>(bytes + kAtHeaderBytes) != kHeaderBytes)
    throw PayloadError("wrong header size");
  Frame frame;
  frame.bytes = bytes;
  frame.length = load<uint64_t>(bytes + kAtLength);
  frame.meta_bytes = load<uint32_t>(bytes + kAtMetaBytes);
  if (frame.meta_bytes < kHeaderBytes || frame.meta_bytes > frame.length)
    throw PayloadError("wrong size of the meta part");
  if (frame.meta_bytes > n) refuse_truncated(n, frame.length);
  if (meta_crc(bytes, frame.meta_bytes) != load<uint32_t>(bytes + kAtMetaCrc))
    throw PayloadError("checksum of the meta part does not match");
  frame.coordinates = load<uint64_t>(bytes + kAtCoordinates);
  frame.n_segments = load<uint32_t>(bytes + kAtSegments);
  frame.n_blocks = load<uint32_t>(bytes + kAtBlocks);
  frame.levels_crc = load<uint32_t>(bytes + kAtLevelsCrc);
  const uint64_t fixed = kHeaderBytes + uint64_t{frame.n_segments} * kRecordBytes +
                         uint64_t{frame.n_blocks} * kBlockEntryBytes;
  if (fixed > frame.meta_bytes) throw PayloadError("records do not fit into the meta part");
  Header& h = frame.header;
  h.layout_hash = load<uint64_t>(bytes + kAtLayoutHash);
  h.exchange = load<uint64_t>(bytes + kAtExchange);
  h.key = load<uint64_t>(bytes + kAtKey);
  h.book_hash = load<uint64_t>(bytes + kAtBookHash);
  h.rank = load<uint32_t>(bytes + kAtRank);
  h.chunk = load<uint32_t>(bytes + kAtChunk);
  h.stage = load<uint32_t>(bytes + kAtStage);
  h.sum_sq = load<double>(bytes + kAtSumSq);
  h.sum_sq_diff = load<double>(bytes + kAtSumSqDiff);
  h.aux = load<double>(bytes + kAtAux);
  walk_blocks(frame, [](uint32_t, uint64_t, uint64_t, uint32_t) {});
  return frame;
}

Frame open_frame(const uint8_t* bytes, uint64_t n) {
  const Frame frame = open_meta(bytes, n);
  if (frame.length > n) refuse_truncated(n, frame.length);
  walk_blocks(frame, [bytes](uint32_t block, uint64_t at, uint64_t size, uint32_t checksum) {
    if (kernels().crc32c(0, bytes + at, size) != checksum)
      throw PayloadError("checksum of block " + std::to_string(block) + " does not match");
  });
  return frame;
}

void seal(uint8_t* bytes, uint64_t n, double sum_sq, double sum_sq_diff, double aux) {
  const Frame frame = open_meta(bytes, n);
  stamp(bytes, frame.meta_bytes, sum_sq, sum_sq_diff, aux);
}

}  // namespace qoda
