#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace qoda {
namespace {

// Behind an escape's code: a byte for |k| <= 127, and a float32 too for others.
constexpr uint64_t kEscapeBits = 8;
constexpr uint64_t kLargeEscapeBits = 40;
// A slot of frequency 1 takes 1/4096 of the others' probability: log2(e) / 4096 bits a symbol.
constexpr uint64_t kSlotsPerBit = 2839;  // 4096 / log2(e)

struct Range {
  int low, high;
};

// Where to stop giving codes a slot of their own: minimises escaped values * 8 bits + slots. The two
// ends are independent. Counts are < 2^40, so nothing overflows.
Range choose_range(const Counts& counts, uint64_t total) {
  int first = 1, last = 255;
  while (first < 255 && counts[first] == 0) ++first;
  while (last > first && counts[last] == 0) --last;
  int peak = first;
  for (int code = first; code <= last; ++code)
    if (counts[code] > counts[peak]) peak = code;
  const auto best_end = [&](int from, int direction) {
    uint64_t escaped = 0, best_cost = std::numeric_limits<uint64_t>::max();
    int best = from;
    for (int end = from; end != peak + direction; end += direction) {
      const uint64_t slots = static_cast<uint64_t>(std::abs(peak - end));
      const uint64_t cost = escaped * kEscapeBits * kSlotsPerBit + slots * total;
      if (cost < best_cost) {
        best_cost = cost;
        best = end;
      }
      escaped += counts[end];
    }
    return best;
  };
  return {best_end(first, 1), best_end(last, -1)};
}

// Moves the sum to 4096, each time where it costs least: adding one to f saves about c / (f + 1/2)
// and taking one costs about c / (f - 1/2). Ties go to the lowest code.
void balance(std::vector<int>& freq, const std::vector<uint64_t>& count) {
  int64_t sum = 0;
  for (int f : freq) sum += f;
  const auto gain = [&](size_t i, int sign) {
    return static_cast<double>(count[i]) / static_cast<double>(2 * freq[i] + sign);
  };
  for (; sum < static_cast<int64_t>(kScale); ++sum) {
    size_t best = 0;
    for (size_t i = 1; i < freq.size(); ++i)
      if (gain(i, 1) > gain(best, 1)) best = i;
    ++freq[best];
  }
  for (; sum > static_cast<int64_t>(kScale); --sum) {
    size_t best = freq.size();
    for (size_t i = 0; i < freq.size(); ++i)
      if (freq[i] > 1 && (best == freq.size() || gain(i, -1) < gain(best, -1))) best = i;
    --freq[best];
  }
}

}  // namespace

CodeTable normalize(const Counts& counts, bool exact) {
  CodeTable table;
  uint64_t total = 0;
  for (uint64_t c : counts) total += c;
  if (total == counts[0]) {  // nothing but escapes, or nothing at all: any code can serve as filler
    table.low = table.high = kCodeZero;
    table.freq[0] = kScale - 1;
    table.freq[kCodeZero] = 1;
    return table;
  }
  const Range range = choose_range(counts, total);
  table.low = range.low;
  table.high = range.high;
  uint64_t inside = 0;
  for (int code = range.low; code <= range.high; ++code) inside += counts[code];
  table.freq[0] = !exact || inside != total;
  return normalize_like(table, counts);
}

CodeTable normalize_like(const CodeTable& like, const Counts& counts) {
  std::vector<int> codes;
  std::vector<uint64_t> count;
  uint64_t total = 0, inside = 0;
  for (uint64_t c : counts) total += c;
  for (int code = like.low; code <= like.high; ++code) inside += counts[code];
  const auto add = [&](int code, uint64_t c) {
    codes.push_back(code);
    count.push_back(c);
  };
  if (like.freq[0] != 0) add(0, total - inside);
  for (int code = like.low; code <= like.high; ++code) add(code, counts[code]);
  // Codes that would round to nothing get 1, and the others share what is left.
  uint64_t rare = 0, shared = total;
  for (uint64_t c : count)
    if (2 * c * kScale < total) {
      ++rare;
      shared -= c;
    }
  std::vector<int> freq;
  for (uint64_t c : count) {
    const uint64_t nearest =
        2 * c * kScale < total ? 1 : (2 * c * (kScale - rare) + shared) / (2 * shared);
    freq.push_back(static_cast<int>(std::max<uint64_t>(1, nearest)));
  }
  balance(freq, count);
  CodeTable table;
  table.low = like.low;
  table.high = like.high;
  for (size_t i = 0; i < codes.size(); ++i) table.freq[codes[i]] = static_cast<uint16_t>(freq[i]);
  return table;
}

