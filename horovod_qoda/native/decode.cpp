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

// One block of one payload. `first`: no other task has touched its part of the output yet.
struct Task {
  size_t block;
  const Unpacked* payload;
  bool first;
  bool add;
};

class Decoder {
 public:
  Decoder(const DecodeRequest& request, const Plan& plan, float* out)
      : request_(request), plan_(plan), out_(out) {}

  // One or two tasks, whose streams are decoded side by side and written in order.
  void run(const Task* tasks, size_t n, Workspace work[2]) const;
  void decode_plain_segment(size_t row, const Unpacked& payload, bool add) const {
    write_uncoded(row, 0, request_.segments[row].numel, payload, add);
  }

 private:
  BlockReader open(const Task& task, Workspace& work) const;
  void write_block(const Task& task, const Workspace& work) const;
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
        float value = load<float>(payload.bytes + payload.raw_at[row] + 4 * (start + i));
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

BlockReader Decoder::open(const Task& task, Workspace& work) const {
  const Unpacked& payload = *task.payload;
  const Block& block = plan_.blocks[task.block];
  size_t n = 0;
  uint32_t largest = block.first_piece;
  for (uint32_t p = block.first_piece; p < block.end_piece; ++p) {
    if (payload.kinds[plan_.pieces[p].segment] == kCoded) n += plan_.pieces[p].numel;
    if (plan_.pieces[p].numel > plan_.pieces[largest].numel) largest = p;
  }
  Ahead ahead = {nullptr, 0};
  if (task.first) {
    const Piece& piece = plan_.pieces[largest];
    const float* out = out_ + request_.segments[piece.segment].offset + piece.start;
    ahead = {reinterpret_cast<const char*>(out), 4 * size_t{piece.numel}};
  }
  const UnpackedTable& table = payload.tables[block.slot];
  const uint8_t* entry = payload.entries[task.block];
  return BlockReader(table.coding, table.lookups.get(), {load<uint32_t>(entry), load<uint32_t>(entry + 4)},
                     payload.bytes + payload.block_at[task.block], n, ahead, work);
}

void Decoder::write_block(const Task& task, const Workspace& work) const {
  const Unpacked& payload = *task.payload;
  const Block& block = plan_.blocks[task.block];
  const uint8_t* codes = work.codes.data();
  const float* escapes = work.escapes.data();
  for (uint32_t p = block.first_piece; p < block.end_piece; ++p) {
    const Piece& piece = plan_.pieces[p];
    if (payload.kinds[piece.segment] != kCoded) {
      write_uncoded(piece.segment, piece.start, piece.numel, payload, task.add);
      continue;
    }
    escapes = dequantize(piece, codes, escapes, payload, task.add);
    codes += piece.numel;
  }
}

void Decoder::run(const Task* tasks, size_t n, Workspace work[2]) const {
  // A reader's job must not move once it has been handed out.
  DecodeJob jobs[2];
  std::vector<BlockReader> readers;
  size_t n_jobs = 0;
  for (size_t t = 0; t < n; ++t) {
    readers.push_back(open(tasks[t], work[t]));
    if (readers.back().has_job()) jobs[n_jobs++] = readers.back().job;
  }
  kernels().rans_decode(jobs, n_jobs);
  n_jobs = 0;
  for (size_t t = 0; t < n; ++t) {
    if (readers[t].has_job()) readers[t].job = jobs[n_jobs++];
    readers[t].finish(work[t]);
    write_block(tasks[t], work[t]);
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
    const Frame frame = open_frame(payloads[i].data, payloads[i].size);
    unpacked.push_back(unpack(frame, request.expect[i], request, plan));
    headers.push_back(unpacked.back().header);
  }
  const Decoder decoder(request, plan, out);
  parallel_ranges(plan.blocks.size(), request.threads, [&](size_t, size_t block, size_t end) {
    Workspace work[2] = {Workspace(plan.largest_block), Workspace(plan.largest_block)};
    std::vector<Task> tasks;
    for (; block < end; ++block)
      for (const Unpacked& payload : unpacked) {
        const bool first = &payload == &unpacked.front();
        tasks.push_back({block, &payload, first, request.add || !first});
      }
    for (size_t t = 0; t < tasks.size(); t += 2)
      decoder.run(tasks.data() + t, std::min<size_t>(2, tasks.size() - t), work);
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
