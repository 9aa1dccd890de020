// Fuzzes the decoder: input bytes are a layout number and a payload whose header and checksums are
// repaired, so that mutations reach what lies behind them. See README.md for building and running.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "payload.hpp"
#include "wire.hpp"

using namespace qoda;

namespace {

struct Layout {
  std::vector<Segment> segments;
  uint64_t coordinates = 0;

  void add(uint64_t numel, uint8_t quantizer, uint8_t option, uint16_t type, uint32_t bucket) {
    Segment s{};
    s.offset = coordinates;
    s.numel = numel;
    s.quantizer = quantizer;
    s.reconstruction = quantizer == kOneStream ? option : 0;
    s.norm = quantizer == kLevels ? option : 0;
    s.layer = static_cast<uint32_t>(segments.size());
    s.type = type;
    s.bucket = bucket;
    s.step = 0.5f;
    segments.push_back(s);
    coordinates += numel;
  }
};

std::vector<Layout> make_layouts() {
  std::vector<Layout> layouts(6);
  layouts[0].add(300, kOneStream, kDithered, 0, 0);
  layouts[1].add(700, kOneStream, kRounded, 0, 0);
  layouts[1].add(90, kOneStream, kDithered, 0, 0);
  layouts[1].add(33, kRawQuantizer, 0, 0, 0);
  layouts[2].add(300, kLevels, kLinf, 0, 64);
  layouts[2].add(100, kLevels, kL2, 0, 0);
  layouts[2].add(200, kMaxMin, 0, 2, 32);
  layouts[3].add(1, kOneStream, kRounded, 1, 0);
  layouts[3].add(1500, kOneStream, kDithered, 3, 0);
  layouts[4].add(400, kLevels, kLinf, 4, 128);
  layouts[4].add(400, kMaxMin, 0, 5, 0);
  layouts[5].add(1900, kOneStream, kDithered, 0, 0);
  return layouts;
}

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> made = make_layouts();
  return made;
}

const LevelSet& levels() {
  static const LevelSet made({{0.0f, 0.1f, 0.4f, 1.0f}});
  return made;
}

const Book& book() {
  static const Book made = [] {
    Book b;
    Counts counts{};
    for (int code = 110; code <= 146; ++code) counts[code] = 50;
    for (int type = 0; type < 4; ++type) b.tables.push_back(normalize(counts, false));
    b.tables[1] = CodeTable{};  // a payload that names an agreed table which is absent
    // Of types 4 and 5, levels and max-min: most symbols are escapes.
    Counts narrow{};
    narrow[128] = narrow[0] = 50;
    b.tables.insert(b.tables.end(), 2, normalize(narrow, false));
    return b;
  }();
  return made;
}

// Everything that only says where a payload belongs, and the checksums over what was mutated.
void repair(std::vector<uint8_t>& bytes, const Layout& layout) {
  if (bytes.size() < kHeaderBytes) return;
  uint8_t* p = bytes.data();
  const uint64_t size = bytes.size() & ~uint64_t{3};
  store(p + kAtMagic, kMagic);
  store(p + kAtVersion, kVersion);
  store(p + kAtHeaderBytes, static_cast<uint16_t>(kHeaderBytes));
  if (load<uint64_t>(p + kAtLength) % 8 != 5) store(p + kAtLength, size);
  for (size_t at : {kAtLayoutHash, kAtExchange, kAtKey, kAtBookHash}) store(p + at, uint64_t{0});
  for (size_t at : {kAtRank, kAtChunk, kAtStage}) store(p + at, uint32_t{0});
  store(p + kAtCoordinates, layout.coordinates);
  store(p + kAtSegments, static_cast<uint32_t>(layout.segments.size()));
  store(p + kAtLevelsCrc, levels().crc());
  const uint64_t meta = load<uint32_t>(p + kAtMetaBytes);
  const uint64_t blocks = load<uint32_t>(p + kAtBlocks);
  if (meta < kHeaderBytes || meta > size) return;
  if (blocks <= (meta - kHeaderBytes) / kBlockEntryBytes) {
    uint64_t at = meta;
    for (uint64_t b = 0; b < blocks; ++b) {
      uint8_t* entry = p + meta - (blocks - b) * kBlockEntryBytes;
      if (b + 1 == blocks && size - at < padded4(load<uint32_t>(entry)))
        store(entry, static_cast<uint32_t>(size - at));
      const uint64_t length = padded4(load<uint32_t>(entry));
      if (length > size - at) break;
      store(entry + 8, kernels().crc32c(0, p + at, length));
      at += length;
    }
  }
  stamp(p, meta, 0, 0, 0);
}

