// Floats to one payload: kinds and side values, tables, then block after block.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "choose_table.hpp"
#include "float_environment.hpp"
#include "parallel.hpp"
#include "sides.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

[[noreturn]] void refuse(size_t row, const char* why) {
  throw std::invalid_argument("segment " + std::to_string(row) + ": " + why);
}

class Encoder {
 public:
  Encoder(const EncodeRequest& request, uint8_t* out)
      : request_(request),
        out_(out),
        plan_(make_plan(request.segments, request.n_segments, request.n_values,
                        request.levels->counts())) {}

  uint64_t run() {
    find_kinds();
    write_meta();
    if (request_.decoded != nullptr) decode_uncoded();
    const uint64_t end = write_raw_blocks(write_coded_blocks());
    write_header(end);
    return end;
  }

 private:
  void find_kinds();
  uint8_t kind_of(size_t row, float* sides) const;
  void write_meta();
  void decode_uncoded() const;
  void write_header(uint64_t length);
  uint64_t write_coded_blocks();
  uint64_t write_raw_blocks(uint64_t at);
  size_t quantize_block(const Block& block, Workspace& work) const;
  void count_block(const Block& block, size_t escapes, const Workspace& work);
  uint64_t encode_blocks(size_t first, size_t n, size_t last, Workspace work[2], uint8_t* to);
  Ahead next_values(size_t next, size_t last) const;
  uint64_t coded_symbols(const Block& block) const;
  QuantizeContext context() const {
    return {request_.values, request_.segments, side_at_.data(), request_.levels, request_.header};
  }

  const EncodeRequest& request_;
  uint8_t* out_;
  Plan plan_;
  std::vector<uint8_t> kinds_;
  std::vector<float> sides_;
  std::vector<const float*> side_at_;
  std::vector<ChosenTable> tables_;
  std::vector<std::vector<EncodeTable>> lookups_;  // of the classes of tables_
  std::mutex histogram_;
  uint64_t raw_values_ = 0;
  uint64_t block_table_ = 0;
  uint64_t meta_bytes_ = 0;
  size_t n_blocks_ = 0;
};

uint8_t Encoder::kind_of(size_t row, float* sides) const {
  const Segment& s = request_.segments[row];
  if (s.nonfinite != 0) return kNonfinite;
  if (s.quantizer == kRawQuantizer) return kRaw;
  if (s.quantizer == kOneStream) {
    if (!(s.step >= 0.0f) || std::isinf(s.step)) refuse(row, "step must be finite and >= 0");
    if (s.step == 0.0f) return kZero;
    return s.step < kMinStep || s.step > kMaxStep ? kRaw : kCoded;
  }
  switch (compute_sides(request_.values + s.offset, s, *request_.levels, sides)) {
    case Sides::kAllZero: return kZero;
    case Sides::kOutOfRange: return kRaw;
    case Sides::kNotFinite: refuse(row, "values hold NaN or Inf but nonfinite is 0");
    case Sides::kUsable: break;
  }
  return kCoded;
}

void Encoder::find_kinds() {
  kinds_.resize(request_.n_segments);
  side_at_.assign(request_.n_segments, nullptr);
  sides_.resize(plan_.side_offset.back());
  parallel_ranges(request_.n_segments, request_.threads, [&](size_t, size_t row, size_t end) {
    for (; row < end; ++row) {
      float* sides = sides_.data() + plan_.side_offset[row];
      kinds_[row] = kind_of(row, sides);
      side_at_[row] = sides;
    }
  });
  for (size_t row = 0; row < request_.n_segments; ++row)
    if (kinds_[row] == kRaw) raw_values_ += request_.segments[row].numel;
}

