#include "choose_classes.hpp"

#include <cmath>

namespace qoda {
namespace {

double n_log_n(uint64_t n) {
  return n == 0 ? 0.0 : static_cast<double>(n) * std::log2(static_cast<double>(n));
}

// Neighbouring bins with one table.
struct Cluster {
  size_t end;  // bin behind the last
  Counts counts{};
  double bits = 0;  // of an ideal table of their own
};

double ideal_bits(const Counts& counts) {
  uint64_t total = 0;
  double bits = 0;
  for (uint64_t c : counts) {
    total += c;
    bits -= n_log_n(c);
  }
  return bits + n_log_n(total);
}

Cluster join(const Cluster& a, const Cluster& b) {
  Cluster both = {b.end, a.counts, 0};
  for (size_t code = 0; code < both.counts.size(); ++code) both.counts[code] += b.counts[code];
  both.bits = ideal_bits(both.counts);
  return both;
}

std::vector<Cluster> used_bins(const SizedCounts& counts) {
  std::vector<Cluster> clusters;
  for (size_t bin = 0; bin < kSizeBins; ++bin)
    if (counts.groups[bin] != 0)
      clusters.push_back({bin + 1, counts.codes[bin], ideal_bits(counts.codes[bin])});
  return clusters;
}

void merge(std::vector<Cluster>& clusters) {
  std::vector<Cluster> joined;  // each cluster with the next
  for (size_t i = 0; i + 1 < clusters.size(); ++i) joined.push_back(join(clusters[i], clusters[i + 1]));
  while (clusters.size() > kMostClasses) {
    size_t best = 0;
    const auto loss = [&](size_t i) {
      return joined[i].bits - clusters[i].bits - clusters[i + 1].bits;
    };
    for (size_t i = 1; i < joined.size(); ++i)
      if (loss(i) < loss(best)) best = i;
    clusters[best] = joined[best];
    clusters.erase(clusters.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    joined.erase(joined.begin() + static_cast<std::ptrdiff_t>(best));
    if (best > 0) joined[best - 1] = join(clusters[best - 1], clusters[best]);
    if (best < joined.size()) joined[best] = join(clusters[best], clusters[best + 1]);
  }
}

}  // namespace

ChosenClasses choose_classes(const SizedCounts& counts, const CodeTable& one, double scale,
                             double most_bits) {
  std::vector<Cluster> clusters = used_bins(counts);
  double bits = 0;
  for (uint64_t groups : counts.groups) bits += static_cast<double>(groups * kIdBits);
  const double id_bits = bits;
  for (const Cluster& cluster : clusters) bits += cluster.bits;
  if (clusters.size() < 2 || one.certain_code() != 0 || bits * scale >= most_bits) return {};
  merge(clusters);
  ChosenClasses chosen;
  chosen.bits = id_bits;
  size_t bin = 0;
  for (const Cluster& cluster : clusters) {
    for (; bin < cluster.end; ++bin)
      chosen.class_of_bin[bin] = static_cast<uint8_t>(chosen.tables.size());
    chosen.tables.push_back(normalize_like(one, cluster.counts));
    chosen.bits += coded_bits(chosen.tables.back(), cluster.counts);
  }
  for (; bin < kSizeBins; ++bin)
    chosen.class_of_bin[bin] = static_cast<uint8_t>(chosen.tables.size() - 1);
  const double all = chosen.bits * scale + table_bits(chosen.tables.data(), chosen.tables.size());
  return all < most_bits ? chosen : ChosenClasses{};
}

}  // namespace qoda
