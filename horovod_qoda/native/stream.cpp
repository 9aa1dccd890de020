// What encoder and decoder share: level sequences, random streams, record bytes.
#include <algorithm>
#include <limits>
#include <utility>

#include "payload.hpp"
#include "wire.hpp"

namespace qoda {

LevelSet::LevelSet(std::vector<std::vector<float>> sequences) : levels_(std::move(sequences)) {
  if (levels_.size() > 65535) throw std::invalid_argument("more than 65,535 level sequences");
  for (size_t i = 0; i < levels_.size(); ++i) {
    const std::vector<float>& level = levels_[i];
    const std::string name = "levels[" + std::to_string(i) + "]";
    if (level.size() < 2 || level.size() > 128)
      throw std::invalid_argument(name + " must have 2 to 128 entries");
    if (level.front() != 0.0f || level.back() != 1.0f)
      throw std::invalid_argument(name + " must begin with 0 and end with 1");
    std::vector<float> inverse;
    for (size_t j = 0; j + 1 < level.size(); ++j) {
      if (!(level[j] < level[j + 1] && level[j + 1] - level[j] >= kMinStep))
        throw std::invalid_argument(name + " must rise strictly, by 2^-120 at least");
      inverse.push_back(1.0f / (level[j + 1] - level[j]));
    }
    inverse_gaps_.push_back(std::move(inverse));
    counts_.push_back(static_cast<int>(level.size()));
    const uint32_t count = static_cast<uint32_t>(level.size());
    const auto& crc32c = kernels().crc32c;
    crc_ = crc32c(crc_, reinterpret_cast<const uint8_t*>(&count), sizeof count);
    crc_ = crc32c(crc_, reinterpret_cast<const uint8_t*>(level.data()), count * sizeof(float));
  }
}

LevelSequence LevelSet::sequence(size_t i) const {
  return {levels_[i].data(), inverse_gaps_[i].data(), static_cast<int>(levels_[i].size())};
}

ValueOfCode::ValueOfCode(const Segment& s, const LevelSet& levels) {
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

Stream stream_of(const Header& h, const Segment& segment, uint64_t start) {
  Philox philox;
  philox.key0 = static_cast<uint32_t>(h.key);
  philox.key1 = static_cast<uint32_t>(h.key >> 32);
  philox.c1 = segment.layer | h.stage << 24;
  philox.c2 = static_cast<uint32_t>(h.exchange);
  philox.c3 = static_cast<uint32_t>(h.exchange >> 32);
  return {philox, static_cast<uint32_t>((segment.index + start) / 128)};
}

Buckets buckets_of(const Segment& segment, const float* sides, uint64_t start, uint64_t n) {
  const uint64_t each = segment.quantizer == kMaxMin ? 2 : 1;
  if (segment.bucket == 0) return {sides, 0};
  const uint64_t first = start / segment.bucket;
  const bool one = (start + n - 1) / segment.bucket == first;
  return {sides + each * first, one ? 0 : segment.bucket};
}

uint8_t mode_byte(const Segment& s) {
  if (s.quantizer == kRawQuantizer) return 0;
  if (s.quantizer == kOneStream) return static_cast<uint8_t>(s.quantizer | s.reconstruction << 2);
  if (s.quantizer == kLevels) return static_cast<uint8_t>(s.quantizer | s.norm << 3);
  return s.quantizer;
}

uint8_t bucket_byte(const Segment& s) {
  if (s.quantizer != kLevels && s.quantizer != kMaxMin) return 0;
  uint8_t log = 0;
  for (uint32_t b = s.bucket; b > 1; b >>= 1) ++log;
  return log;
}

uint8_t levels_byte(const Segment& s, const LevelSet& levels) {
  if (s.quantizer != kLevels && s.quantizer != kMaxMin) return 0;
  return static_cast<uint8_t>(levels.sequence(s.levels).count);
}

}  // namespace qoda
