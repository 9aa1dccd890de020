// The inner loops that exist once per instruction set. Only plain data here: these structs are shared
// by files compiled with different flags, so nothing in this header may emit merged inline code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qoda {

// Codes: k in [-127, 127] is code k + 128; code 0 is the escape.
constexpr int kCodeZero = 128;
constexpr int kMaxCode = 127;
constexpr uint32_t kScaleBits = 12;
constexpr uint32_t kScale = 1u << kScaleBits;
constexpr uint32_t kStateLow = 1u << 16;
// Tables that a type's blocks may choose from, and runs of symbols with one table in a block: one for
// each, and a last group that is not whole.
constexpr size_t kMostClasses = 4;
constexpr size_t kMostRuns = kMostClasses + 1;

// Philox4x32-10 key and the counter words that stay fixed within a layer.
struct Philox {
  uint32_t key0, key1;
  uint32_t c1, c2, c3;
};

// Where a piece starts in its layer: the Philox group (index / 128) of its first coordinate.
struct Stream {
  Philox philox;
  uint32_t group;
};

// k outside [low, high] becomes an escape.
struct CodeRange {
  int low, high;
};

struct LevelSequence {
  const float* level;        // [count], 0 = level[0] < ... < level[count - 1] = 1
  const float* inverse_gap;  // [count - 1], 1 / (level[j + 1] - level[j])
  int count;
};

// Side values of a piece. `bucket` 0 means that one value (pair) serves the whole piece.
struct Buckets {
  const float* values;
  uint32_t bucket;
};

// Where quantisers put their symbols; `codes` has 64 bytes of slack behind the last symbol.
struct Symbols {
  uint8_t* codes;
  float* escapes;
};

struct Output {
  float* values;
  float scale;  // applied only if it is not 1
  bool add;
};

// Where a one-stream quantiser leaves what decoding will make of its symbols, for which it has the
// random numbers at hand; nowhere if `values` is null.
struct Mirror {
  float* values;
  bool dithered;
};

struct EncodeTable {
  struct Entry {
    uint32_t packed;   // start << 16 | freq
    float reciprocal;  // 1 / freq rounded down, 0 where freq is 0
  };
  struct IntegerEntry {
    uint32_t packed;
    uint32_t inverse;  // (2^32 - 1) / freq rounded down, 0 where freq is 0
  };
  uint16_t freq[256];
  uint16_t start[256];
  Entry entry[256];
  IntegerEntry integer_entry[256];
  uint8_t low, high;        // the contiguous range of codes besides the escape, code 0
};

// Entry of a slot: (slot - start[code]) << 20 | freq << 8 | code.
struct DecodeTable {
  uint32_t slot[kScale];
};

// Memory that the caller will need soon: kernels that compute from the cache fetch it meanwhile.
struct Ahead {
  const char* at;
  size_t bytes;
};

// The symbols of a stream that share a table. Every run but the last is a multiple of 32 long.
struct EncodeRun {
  const EncodeTable* table;
  size_t n;
};

struct DecodeRun {
  const DecodeTable* table;
  size_t n;
};

// One stream to encode, its runs not empty. `words` is the end of the room for words, afterwards the
// first of them; `states` are the initial states, afterwards the final ones.
struct EncodeJob {
  const uint8_t* codes;
  EncodeRun runs[kMostRuns];
  size_t n_runs;
  uint32_t states[32];
  uint16_t* words;
  Ahead ahead;
};

// One stream to decode. `words` may be unaligned; `states` has the final states afterwards, and `ok`
// says whether all words were used and there was none too few.
struct DecodeJob {
  const uint8_t* words;
  size_t n_words;
  uint32_t states[32];
  DecodeRun runs[kMostRuns];
  size_t n_runs;
  uint8_t* codes;  // with 64 bytes of slack
  Ahead ahead;
  bool ok;
};

struct Kernels {
  const char* name;

  // Sum of squares of at most 65,536 values: 16 double lanes by index % 16, reduced as
  // lanes[i] += lanes[i + 8], then 4, 2, 1. dst may be null. Clears *finite on NaN or Inf.
  double (*sum_squares)(const float* src, float* dst, size_t n, bool* finite);
  // The same order over float32 differences a - b.
  double (*sum_sq_diff)(const float* a, const float* b, size_t n);

  // Quantisers return the number of escapes written.
  size_t (*quantize_step)(const float* v, size_t n, float step, const Stream&, CodeRange, Symbols,
                          Mirror);
  size_t (*quantize_levels)(const float* v, size_t n, Buckets norms, const LevelSequence&,
                            const Stream&, CodeRange, Symbols);
  size_t (*quantize_maxmin)(const float* v, size_t n, Buckets pairs, int top, const Stream&,
                            CodeRange, Symbols);

  // Return the first unread escape, or null if a symbol is no value of this quantiser.
  const float* (*dequantize_rounded)(const uint8_t* codes, size_t n, float step,
                                     const float* escapes, Output);
  const float* (*dequantize_dithered)(const uint8_t* codes, size_t n, float step, const Stream&,
                                      const float* escapes, Output);
  // value[code] * norm, or minimum + value[code] * unit where `pairs`; value is NaN at codes that
  // are no value of the quantiser, and the result is null if one of them occurs.
  const float* (*dequantize_buckets)(const uint8_t* codes, size_t n, Buckets sides, bool pairs,
                                     const float value[256], const float* escapes, Output);

  // At most two jobs: one chain of states leaves much of a wide core idle, two fill it. When encoding,
  // symbols without probability must not occur, nor tables with a single symbol.
  void (*rans_encode)(EncodeJob* jobs, size_t n_jobs);
  void (*rans_decode)(DecodeJob* jobs, size_t n_jobs);

  uint32_t (*crc32c)(uint32_t crc, const uint8_t* data, size_t n);
};

// The fastest set this CPU has, or the one named by HOROVOD_QODA_SIMD.
const Kernels& kernels();

}  // namespace qoda