void Encoder::write_meta() {
  uint64_t at = kHeaderBytes;
  for (size_t row = 0; row < request_.n_segments; ++row, at += kRecordBytes) {
    const Segment& s = request_.segments[row];
    const bool has_step = kinds_[row] == kCoded && s.quantizer == kOneStream;
    store<float>(out_ + at, has_step ? s.step : 0.0f);
    out_[at + 4] = kinds_[row];
    out_[at + 5] = mode_byte(s);
    out_[at + 6] = bucket_byte(s);
    out_[at + 7] = levels_byte(s, *request_.levels);
  }
  for (size_t row = 0; row < request_.n_segments; ++row) {
    if (kinds_[row] != kCoded) continue;
    const uint64_t bytes = 4 * side_values(request_.segments[row]);
    if (bytes != 0) std::memcpy(out_ + at, side_at_[row], bytes);
    at += bytes;
  }
  FloatEnvironment environment;
  for (const TypeRun& run : plan_.types) {
    tables_.push_back(
        choose_table(context(), plan_, run, kinds_.data(), request_.book));
    const ChosenTable& chosen = tables_.back();
    const std::vector<CodeTable> classes = chosen.coding.tables();
    lookups_.emplace_back(classes.size());
    for (size_t c = 0; c < classes.size(); ++c) fill(classes[c], lookups_.back()[c]);
    out_[at++] = static_cast<uint8_t>(chosen.kind | chosen.coding.shift << kTableShiftAt);
    if (chosen.kind == kClasses) out_[at++] = static_cast<uint8_t>(classes.size());
    if (chosen.kind != kInline && chosen.kind != kClasses) continue;
    for (uint8_t byte : serialize(classes.data(), classes.size())) out_[at++] = byte;
  }
  while (at % 4 != 0) out_[at++] = 0;
  block_table_ = at;
  n_blocks_ = plan_.blocks.size() + (raw_values_ + kBlockSymbols - 1) / kBlockSymbols;
  meta_bytes_ = at + n_blocks_ * kBlockEntryBytes;
  if (meta_bytes_ > UINT32_MAX)
    throw std::invalid_argument("bucket norms of 4 GiB or more; use larger buckets");
}

// What the segments without symbols decode to.
void Encoder::decode_uncoded() const {
  for (size_t row = 0; row < request_.n_segments; ++row) {
    const Segment& s = request_.segments[row];
    float* to = request_.decoded + s.offset;
    if (kinds_[row] == kZero) std::fill_n(to, s.numel, 0.0f);
    if (kinds_[row] == kRaw) std::memcpy(to, request_.values + s.offset, 4 * s.numel);
    if (kinds_[row] == kNonfinite)
      std::fill_n(to, s.numel, std::numeric_limits<float>::quiet_NaN());
  }
}

uint64_t Encoder::coded_symbols(const Block& block) const {
  uint64_t n = 0;
  for (uint32_t p = block.first_piece; p < block.end_piece; ++p)
    if (kinds_[plan_.pieces[p].segment] == kCoded) n += plan_.pieces[p].numel;
  return n;
}

// Returns the number of escapes.
size_t Encoder::quantize_block(const Block& block, Workspace& work) const {
  const CodeRange range = tables_[block.slot].coding.range();
  size_t n = 0, escapes = 0;
  for (uint32_t p = block.first_piece; p < block.end_piece; ++p) {
    const Piece& piece = plan_.pieces[p];
    if (kinds_[piece.segment] != kCoded) continue;
    const Symbols out = {work.codes.data() + n, work.escapes.data() + escapes};
    float* decoded = request_.decoded;
    if (decoded != nullptr) decoded += request_.segments[piece.segment].offset + piece.start;
    const size_t found =
        quantize(context(), piece.segment, piece.start, piece.numel, range, out, decoded);
    for (size_t e = 0; e < found; ++e)
      if (!std::isfinite(out.escapes[e]))
        refuse(piece.segment, "values hold NaN or Inf but nonfinite is 0, or value / step overflows");
    n += piece.numel;
    escapes += found;
  }
  return escapes;
}

void Encoder::count_block(const Block& block, size_t escapes, const Workspace& work) {
  Counts counts{};
  count_symbols(work.codes.data(), coded_symbols(block), work.escapes.data(), escapes, counts);
  const std::lock_guard<std::mutex> lock(histogram_);
  int64_t* row = request_.histogram + size_t{256} * plan_.types[block.slot].type;
  for (size_t code = 0; code < 256; ++code) row[code] += static_cast<int64_t>(counts[code]);
}

// One or two blocks. Returns the bytes written. Meanwhile fetches the values of the worker's next
// blocks, which end at `last`.
uint64_t Encoder::encode_blocks(size_t first, size_t n, size_t last, Workspace work[2],
                                uint8_t* to) {
  std::vector<BlockWriter> writers;
  for (size_t i = 0; i < n; ++i) {
    const Block& block = plan_.blocks[first + i];
    const size_t escapes = quantize_block(block, work[i]);
    if (request_.histogram != nullptr) count_block(block, escapes, work[i]);
    const ChosenTable& chosen = tables_[block.slot];
    writers.emplace_back(chosen.coding, chosen.class_of_bin, lookups_[block.slot].data(),
                         coded_symbols(block), escapes, next_values(first + n + i, last), work[i]);
  }
  return write_blocks(writers.data(), work, n, to,
                      out_ + block_table_ + first * kBlockEntryBytes);
}

