#include "block.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "wire.hpp"

namespace qoda {
namespace {

// Positions inside a coded block: states, class numbers, escape bytes, escape floats, low bits, words.
struct BlockLayout {
  size_t ids, escapes, floats, low, words;

  BlockLayout(size_t n, const BlockTable& table, size_t n_escapes, size_t n_floats)
      : ids(kStateBytes),
        escapes(ids + (table.classes() > 1 ? id_bytes(n) : 0)),
        floats(escapes + padded4(n_escapes)),
        low(floats + 4 * n_floats),
        words(low + (n * table.shift + 15) / 16 * 2) {}
};

std::vector<uint8_t> find_ids(const uint8_t* codes, size_t n, const ClassOfBin& class_of_bin) {
  std::vector<uint8_t> ids(groups_of_symbols(n));
  for (size_t g = 0; g < ids.size(); ++g) {
    const size_t at = g * kClassGroup;
    ids[g] = class_of_bin[size_bin(codes + at, std::min(n - at, kClassGroup))];
  }
  return ids;
}

uint32_t pack_info(size_t escapes, size_t tail) {
  return static_cast<uint32_t>(escapes | tail << kTailShift);
}

// Symbol i of a stream of `shift`-bit numbers, least significant bits first; 8 % shift = 0.
void pack_low(const uint8_t* low, size_t n, uint8_t shift, uint8_t* to, size_t bytes) {
  std::memset(to, 0, bytes);
  for (size_t i = 0; i < n; ++i)
    to[i * shift / 8] = static_cast<uint8_t>(to[i * shift / 8] | low[i] << (i * shift % 8));
}

uint8_t low_bits(const uint8_t* from, size_t i, uint8_t shift) {
  return from[i * shift / 8] >> (i * shift % 8) & ((1u << shift) - 1);
}

// Every k as float32: for the rare block that coding would make longer.
BlockEntry write_plain(const Workspace& work, const uint8_t* low, uint8_t shift, size_t n,
                       uint8_t* to) {
  const float* escape = work.escapes.data();
  for (size_t i = 0; i < n; ++i) {
    const int h = int{work.codes[i]} - kCodeZero;
    const int k = h * (1 << shift) + (shift ? low[i] : 0);
    store<float>(to + 4 * i, work.codes[i] == 0 ? *escape++ : static_cast<float>(k));
  }
  return {static_cast<uint32_t>(4 * n), kPlainFlag};
}

// Byte counters, so that a compiler uses whole registers of them.
size_t count_escapes(const uint8_t* codes, size_t n) {
  constexpr size_t kWidth = 64;
  size_t total = 0, i = 0;
  while (i + kWidth <= n) {
    uint8_t counters[kWidth] = {};
    for (int round = 0; round < 255 && i + kWidth <= n; ++round, i += kWidth)
      for (size_t j = 0; j < kWidth; ++j) counters[j] += codes[i + j] == 0;
    for (uint8_t counter : counters) total += counter;
  }
  for (; i < n; ++i) total += codes[i] == 0;
  return total;
}

bool is_small(float k) {
  return std::fabs(k) <= static_cast<float>(kMaxCode) && k == std::floor(k);
}

void read_plain(const BlockTable& table, const uint8_t* bytes, size_t n, Workspace& work) {
  for (size_t i = 0; i < n; ++i) {
    work.escapes[i] = load<float>(bytes + 4 * i);
    if (!std::isfinite(work.escapes[i])) throw PayloadError("a symbol that is not finite");
  }
  if (table.shift == 0)
    split_symbols(n, {-kMaxCode, kMaxCode}, 0, work, nullptr);
  else
    std::fill_n(work.codes.begin(), n, uint8_t{0});
}

// Escapes as floats into work.escapes; the bytes have been counted.
void read_escapes(const uint8_t* escapes, size_t n, const uint8_t* floats, Workspace& work) {
  for (size_t e = 0; e < n; ++e) {
    float k = static_cast<float>(int{escapes[e]} - kCodeZero);
    if (escapes[e] == 0) {
      k = load<float>(floats);
      floats += 4;
      if (!std::isfinite(k)) throw PayloadError("an escape that is not finite");
    }
    work.escapes[e] = k;
  }
}

// Codes of h, low bits and escapes to every k, in place from the back.
void join_low(const uint8_t* low, uint8_t shift, size_t n, size_t escapes, Workspace& work) {
  for (size_t i = n; i-- > 0;) {
    const int h = int{work.codes[i]} - kCodeZero;
    const int k = h * (1 << shift) + low_bits(low, i, shift);
    work.escapes[i] = work.codes[i] == 0 ? work.escapes[--escapes] : static_cast<float>(k);
    work.codes[i] = 0;
  }
}

}  // namespace

Workspace::Workspace(size_t symbols)
    : codes(symbols + 64),
      sorted(symbols + 64),
      escapes(symbols + 16),
      words(symbols + 64) {}

size_t split_symbols(size_t n, CodeRange range, uint8_t shift, Workspace& work, uint8_t* low) {
  const float scale = 1.0f / static_cast<float>(1 << shift);
  const float lowest = static_cast<float>(range.low), highest = static_cast<float>(range.high);
  size_t escapes = 0;
  for (size_t i = 0; i < n; ++i) {
    const float k = work.escapes[i];
    const float h = std::floor(k * scale);
    const bool inside = h >= lowest && h <= highest && k == std::floor(k);
    work.codes[i] = inside ? static_cast<uint8_t>(static_cast<int>(h) + kCodeZero) : 0;
    if (shift != 0)
      low[i] = inside ? static_cast<uint8_t>(static_cast<int>(k) & ((1 << shift) - 1)) : 0;
    if (!inside) work.escapes[escapes++] = k;
  }
  return escapes;
}

BlockWriter::BlockWriter(const BlockTable& table, const ClassOfBin& class_of_bin,
                         const EncodeTable* lookups, size_t n, size_t escapes, Ahead ahead,
                         Workspace& work)
    : table_(table), n_(n), escapes_(escapes) {
  if (n == 0 || table.certain_code() != 0) return;
  if (table.shift != 0) {
    low_.resize(n);
    escapes_ = split_symbols(n, table.table.range(), table.shift, work, low_.data());
  }
  job.codes = work.codes.data();
  job.n_runs = 1;
  job.runs[0] = {lookups, n};
  if (table.classes() > 1) {
    ids_ = find_ids(work.codes.data(), n, class_of_bin);
    const GroupOrder order(ids_.data(), n);
    order.sort(work.codes.data(), work.sorted.data());
    job.codes = work.sorted.data();
    job.n_runs = order.n_runs();
    for (size_t r = 0; r < job.n_runs; ++r)
      job.runs[r] = {lookups + order.runs()[r].of_class, order.runs()[r].symbols};
  }
  tail_ = write_tail(job);
  job.words = work.words.end();
  job.ahead = ahead;
  has_job_ = true;
}

BlockEntry BlockWriter::finish(const Workspace& work, uint8_t* to) const {
  if (!has_job_) return {};
  const size_t word_bytes = 2 * static_cast<size_t>(work.words.end() - job.words);
  const float* escapes = work.escapes.data();
  const size_t small = static_cast<size_t>(std::count_if(escapes, escapes + escapes_, is_small));
  const BlockLayout at(n_, table_, escapes_, escapes_ - small);
  const size_t length = at.words + word_bytes;
  if (padded4(length) > 4 * n_) return write_plain(work, low_.data(), table_.shift, n_, to);
  std::memcpy(to, job.states, kStateBytes);
  pack_ids(ids_.data(), ids_.size(), to + at.ids, at.escapes - at.ids);
  std::memset(to + at.escapes, 0, at.floats - at.escapes);
  uint8_t* next_float = to + at.floats;
  for (size_t e = 0; e < escapes_; ++e) {
    if (is_small(escapes[e])) {
      to[at.escapes + e] = static_cast<uint8_t>(static_cast<int>(escapes[e]) + kCodeZero);
    } else {
      store(next_float, escapes[e]);
      next_float += 4;
    }
  }
  pack_low(low_.data(), low_.size(), table_.shift, to + at.low, at.words - at.low);
  std::memcpy(to + at.words, job.words, word_bytes);
  return {static_cast<uint32_t>(length), pack_info(escapes_, tail_)};
}

void write_row(uint8_t* row, BlockEntry entry, const uint8_t* at) {
  store<uint32_t>(row, entry.length);
  store<uint32_t>(row + 4, entry.info);
  store<uint32_t>(row + 8, kernels().crc32c(0, at, padded4(entry.length)));
}

size_t write_blocks(BlockWriter* writers, const Workspace* work, size_t n, uint8_t* to,
                    uint8_t* rows) {
  EncodeJob jobs[2];
  size_t n_jobs = 0;
  for (size_t i = 0; i < n; ++i)
    if (writers[i].has_job()) jobs[n_jobs++] = writers[i].job;
  kernels().rans_encode(jobs, n_jobs);
  size_t written = 0;
  n_jobs = 0;
  for (size_t i = 0; i < n; ++i) {
    if (writers[i].has_job()) writers[i].job = jobs[n_jobs++];
    uint8_t* at = to + written;
    const BlockEntry entry = writers[i].finish(work[i], at);
    const size_t bytes = padded4(entry.length);
    std::memset(at + entry.length, 0, bytes - entry.length);
    write_row(rows + i * kBlockEntryBytes, entry, at);
    written += bytes;
  }
  return written;
}

BlockReader::BlockReader(const BlockTable& coding, const DecodeTable* lookups, BlockEntry entry,
                         const uint8_t* bytes, size_t n, Ahead ahead, Workspace& work)
    : table_(coding), bytes_(bytes), n_(n) {
  if (n == 0 || coding.certain_code() != 0) {
    if (entry.length != 0 || entry.info != 0) throw PayloadError("block should be empty");
    std::fill_n(work.codes.begin(), n, coding.certain_code());
    return;
  }
  if (entry.info == kPlainFlag) {
    if (entry.length != 4 * n) throw PayloadError("wrong length of a plain block");
    read_plain(coding, bytes, n, work);
    return;
  }
  n_escapes_ = entry.info & kEscapesMask;
  tail_ = entry.info >> kTailShift;
  if (n_escapes_ > n || tail_ > n || tail_ > kMostTail)
    throw PayloadError("wrong number of escapes or tail symbols");
  escapes_at_ = BlockLayout(n, coding, 0, 0).escapes;
  if (entry.length < escapes_at_ + n_escapes_)
    throw PayloadError("block too short for its class numbers or escapes");
  const auto floats = std::count(bytes + escapes_at_, bytes + escapes_at_ + n_escapes_, 0);
  const BlockLayout at(n, coding, n_escapes_, static_cast<size_t>(floats));
  if (entry.length < at.words || entry.length % 2 != 0)
    throw PayloadError("block too short for its escapes or low bits");
  floats_at_ = at.floats;
  low_at_ = at.low;
  job.words = bytes + at.words;
  job.n_words = (entry.length - at.words) / 2;
  std::memcpy(job.states, bytes, kStateBytes);
  job.codes = work.codes.data();
  job.n_runs = 1;
  job.runs[0] = {lookups, n};
  if (coding.classes() > 1) {
    uint8_t ids[kMostGroups];
    unpack_ids(bytes + at.ids, groups_of_symbols(n), ids);
    if (*std::max_element(ids, ids + groups_of_symbols(n)) >= coding.classes())
      throw PayloadError("a class number without a code table");
    order_.emplace(ids, n);
    job.codes = work.sorted.data();
    job.n_runs = order_->n_runs();
    for (size_t r = 0; r < job.n_runs; ++r)
      job.runs[r] = {lookups + order_->runs()[r].of_class, order_->runs()[r].symbols};
  }
  cut_tail();
  job.ahead = ahead;
  job.ok = false;
  has_job_ = true;
}

// From the job's runs to those of the tail.
void BlockReader::cut_tail() {
  size_t left = tail_;
  while (left != 0) {
    DecodeRun& run = job.runs[job.n_runs - 1];
    const size_t n = std::min(left, run.n);
    tail_runs_.insert(tail_runs_.begin(), {run.table, n});
    left -= n;
    run.n -= n;
    if (run.n == 0) --job.n_runs;
  }
}

void BlockReader::finish(Workspace& work) const {
  if (!has_job_) return;
  if (!job.ok || !read_tail(job.states, tail_runs_, job.codes + n_ - tail_))
    throw PayloadError("malformed rANS stream");
  if (order_) order_->unsort(work.sorted.data(), work.codes.data());
  if (count_escapes(work.codes.data(), n_) != n_escapes_)
    throw PayloadError("number of escapes does not match the symbols");
  read_escapes(bytes_ + escapes_at_, n_escapes_, bytes_ + floats_at_, work);
  if (table_.shift != 0) join_low(bytes_ + low_at_, table_.shift, n_, n_escapes_, work);
}

}  // namespace qoda
