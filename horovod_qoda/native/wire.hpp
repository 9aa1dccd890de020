// Byte positions of the payload's fixed parts (docs/wire-format.md) and unaligned little-endian access.
#pragma once

#include <cstdint>
#include <cstring>

namespace qoda {

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the payload is little-endian and is read in place"
#endif

constexpr uint32_t kMagic = 0x41444F51;  // "QODA"
constexpr uint16_t kVersion = 2;

enum HeaderField : size_t {
  kAtMagic = 0,
  kAtVersion = 4,
  kAtHeaderBytes = 6,
  kAtLength = 8,
  kAtLayoutHash = 16,
  kAtExchange = 24,
  kAtKey = 32,
  kAtBookHash = 40,
  kAtCoordinates = 48,
  kAtRank = 56,
  kAtChunk = 60,
  kAtStage = 64,
  kAtSegments = 68,
  kAtBlocks = 72,
  kAtLevelsCrc = 76,
  kAtSumSq = 80,
  kAtSumSqDiff = 88,
  kAtAux = 96,
  kAtMetaBytes = 104,  // position of the first block
  kAtMetaCrc = 108,    // CRC32C of the meta part without this field
};
constexpr size_t kHeaderBytes = 112;
constexpr size_t kRecordBytes = 8;       // step f32, kind u8, mode u8, bucket u8, levels u8
constexpr size_t kBlockEntryBytes = 12;  // length u32, info u32, CRC32C u32
constexpr size_t kMaxTableBytes = 4 + 4 * 2 * 256 + 3;
// info: escapes in bits 0..16, tail symbols in bits 17..30; alone, bit 31: every k as float32.
constexpr uint32_t kEscapesMask = 0x1FFFF;
constexpr uint32_t kTailShift = 17;
constexpr uint32_t kPlainFlag = 0x80000000u;
constexpr size_t kMostTail = 1024;  // bounds the one-lane work where symbols take few bits
constexpr size_t kLanes = 32;
constexpr size_t kStateBytes = 4 * kLanes;

enum Kind : uint8_t { kZero = 0, kCoded = 1, kRaw = 2, kNonfinite = 3 };
enum TableKind : uint8_t { kNoTable = 0, kInline = 1, kAgreed = 2, kClasses = 3 };
constexpr uint8_t kTableKindMask = 0x0F;  // the other half of the byte is the shift
constexpr uint32_t kTableShiftAt = 4;

template <typename T>
static inline T load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <typename T>
static inline void store(uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

static inline uint64_t padded4(uint64_t bytes) { return (bytes + 3) & ~uint64_t{3}; }

}  // namespace qoda
