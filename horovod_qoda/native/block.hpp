// One coding block: symbols to bytes and back (docs/wire-format.md, "Coding blocks").
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "classes.hpp"
#include "segment.hpp"
#include "table.hpp"

namespace qoda {

// Memory that is not cleared, so that what a block does not use is never touched.
template <typename T>
class Room {
 public:
  explicit Room(size_t n) : at_(new T[n]), size_(n) {}
  T* data() { return at_.get(); }
  const T* data() const { return at_.get(); }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* end() const { return data() + size_; }
  T& operator[](size_t i) { return at_[i]; }
  const T& operator[](size_t i) const { return at_[i]; }

 private:
  std::unique_ptr<T[]> at_;
  size_t size_;
};

// One block's buffers, reused from block to block by a worker.
struct Workspace {
  explicit Workspace(size_t symbols);  // of the largest block
  Room<uint8_t> codes;
  Room<uint8_t> sorted;  // codes by class
  Room<float> escapes;
  Room<uint16_t> words;
};

// How the symbols of a type are coded. With shift > 0, code h = floor(k / 2^shift) goes through the
// table and the low bits of k travel as they are: for rates at which k outgrows the 255 codes.
struct BlockTable {
  CodeTable table;  // of class 0, often the only one
  uint8_t shift = 0;
  std::vector<CodeTable> more;  // of the other classes: tables of the same range, none certain

  size_t classes() const { return 1 + more.size(); }
  std::vector<CodeTable> tables() const {
    std::vector<CodeTable> all = {table};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  // A table without alternatives: blocks are empty.
  uint8_t certain_code() const { return shift == 0 ? table.certain_code() : 0; }
  // What the quantiser must turn into codes. Where shift > 0 it is nothing: every k is needed.
  CodeRange range() const { return shift == 0 ? table.range() : CodeRange{1, 0}; }
};

constexpr uint8_t kShifts[] = {0, 2, 4};

// The block table's row, without the checksum.
struct BlockEntry {
  uint32_t length = 0;  // bytes before padding to a multiple of 4
  uint32_t info = 0;    // escapes, tail symbols and the plain flag
};

// A block on its way from symbols to bytes. The rANS stream in between is a job of its own, so that
// two blocks' streams can be encoded side by side.
class BlockWriter {
 public:
  // `n` symbols, `escapes` of them escapes, that a quantiser left in `work` with table.range().
  // `lookups`, one for each class, may be null for certain codes.
  BlockWriter(const BlockTable& table, const ClassOfBin& class_of_bin, const EncodeTable* lookups,
              size_t n, size_t escapes, Ahead ahead, Workspace& work);
  // False for blocks without a stream; then `job` is not set.
  bool has_job() const { return has_job_; }
  EncodeJob job;
  // After the job. Writes at most 4 n bytes.
  BlockEntry finish(const Workspace& work, uint8_t* to) const;

 private:
  const BlockTable& table_;
  size_t n_;
  size_t escapes_;
  size_t tail_ = 0;
  std::vector<uint8_t> low_;  // low bits of each symbol
  std::vector<uint8_t> ids_;  // class of each group, if there are classes
  bool has_job_ = false;
};

// The streams of up to two blocks side by side, then their bytes one behind the other from `to` on
// and their rows of the block table from `rows` on. Returns the bytes written, padding included: at
// most 4 for every symbol.
size_t write_blocks(BlockWriter* writers, const Workspace* work, size_t n, uint8_t* to,
                    uint8_t* rows);
// A row of the block table for bytes that lie at `at` with their padding.
void write_row(uint8_t* row, BlockEntry entry, const uint8_t* at);

// A block on its way from bytes to symbols. The rANS stream in between is a job of its own, so that
// two blocks' streams can be decoded side by side.
class BlockReader {
 public:
  // Checks all lengths and class numbers. `lookups`, one for each class, may be null for certain
  // codes. Raises PayloadError; neither the reader nor its job look outside [bytes, bytes +
  // entry.length).
  BlockReader(const BlockTable& table, const DecodeTable* lookups, BlockEntry entry,
              const uint8_t* bytes, size_t n, Ahead ahead, Workspace& work);
  // False for blocks without a stream; then `job` is not set.
  bool has_job() const { return has_job_; }
  DecodeJob job;
  // After the job: leaves symbols in the workspace as a quantiser would. Raises PayloadError.
  void finish(Workspace& work) const;

 private:
  void cut_tail();

  const BlockTable& table_;
  const uint8_t* bytes_;
  size_t n_;
  size_t n_escapes_ = 0, tail_ = 0;
  size_t escapes_at_ = 0, floats_at_ = 0, low_at_ = 0;
  std::optional<GroupOrder> order_;  // if there are classes
  std::vector<DecodeRun> tail_runs_;
  bool has_job_ = false;
};

// Splits n values of k (integers, or beyond 2^24 whatever they are) in work.escapes into codes and
// escapes; with shift > 0, low[i] receives the low bits. Returns the number of escapes.
size_t split_symbols(size_t n, CodeRange codes, uint8_t shift, Workspace& work, uint8_t* low);

// The tail: the last symbols of a block, coded by one lane into the low halves of the 32 initial
// states, which would otherwise carry nothing. `job` has the codes and runs of the whole block; what
// fits is taken off its runs. Returns how many symbols that is.
size_t write_tail(EncodeJob& job);
// False if the states are no tail of these runs.
bool read_tail(const uint32_t states[32], const std::vector<DecodeRun>& runs, uint8_t* codes);

}  // namespace qoda