// The largest piece of one of the worker's next blocks.
Ahead Encoder::next_values(size_t next, size_t last) const {
  if (next >= last) return {nullptr, 0};
  const Block& block = plan_.blocks[next];
  const auto first = plan_.pieces.begin() + block.first_piece;
  const auto piece = std::max_element(
      first, plan_.pieces.begin() + block.end_piece,
      [](const Piece& a, const Piece& b) { return a.numel < b.numel; });
  const float* values = request_.values + request_.segments[piece->segment].offset + piece->start;
  return {reinterpret_cast<const char*>(values), 4 * size_t{piece->numel}};
}

// Each worker writes where its blocks would start if all before it had their greatest length; the
// gaps are closed afterwards.
uint64_t Encoder::write_coded_blocks() {
  const size_t n = plan_.blocks.size();
  std::vector<uint64_t> greatest(n + 1, meta_bytes_);
  for (size_t b = 0; b < n; ++b) greatest[b + 1] = greatest[b] + 4 * coded_symbols(plan_.blocks[b]);
  struct Region {
    uint64_t first = 0, end = 0;
  };
  std::vector<Region> regions(request_.threads == 0 ? 1 : request_.threads);
  parallel_ranges(n, request_.threads, [&](size_t worker, size_t first, size_t last) {
    Workspace work[2] = {Workspace(plan_.largest_block), Workspace(plan_.largest_block)};
    uint64_t at = greatest[first];
    regions[worker].first = at;
    for (size_t b = first; b < last; b += 2)
      at += encode_blocks(b, std::min<size_t>(2, last - b), last, work, out_ + at);
    regions[worker].end = at;
  });
  uint64_t at = meta_bytes_;
  for (const Region& region : regions) {
    const uint64_t bytes = region.end - region.first;
    if (bytes != 0 && region.first != at) std::memmove(out_ + at, out_ + region.first, bytes);
    at += bytes;
  }
  return at;
}

uint64_t Encoder::write_raw_blocks(uint64_t at) {
  const uint64_t start = at;
  for (size_t row = 0; row < request_.n_segments; ++row) {
    if (kinds_[row] != kRaw) continue;
    const Segment& s = request_.segments[row];
    std::memcpy(out_ + at, request_.values + s.offset, 4 * s.numel);
    at += 4 * s.numel;
  }
  uint8_t* entry = out_ + block_table_ + plan_.blocks.size() * kBlockEntryBytes;
  for (uint64_t block = start; block < at; block += 4 * kBlockSymbols, entry += kBlockEntryBytes)
    write_row(entry, {static_cast<uint32_t>(std::min(at - block, 4 * kBlockSymbols)), 0},
              out_ + block);
  return at;
}

void Encoder::write_header(uint64_t length) {
  const Header& h = request_.header;
  store(out_ + kAtMagic, kMagic);
  store(out_ + kAtVersion, kVersion);
  store(out_ + kAtHeaderBytes, static_cast<uint16_t>(kHeaderBytes));
  store(out_ + kAtLength, length);
  store(out_ + kAtLayoutHash, h.layout_hash);
  store(out_ + kAtExchange, h.exchange);
  store(out_ + kAtKey, h.key);
  store(out_ + kAtBookHash, request_.book ? request_.book->hash : h.book_hash);
  store(out_ + kAtCoordinates, plan_.coordinates);
  store(out_ + kAtRank, h.rank);
  store(out_ + kAtChunk, h.chunk);
  store(out_ + kAtStage, h.stage);
  store(out_ + kAtSegments, static_cast<uint32_t>(request_.n_segments));
  store(out_ + kAtBlocks, static_cast<uint32_t>(n_blocks_));
  store(out_ + kAtLevelsCrc, request_.levels->crc());
  store(out_ + kAtMetaBytes, static_cast<uint32_t>(meta_bytes_));
  stamp(out_, meta_bytes_, h.sum_sq, h.sum_sq_diff, h.aux);
}

}  // namespace

uint64_t encode(const EncodeRequest& request, uint8_t* out, uint64_t capacity) {
  const uint64_t needed = max_payload_bytes(request.segments, request.n_segments);
  if (capacity < needed)
    throw std::invalid_argument("out has " + std::to_string(capacity) + " bytes but up to " +
                                std::to_string(needed) +
                                " may be needed; size it with max_payload_bytes");
  if (request.histogram != nullptr)
    for (size_t row = 0; row < request.n_segments; ++row)
      if (request.segments[row].quantizer != kRawQuantizer &&
          request.segments[row].type >= request.n_types)
        refuse(row, "type has no row in the histogram");
  return Encoder(request, out).run();
}

}  // namespace qoda
