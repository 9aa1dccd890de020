// Payloads to floats: for each block of coordinates, payload after payload, so that a sum of many
// payloads touches the output once.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.hpp"
#include "unpack.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

// value[code] of a level quantiser: signed levels, or the unit count of max-min. NaN elsewhere.
struct ValueOfCode {
  float value[256];

  ValueOfCode(const Segment& s, const LevelSet& levels) {
    std::fill(value, value + 256, std::numeric_limits<float>::quiet_NaN());
    const LevelSequence sequence = levels.sequence(s.levels);
    const int count = sequence.count;
    if (s.quantizer == kMaxMin) {
      for (int q = 0; q < 2 * count; ++q)
        if (q - count >= -kMaxCode && q - count <= kMaxCode)
          value[q - count + kCodeZero] = static_cast<float>(q);
      return;
    }
    for (int k = 0; k < count; ++k) {
      value[kCodeZero - k] = 0.0f - sequence.level[k];
      value[kCodeZero + k] = sequence.level[k];
    }
  }
};

class Decoder {
 public:
  Decoder(const DecodeRequest& request, const Plan& plan, float* out)
      : request_(request), plan_(plan), out_(out) {}

  void decode_block(size_t b, const Unpacked& payload, bool add, Workspace& work) const;
  void decode_plain_segment(size_t row, const Unpacked& payload, bool add) const {
    write_uncoded(row, 0, request_.segments[row].numel, payload, add);
  }

 private:
  const float* dequantize(const Piece& piece, const uint8_t* codes, const float* escapes,
                          const Unpacked& payload, bool add) const;
  void write_uncoded(size_t row, uint64_t start, uint64_t n, const Unpacked& payload,
                     bool add) const;

  const DecodeRequest& request_;
  const Plan& plan_;
  float* out_;
};

// A segment that is zero, raw or not finite in this payload.
void Decoder::write_uncoded(size_t row, uint64_t start, uint64_t n, const Unpacked& payload,
                            bool add) const {
  float* out = out_ + request_.segments[row].offset + start;
  switch (payload.kinds[row]) {
    case kZero:
      if (!add) std::fill(out, out + n, 0.0f);
      break;
    case kNonfinite:
      std::fill(out, out + n, std::numeric_limits<float>::quiet_NaN());
      break;
    default:
      for (uint64_t i = 0; i < n; ++i) {
        float value = load<float>(payload.raw[row] + 4 * (start + i));
        if (request_.scale != 1.0f) value *= request_.scale;
        out[i] = add ? out[i] + value : value;
      }
  }
}

const float* Decoder::dequantize(const Piece& piece, const uint8_t* codes, const float* escapes,
                                 const Unpacked& payload, bool add) const {
  const Segment& s = request_.segments[piece.segment];
  const Output out = {out_ + s.offset + piece.start, request_.scale, add};
  const float step = payload.steps[piece.segment];
  if (s.quantizer == kOneStream && s.reconstruction == kRounded)
    return kernels().dequantize_rounded(codes, piece.numel, step, escapes, out);
  if (s.quantizer == kOneStream) {
    const Stream stream = stream_of(payload.header, s, piece.start);
    return kernels().dequantize_dithered(codes, piece.numel, step, stream, escapes, out);
  }
  const ValueOfCode table(s, *request_.levels);
  const float* sides = payload.sides.data() + plan_.side_offset[piece.segment];
  const Buckets buckets = buckets_of(s, sides, piece.start, piece.numel);
  const float* next = kernels().dequantize_buckets(codes, piece.numel, buckets,
                                                   s.quantizer == kMaxMin, table.value, escapes,
                                                   out);
  if (next == nullptr)
    throw PayloadError("segment " + std::to_string(piece.segment) + ": a symbol beyond its levels");
  return next;
}

void Decoder::decode_block(size_t b, const Unpacked& payload, bool add, Workspace& work) const {
  const Block& block = plan_.blocks[b];
  size_t n = 0;
  for (uint32_t p = block.first_piece; p < block.end_piece; ++p)
    if (payload.kinds[plan_.pieces[p].segment] == kCoded) n += plan_.pieces[p].numel;
  const UnpackedTable& table = payload.tables[block.slot];
  const BlockEntry entry = {load<uint32_t>(payload.entries[b]),
                            load<uint32_t>(payload.entries[b] + 4)};
  read_block(table.coding, table.lookup.get(), entry, payload.blocks[b], n, work);
  const uint8_t* codes = work.codes.data();
  const float* escapes = work.escapes.data();
  for (uint32_t p = block.first_piece; p < block.end_piece; ++p) {
    const Piece& piece = plan_.pieces[p];
    if (payload.kinds[piece.segment] != kCoded) {
      write_uncoded(piece.segment, piece.start, piece.numel, payload, add);
      continue;
    }
    escapes = dequantize(piece, codes, escapes, payload, add);
    codes += piece.numel;
  }
}

}  // namespace

std::vector<Header> decode(const std::vector<Bytes>& payloads, const DecodeRequest& request,
                           float* out, uint64_t n_out) {
  const Plan plan =
      make_plan(request.segments, request.n_segments, n_out, request.levels->counts());
  std::vector<Unpacked> unpacked;
  std::vector<Header> headers;
  for (size_t i = 0; i < payloads.size(); ++i) {
    unpacked.push_back(unpack(payloads[i], request.expect[i], request, plan));
    headers.push_back(unpacked.back().header);
  }
  const Decoder decoder(request, plan, out);
  parallel_ranges(plan.blocks.size(), request.threads, [&](size_t, size_t block, size_t end) {
    Workspace work;
    for (; block < end; ++block)
      for (size_t i = 0; i < unpacked.size(); ++i)
        decoder.decode_block(block, unpacked[i], request.add || i > 0, work);
  });
  parallel_ranges(request.n_segments, request.threads, [&](size_t, size_t row, size_t end) {
    for (; row < end; ++row)
      for (size_t i = 0; i < unpacked.size(); ++i)
        if (request.segments[row].quantizer == kRawQuantizer)
          decoder.decode_plain_segment(row, unpacked[i], request.add || i > 0);
  });
  return headers;
}

}  // namespace qoda