std::vector<uint8_t> fresh(unsigned seed) {
  std::mt19937 random(seed);
  const size_t which = random() % layouts().size();
  Layout layout = layouts()[which];
  std::vector<float> values(layout.coordinates);
  std::normal_distribution<float> normal(0.0f, std::exp2(static_cast<float>(random() % 12) - 2.0f));
  for (float& v : values) v = random() % 50 == 0 ? 30.0f * normal(random) : normal(random);
  // Rows of different sizes, so that groups take tables of their own.
  if (random() % 2)
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = i / 256 % 3 == 0 ? 0.0f : std::copysign(i / 256 % 3 == 1 ? 0.5f : 4.0f, values[i]);
  for (Segment& s : layout.segments) {
    const unsigned kind = random() % 8;
    if (s.quantizer == kOneStream && kind < 2) s.step = kind == 0 ? 0.0f : 1e-38f;
    if (kind == 2) s.nonfinite = 1;
  }
  std::vector<uint8_t> bytes(max_payload_bytes(layout.segments.data(), layout.segments.size()) + 1);
  EncodeRequest request{};
  request.values = values.data();
  request.n_values = values.size();
  request.segments = layout.segments.data();
  request.n_segments = layout.segments.size();
  request.book = random() % 2 ? &book() : nullptr;
  request.levels = &levels();
  request.threads = 1;
  bytes[0] = static_cast<uint8_t>(which);
  bytes.resize(1 + encode(request, bytes.data() + 1, bytes.size() - 1));
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  // The first byte: layout, then whether the payload comes twice (two streams side by side), as it is
  // (so that header and checksum errors happen too), added, and scaled.
  const Layout& layout = layouts()[(data[0] & 7) % layouts().size()];
  std::vector<uint8_t> bytes(data + 1, data + size);
  const bool as_it_is = (data[0] & 48) == 48;
  if (!as_it_is) repair(bytes, layout);
  const size_t count = (data[0] & 48) == 16 ? 2 : 1;
  // Allocations of exactly the right size, so that the sanitizer sees one byte too far.
  std::vector<float> out(layout.coordinates);
  DecodeRequest request{};
  request.segments = layout.segments.data();
  request.n_segments = layout.segments.size();
  request.expect.resize(count);
  request.book = &book();
  request.levels = &levels();
  request.add = data[0] & 64;
  request.scale = data[0] & 128 ? 0.5f : 1.0f;
  request.threads = 1;
  try {
    if (as_it_is) seal(bytes.data(), bytes.size(), 1, 2, 3);
    decode(std::vector<Bytes>(count, {bytes.data(), bytes.size()}), request, out.data(), out.size());
  } catch (const PayloadError&) {
  }
  return 0;
}

#ifdef STANDALONE
#include <cstdio>

// Without libFuzzer: mutations of fresh payloads, not guided by coverage.
static void mutate(std::vector<uint8_t>& bytes, std::mt19937& random) {
  const unsigned changes = 1 + random() % 4;
  for (unsigned c = 0; c < changes && bytes.size() > 1; ++c) {
    const size_t at = random() % bytes.size();
    switch (random() % 6) {
      case 0: bytes[at] ^= static_cast<uint8_t>(1u << random() % 8); break;
      case 1: bytes[at] = static_cast<uint8_t>(random()); break;
      case 2: bytes.resize(random() % 4 ? bytes.size() - random() % 8 % bytes.size() : at); break;
      case 3: bytes.insert(bytes.begin() + static_cast<long>(at), random() % 8, 0); break;
      case 4:  // small fields of the meta part matter most
        bytes[1 + random() % std::min<size_t>(bytes.size() - 1, 200)] =
            static_cast<uint8_t>(random() % 2 ? random() : random() % 4);
        break;
      default:
        if (bytes.size() > at + 4) store(bytes.data() + at, static_cast<uint32_t>(random()));
    }
  }
}

int main(int argc, char** argv) {
  const unsigned long runs = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 100000;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (unsigned long run = 0; run < runs;) {
    const std::vector<uint8_t> start = fresh(random());
    LLVMFuzzerTestOneInput(start.data(), start.size());
    for (int child = 0; child < 64; ++child, ++run) {
      std::vector<uint8_t> bytes = start;
      mutate(bytes, random);
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
  }
  std::printf("%lu executions, no finding\n", runs);
}
#else
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  if (size != 0 && seed % 64 != 0) return LLVMFuzzerMutate(data, size, max_size);
  const std::vector<uint8_t> bytes = fresh(seed);
  if (bytes.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, bytes.data(), bytes.size());
  return bytes.size();
}
#endif
