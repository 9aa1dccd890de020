#include "unpack.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <string>

#include "wire.hpp"

namespace qoda {
namespace {

void expect_equal(const char* field, uint64_t found, uint64_t wanted) {
  if (found != wanted)
    throw PayloadError(std::string(field) + " is " + std::to_string(found) + " but " +
                       std::to_string(wanted) + " was expected");
}

[[noreturn]] void refuse(size_t row, const char* why) {
  throw PayloadError("segment " + std::to_string(row) + ": " + why);
}

// Reads the meta part from front to back; every read is checked against where it ends.
class Unpacker {
 public:
  Unpacker(const Frame& frame, const DecodeRequest& request, const Plan& plan)
      : frame_(frame),
        request_(request),
        plan_(plan),
        at_(kHeaderBytes + request.n_segments * kRecordBytes),
        end_(frame.meta_bytes - uint64_t{frame.n_blocks} * kBlockEntryBytes) {}

  Unpacked run() {
    out_.header = frame_.header;
    out_.bytes = frame_.bytes;
    read_records();
    read_sides();
    read_tables();
    find_blocks();
    return std::move(out_);
  }

 private:
  void read_records();
  void check_record(size_t row, float step, uint8_t kind) const;
  void read_sides();
  void read_classes(BlockTable& coding);
  void read_tables();
  void find_blocks();

