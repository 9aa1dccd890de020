// Coding blocks of symbols that another device has made: k + 128 for each |k| <= 127, 0 for the others,
// whose k follow as floats.
#include "arguments.hpp"
#include "choose_classes.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

// What a type's blocks are coded by.
struct Coding {
  BlockTable table;
  ClassOfBin class_of_bin{};
  std::vector<EncodeTable> lookups;
};

// [classes, 256] frequencies and the class of each size of groups; no frequencies where the type has
// no symbols.
using TableArrays = std::tuple<Array<uint16_t>, Array<uint8_t>>;

Coding to_coding(const TableArrays& arrays) {
  const auto& [freq, class_of_bin] = arrays;
  Coding coding;
  if (freq.size() == 0) return coding;
  const std::vector<CodeTable> tables = to_tables(freq);
  if (tables.size() > kMostClasses || class_of_bin.size() != py::ssize_t{kSizeBins})
    throw std::invalid_argument("a type has up to 4 classes, and one of them for every size");
  std::copy_n(class_of_bin.data(), kSizeBins, coding.class_of_bin.begin());
  for (const CodeTable& table : tables)
    if ((table.freq[0] == 0) != (tables[0].freq[0] == 0))
      throw std::invalid_argument("some classes of a type have an escape and others do not");
  for (const uint8_t of_class : coding.class_of_bin)
    if (of_class >= tables.size()) throw std::invalid_argument("a size has a class without table");
  coding.table.table = tables[0];
  coding.table.more.assign(tables.begin() + 1, tables.end());
  coding.lookups.resize(tables.size());
  for (size_t c = 0; c < tables.size(); ++c) fill(tables[c], coding.lookups[c]);
  return coding;
}

// Which symbols a block has, and the type they are of.
struct SymbolRun {
  int64_t at, n, slot;
};

// The next floats of symbols beyond a byte.
struct Large {
  const float* next;
  const float* end;

  float take() {
    if (next == end) throw std::invalid_argument("fewer floats than symbols that need one");
    return *next++;
  }
};

// Leaves n symbols in `work` as a quantiser would. Returns the number of escapes.
size_t take_symbols(const uint8_t* codes, size_t n, const CodeTable& table, Large& large,
                    Workspace& work) {
  const uint8_t low = static_cast<uint8_t>(table.low), high = static_cast<uint8_t>(table.high);
  uint8_t* to = work.codes.data();
  for (size_t i = 0; i < n; ++i) to[i] = codes[i] >= low && codes[i] <= high ? codes[i] : 0;
  size_t escapes = 0;
  for (size_t i = 0; i < n; ++i) {
    if (to[i] != 0) continue;
    work.escapes[escapes++] =
        codes[i] != 0 ? static_cast<float>(int{codes[i]} - kCodeZero) : large.take();
  }
  if (escapes != 0 && table.freq[0] == 0)
    throw std::invalid_argument("a symbol outside a table that has no escape");
  return escapes;
}

void check(const SymbolRun* runs, size_t n_runs, const std::vector<Coding>& codings,
           uint64_t n_codes, uint64_t capacity) {
  uint64_t most = 0;
  for (size_t b = 0; b < n_runs; ++b) {
    const auto [at, n, slot] = runs[b];
    if (at < 0 || n < 0 || n > static_cast<int64_t>(kBlockSymbols) ||
        static_cast<uint64_t>(at) + static_cast<uint64_t>(n) > n_codes)
      throw std::invalid_argument("a block's symbols lie outside codes");
    if (slot < 0 || static_cast<size_t>(slot) >= codings.size() ||
        (n > 0 && codings[static_cast<size_t>(slot)].lookups.empty()))
      throw std::invalid_argument("a block with symbols has no table");
    most += 4 * static_cast<uint64_t>(n);
  }
  if (capacity < most)
    throw std::invalid_argument("out has " + std::to_string(capacity) + " bytes but up to " +
                                std::to_string(most) + " may be needed");
}

// Returns (bytes written, rows of the block table).
py::tuple py_code_symbols(const Array<uint8_t>& codes, const Array<float>& floats,
                          const Array<int64_t>& runs, const std::vector<TableArrays>& tables,
                          Array<uint8_t>& out) {
  if (runs.ndim() != 2 || runs.shape(1) != 3)
    throw std::invalid_argument("runs must have shape [blocks, 3]");
  std::vector<Coding> codings;
  for (const TableArrays& arrays : tables) codings.push_back(to_coding(arrays));
  const size_t n_blocks = static_cast<size_t>(runs.shape(0));
  const auto* rows_of = reinterpret_cast<const SymbolRun*>(runs.data());
  check(rows_of, n_blocks, codings, static_cast<uint64_t>(codes.size()),
        static_cast<uint64_t>(out.size()));
  Array<uint32_t> rows({runs.shape(0), py::ssize_t{3}});
  auto* row_bytes = reinterpret_cast<uint8_t*>(rows.mutable_data());
  uint8_t* to = out.mutable_data();
  Large large{floats.data(), floats.data() + floats.size()};
  size_t written = 0;
  {
    const py::gil_scoped_release release;
    size_t most = 0;
    for (size_t b = 0; b < n_blocks; ++b) most = std::max(most, static_cast<size_t>(rows_of[b].n));
    Workspace work[2] = {Workspace(most), Workspace(most)};
    for (size_t b = 0; b < n_blocks; b += 2) {
      std::vector<BlockWriter> writers;
      for (size_t i = 0; i < 2 && b + i < n_blocks; ++i) {
        const SymbolRun& run = rows_of[b + i];
        const Coding& coding = codings[static_cast<size_t>(run.slot)];
        const size_t n = static_cast<size_t>(run.n);
        const size_t escapes =
            take_symbols(codes.data() + run.at, n, coding.table.table, large, work[i]);
        writers.emplace_back(coding.table, coding.class_of_bin, coding.lookups.data(), n, escapes,
                             Ahead{nullptr, 0}, work[i]);
      }
      written += write_blocks(writers.data(), work, writers.size(), to + written,
                              row_bytes + b * kBlockEntryBytes);
    }
  }
  if (large.next != large.end)
    throw std::invalid_argument("more floats than symbols that need one");
  return py::make_tuple(written, rows);
}

}  // namespace

void bind_code_symbols(py::module_& m) {
  m.def("code_symbols", &py_code_symbols, py::arg("codes").noconvert(),
        py::arg("floats").noconvert(), py::arg("runs").noconvert(), py::arg("tables"),
        py::arg("out").noconvert());
}

}  // namespace qoda
