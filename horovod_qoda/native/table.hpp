// Code tables: 12-bit frequencies of codes 0..255 (code 0 is the escape), their bytes in a payload,
// and the coder's look-up tables.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace qoda {

using Counts = std::array<uint64_t, 256>;

// A contiguous range of codes [low, high] with positive frequencies, and the escape's frequency in
// freq[0]; together they sum to 4096. An absent table has low = 0.
struct CodeTable {
  std::array<uint16_t, 256> freq{};
  int low = 0;
  int high = 0;

  bool present() const { return low != 0; }
  CodeRange range() const { return {low - kCodeZero, high - kCodeZero}; }
  // The code that always occurs, or 0: such blocks need no bits at all.
  uint8_t certain_code() const { return low == high && freq[low] == kScale ? low : 0; }
};

// Twelve-bit frequencies near counts. `exact` says that nothing else will be coded: without escapes
// in the counts there will be none in the block, and the escape gets no frequency.
CodeTable normalize(const Counts& counts, bool exact);
// Frequencies near counts for the codes that `like` has; counts beyond its range are escapes.
CodeTable normalize_like(const CodeTable& like, const Counts& counts);

// Checks range and sum; false if `freq` is no code table.
bool make_table(const uint16_t freq[256], CodeTable& table);

// Bits that a table needs for the counts, escaped values included; infinite if it cannot code them.
double coded_bits(const CodeTable& table, const Counts& counts);

// Tables of one range: its ends, then each table's frequencies.
std::vector<uint8_t> serialize(const CodeTable* tables, size_t count);
double table_bits(const CodeTable* tables, size_t count);
// Returns the bytes read, or 0 if they are no such tables.
size_t parse(const uint8_t* bytes, size_t n, CodeTable* tables, size_t count);

void fill(const CodeTable& table, EncodeTable& out);
void fill(const CodeTable& table, DecodeTable& out);

}  // namespace qoda