  const Frame& frame_;
  const DecodeRequest& request_;
  const Plan& plan_;
  uint64_t at_;
  uint64_t end_;
  uint64_t raw_values_ = 0;
  Unpacked out_;
};

void Unpacker::check_record(size_t row, float step, uint8_t kind) const {
  const Segment& s = request_.segments[row];
  if (kind > kNonfinite) refuse(row, "unknown kind");
  if (s.quantizer == kRawQuantizer && kind != kRaw && kind != kNonfinite)
    refuse(row, "coded, but the layout says raw");
  if (kind == kCoded && s.quantizer == kOneStream) {
    if (!(step >= kMinStep && step <= kMaxStep)) refuse(row, "step out of range");
  } else if (!(step == 0.0f)) {
    refuse(row, "a step where there is none");
  }
}

void Unpacker::read_records() {
  for (size_t row = 0; row < request_.n_segments; ++row) {
    const uint8_t* record = frame_.record(row);
    const Segment& s = request_.segments[row];
    const float step = load<float>(record);
    check_record(row, step, record[4]);
    if (record[5] != mode_byte(s) || record[6] != bucket_byte(s) ||
        record[7] != levels_byte(s, *request_.levels))
      refuse(row, "coded with another quantizer, reconstruction, norm, bucket size or number of "
                  "levels; use the same settings on all ranks");
    out_.kinds.push_back(record[4]);
    out_.steps.push_back(step);
    if (record[4] == kRaw) raw_values_ += s.numel;
  }
}

void Unpacker::read_sides() {
  out_.sides.assign(plan_.side_offset.back(), 0.0f);
  for (size_t row = 0; row < request_.n_segments; ++row) {
    if (out_.kinds[row] != kCoded) continue;
    const uint64_t first = plan_.side_offset[row], end = plan_.side_offset[row + 1];
    const bool pairs = request_.segments[row].quantizer == kMaxMin;
    if (4 * (end - first) > end_ - at_) throw PayloadError("bucket norms do not fit");
    for (uint64_t i = first; i < end; ++i, at_ += 4) {
      const float value = load<float>(frame_.bytes + at_);
      const bool may_be_negative = pairs && (i - first) % 2 == 0;
      if (!std::isfinite(value) || (std::signbit(value) && !may_be_negative))
        refuse(row, "a bucket norm that is negative or not finite");
      out_.sides[i] = value;
    }
  }
}

// The tables of several classes of groups.
void Unpacker::read_classes(BlockTable& coding) {
  const size_t count = at_ < end_ ? frame_.bytes[at_++] : 0;
  if (count < 2 || count > kMostClasses) throw PayloadError("wrong number of classes");
  std::vector<CodeTable> tables(count);
  const size_t bytes = parse(frame_.bytes + at_, end_ - at_, tables.data(), count);
  if (bytes == 0) throw PayloadError("malformed code tables of classes");
  at_ += bytes;
  for (const CodeTable& table : tables)
    if (table.certain_code() != 0) throw PayloadError("a class whose code table is certain");
  coding.table = tables[0];
  coding.more.assign(tables.begin() + 1, tables.end());
}

void Unpacker::read_tables() {
  std::vector<bool> coded(plan_.types.size(), false);
  for (const Block& block : plan_.blocks)
    for (uint32_t p = block.first_piece; p < block.end_piece; ++p)
      if (out_.kinds[plan_.pieces[p].segment] == kCoded) coded[block.slot] = true;
  for (size_t slot = 0; slot < plan_.types.size(); ++slot) {
    if (at_ >= end_) throw PayloadError("code tables do not fit");
    const uint8_t kind = frame_.bytes[at_] & kTableKindMask;
    UnpackedTable entry;
    entry.coding.shift = frame_.bytes[at_++] >> kTableShiftAt;
    if (kind == kInline) {
      const size_t bytes = parse(frame_.bytes + at_, end_ - at_, &entry.coding.table, 1);
      if (bytes == 0) throw PayloadError("malformed code table");
      at_ += bytes;
    } else if (kind == kClasses) {
      read_classes(entry.coding);
    } else if (kind == kAgreed) {
      const uint16_t type = plan_.types[slot].type;
      if (request_.book == nullptr || type >= request_.book->tables.size() ||
          !request_.book->tables[type].present())
        throw PayloadError("type " + std::to_string(type) + " uses an agreed code table, and the "
                           "book at hand has none");
      entry.coding.table = request_.book->tables[type];
    } else if (kind != kNoTable) {
      throw PayloadError("unknown kind of code table");
    }
    if (coded[slot] != (kind != kNoTable))
      throw PayloadError("a code table is missing or not needed");
    const uint8_t shift = entry.coding.shift;
    if (std::find(std::begin(kShifts), std::end(kShifts), shift) == std::end(kShifts) ||
        (shift != 0 && (kind != kInline || entry.coding.table.certain_code() != 0)))
      throw PayloadError("a code table with a wrong shift");
    if (entry.coding.table.present() && entry.coding.certain_code() == 0) {
      entry.lookups = std::make_unique<DecodeTable[]>(entry.coding.classes());
      const std::vector<CodeTable> tables = entry.coding.tables();
      for (size_t c = 0; c < tables.size(); ++c) fill(tables[c], entry.lookups[c]);
    }
    out_.tables.push_back(std::move(entry));
  }
  if (padded4(at_) != end_) throw PayloadError("bytes left over in the meta part");
}

// Positions of blocks; opening has made sure that they lie inside the payload.
void Unpacker::find_blocks() {
  const uint64_t raw_blocks = (raw_values_ + kBlockSymbols - 1) / kBlockSymbols;
  expect_equal("number of blocks", frame_.n_blocks, plan_.blocks.size() + raw_blocks);
  uint64_t at = frame_.meta_bytes;
  for (size_t b = 0; b < plan_.blocks.size(); ++b) {
    out_.entries.push_back(frame_.block_entry(b));
    out_.block_at.push_back(at);
    at += padded4(load<uint32_t>(out_.entries.back()));
  }
  for (uint64_t left = raw_values_, b = plan_.blocks.size(); left != 0; ++b) {
    const uint64_t values = left < kBlockSymbols ? left : kBlockSymbols;
    const uint8_t* entry = frame_.block_entry(b);
    expect_equal("length of a raw block", load<uint32_t>(entry), 4 * values);
    expect_equal("info of a raw block", load<uint32_t>(entry + 4), 0);
    left -= values;
  }
  out_.raw_at.assign(request_.n_segments, 0);
  for (size_t row = 0; row < request_.n_segments; ++row) {
    if (out_.kinds[row] != kRaw) continue;
    out_.raw_at[row] = at;
    at += 4 * request_.segments[row].numel;
  }
}

}  // namespace

Unpacked unpack(const Frame& frame, const Header& expect, const DecodeRequest& request,
                const Plan& plan) {
  expect_equal("layout hash", frame.header.layout_hash, expect.layout_hash);
  expect_equal("exchange", frame.header.exchange, expect.exchange);
  expect_equal("rank", frame.header.rank, expect.rank);
  expect_equal("stage", frame.header.stage, expect.stage);
  expect_equal("chunk", frame.header.chunk, expect.chunk);
  expect_equal("key", frame.header.key, expect.key);
  expect_equal("book hash", frame.header.book_hash,
               request.book ? request.book->hash : expect.book_hash);
  expect_equal("hash of the level sequences", frame.levels_crc, request.levels->crc());
  expect_equal("number of segments", frame.n_segments, request.n_segments);
  expect_equal("number of coordinates", frame.coordinates, plan.coordinates);
  return Unpacker(frame, request, plan).run();
}

}  // namespace qoda