bool make_table(const uint16_t freq[256], CodeTable& table) {
  int low = 1, high = 255;
  while (low < 255 && freq[low] == 0) ++low;
  while (high > low && freq[high] == 0) --high;
  uint32_t sum = freq[0];
  for (int code = low; code <= high; ++code) {
    if (freq[code] == 0) return false;
    sum += freq[code];
  }
  if (sum != kScale) return false;
  std::copy(freq, freq + 256, table.freq.begin());
  table.low = low;
  table.high = high;
  return true;
}

double coded_bits(const CodeTable& table, const Counts& counts) {
  double bits = static_cast<double>(counts[0] * (kLargeEscapeBits - kEscapeBits));
  uint64_t escaped = counts[0];
  for (int code = 1; code < 256; ++code) {
    if (counts[code] == 0) continue;
    if (code < table.low || code > table.high)
      escaped += counts[code];
    else
      bits += static_cast<double>(counts[code]) * (kScaleBits - std::log2(table.freq[code]));
  }
  if (escaped == 0) return bits;
  if (table.freq[0] == 0) return std::numeric_limits<double>::infinity();
  const double each = kEscapeBits + kScaleBits - std::log2(table.freq[0]);
  return bits + static_cast<double>(escaped) * each;
}

std::vector<uint8_t> serialize(const CodeTable* tables, size_t count) {
  const int low = tables->low, high = tables->high;
  std::vector<uint8_t> bytes = {static_cast<uint8_t>(low), static_cast<uint8_t>(high)};
  const auto put = [&](uint16_t freq) {
    if (freq >= 128) bytes.push_back(static_cast<uint8_t>(0x80 | freq >> 8));
    bytes.push_back(static_cast<uint8_t>(freq));
  };
  for (const CodeTable* table = tables; table != tables + count; ++table) {
    put(table->freq[0]);
    for (int code = low; code <= high; ++code) put(table->freq[code]);
  }
  return bytes;
}

double table_bits(const CodeTable* tables, size_t count) {
  return 8.0 * static_cast<double>(serialize(tables, count).size());
}

size_t parse(const uint8_t* bytes, size_t n, CodeTable* tables, size_t count) {
  if (n < 2 || bytes[0] == 0 || bytes[1] < bytes[0]) return 0;
  size_t at = 2;
  const auto take = [&](uint16_t& value) {
    if (at >= n) return false;
    value = bytes[at++];
    if (value < 128) return true;
    if (at >= n) return false;
    value = static_cast<uint16_t>((value & 0x7F) << 8 | bytes[at++]);
    return value >= 128;  // one spelling only
  };
  for (CodeTable* table = tables; table != tables + count; ++table) {
    std::array<uint16_t, 256> freq{};
    if (!take(freq[0])) return 0;
    for (int code = bytes[0]; code <= bytes[1]; ++code)
      if (!take(freq[code])) return 0;
    if (!make_table(freq.data(), *table) || table->low != bytes[0] || table->high != bytes[1])
      return 0;
  }
  return at;
}

void fill(const CodeTable& table, EncodeTable& out) {
  uint32_t start = 0;
  for (int code = 0; code < 256; ++code) {
    const uint32_t freq = table.freq[code];
    out.freq[code] = static_cast<uint16_t>(freq);
    out.start[code] = static_cast<uint16_t>(start);
    float reciprocal = freq == 0 ? 0.0f : 1.0f / static_cast<float>(freq);
    if (static_cast<double>(reciprocal) * freq > 1.0) reciprocal = std::nextafter(reciprocal, 0.0f);
    out.entry[code] = {start << 16 | freq, reciprocal};
    out.integer_entry[code] = {start << 16 | freq, freq == 0 ? 0 : 0xFFFFFFFFu / freq};
    start += freq;
  }
  out.low = static_cast<uint8_t>(table.low);
  out.high = static_cast<uint8_t>(table.high);
}

void fill(const CodeTable& table, DecodeTable& out) {
  uint32_t slot = 0;
  for (uint32_t code = 0; code < 256; ++code)
    for (uint32_t i = 0; i < table.freq[code]; ++i, ++slot)
      out.slot[slot] = i << 20 | static_cast<uint32_t>(table.freq[code] & 0xFFF) << 8 | code;
}

}  // namespace qoda
