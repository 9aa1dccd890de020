// Floats to symbols, one coordinate at a time. Every operation is a single IEEE float32 operation in
// the order written, so that all instruction sets and the NumPy reference agree to the bit.
#include <algorithm>
#include <cmath>

#include "philox.hpp"
#include "portable.hpp"

namespace qoda {
namespace {

class Sink {
 public:
  Sink(CodeRange range, Symbols out)
      : low_(static_cast<float>(range.low)), high_(static_cast<float>(range.high)), out_(out) {}

  void put(size_t i, float k) {
    const bool inside = k >= low_ && k <= high_;  // false for NaN
    out_.codes[i] = inside ? static_cast<uint8_t>(static_cast<int>(k) + kCodeZero) : 0;
    if (!inside) out_.escapes[escapes_++] = k;
  }
  size_t escapes() const { return escapes_; }

 private:
  float low_, high_;
  Symbols out_;
  size_t escapes_ = 0;
};

// symbol(i, U) -> k for i in [0, n)
template <typename Symbol>
size_t quantize(size_t n, const Stream& stream, CodeRange range, Symbols out, Symbol symbol) {
  Sink sink(range, out);
  uint16_t bits[kGroup];
  for (size_t base = 0; base < n; base += kGroup) {
    philox_group(stream.philox, stream.group + static_cast<uint32_t>(base / kGroup), bits);
    const size_t end = std::min(n - base, kGroup);
    for (size_t i = 0; i < end; ++i) sink.put(base + i, symbol(base + i, unit_uniform(bits[i])));
  }
  return sink.escapes();
}

}  // namespace

size_t portable::quantize_step(const float* v, size_t n, float step, const Stream& stream,
                               CodeRange range, Symbols out, Mirror mirror) {
  const float inverse = 1.0f / step;
  return quantize(n, stream, range, out, [=](size_t i, float u) {
    const float k = std::floor(v[i] * inverse + u);
    if (mirror.values != nullptr)
      mirror.values[i] = (mirror.dithered ? k + (0.5f - u) : k) * step;
    return k;
  });
}

size_t portable::quantize_levels(const float* v, size_t n, Buckets norms, const LevelSequence& seq,
                                 const Stream& stream, CodeRange range, Symbols out) {
  return quantize(n, stream, range, out, [&](size_t i, float u) {
    const float norm = norms.values[norms.bucket == 0 ? 0 : i / norms.bucket];
    const float r = norm > 0.0f ? std::min(std::fabs(v[i]) / norm, 1.0f) : 0.0f;
    int j = 0;
    while (j + 2 < seq.count && r >= seq.level[j + 1]) ++j;
    const float up = (r - seq.level[j]) * seq.inverse_gap[j];
    const float k = static_cast<float>(u < up ? j + 1 : j);
    return v[i] < 0.0f ? 0.0f - k : k;
  });
}

size_t portable::quantize_maxmin(const float* v, size_t n, Buckets pairs, int top,
                                 const Stream& stream, CodeRange range, Symbols out) {
  const float highest = static_cast<float>(top);
  const float half = static_cast<float>((top + 1) / 2);
  return quantize(n, stream, range, out, [=](size_t i, float u) {
    const float* pair = pairs.values + (pairs.bucket == 0 ? 0 : 2 * (i / pairs.bucket));
    const float q = pair[1] > 0.0f ? std::floor((v[i] - pair[0]) / pair[1] + u) : 0.0f;
    return std::min(q, highest) - half;
  });
}

}  // namespace qoda
