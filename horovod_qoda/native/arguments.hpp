// What Python passes to the bindings, taken as it is: a wrong dtype or layout is an error, never a copy.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <vector>

#include "payload.hpp"

namespace qoda {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Levels = std::vector<std::vector<float>>;
// layout_hash, exchange, rank, stage, chunk, key, sum_sq, sum_sq_diff, aux, book_hash
using HeaderTuple = std::tuple<uint64_t, uint64_t, uint32_t, uint32_t, uint32_t, uint64_t, double,
                               double, double, uint64_t>;

inline Header to_header(const HeaderTuple& t) {
  Header h;
  std::tie(h.layout_hash, h.exchange, h.rank, h.stage, h.chunk, h.key, h.sum_sq, h.sum_sq_diff,
           h.aux, h.book_hash) = t;
  if (h.stage > 255) throw std::invalid_argument("stage must be below 256");
  return h;
}

inline HeaderTuple to_tuple(const Header& h) {
  return {h.layout_hash, h.exchange,    h.rank, h.stage, h.chunk,
          h.key,         h.sum_sq, h.sum_sq_diff, h.aux, h.book_hash};
}

struct Segments {
  const Segment* rows;
  size_t n;
};

inline Segments to_segments(const py::array& array) {
  if (array.ndim() != 1 || array.itemsize() != static_cast<py::ssize_t>(sizeof(Segment)) ||
      !(array.flags() & py::array::c_style))
    throw std::invalid_argument("segments must be a contiguous 1-D array of dtype SEGMENT");
  return {static_cast<const Segment*>(array.data()), static_cast<size_t>(array.size())};
}

inline std::optional<Book> to_book(const std::optional<Array<uint16_t>>& tables, uint64_t hash) {
  if (!tables) return std::nullopt;
  if (tables->ndim() != 2 || tables->shape(1) != 256)
    throw std::invalid_argument("code tables must have shape [n_types, 256]");
  Book book;
  book.hash = hash;
  book.tables.resize(static_cast<size_t>(tables->shape(0)));
  for (size_t type = 0; type < book.tables.size(); ++type) {
    const uint16_t* freq = tables->data() + 256 * type;
    bool present = false;
    for (size_t code = 0; code < 256; ++code) present |= freq[code] != 0;
    if (present && !make_table(freq, book.tables[type]))
      throw std::invalid_argument("code table of type " + std::to_string(type) +
                                  " is not a contiguous range that sums to 4096");
  }
  return book;
}

// Of shape [256], or [tables, 256] with one range.
inline std::vector<CodeTable> to_tables(const Array<uint16_t>& freq) {
  std::vector<CodeTable> tables(static_cast<size_t>(freq.size() / 256));
  for (size_t i = 0; i < tables.size(); ++i)
    if (!make_table(freq.data() + 256 * i, tables[i]) || tables[i].low != tables[0].low ||
        tables[i].high != tables[0].high)
      throw std::invalid_argument("code tables are 256 frequencies on one range that sum to 4096");
  if (freq.size() == 0 || freq.size() % 256 != 0)
    throw std::invalid_argument("a code table has 256 frequencies");
  return tables;
}

// What a coder on another device needs of this one (assembly.cpp).
void bind_assembly(py::module_& m);
// Symbols that another device made to blocks (code_symbols.cpp).
void bind_code_symbols(py::module_& m);
// Symbols without a coder (symbols.cpp).
void bind_symbols(py::module_& m);

}  // namespace qoda
