// Symbols without a coder: what another coder would be given, and what a decoder would do with its
// output. Benchmarks compare coders with it; tests look at symbols.
#include <algorithm>

#include "arguments.hpp"
#include "float_environment.hpp"
#include "quantize.hpp"

namespace qoda {
namespace {

const Segment& one_stream(const Segment& s, uint64_t n_values) {
  if (s.quantizer != kOneStream || s.numel > n_values || s.offset > n_values - s.numel)
    throw std::invalid_argument("symbols are made of one-stream segments inside the array");
  return s;
}

void py_symbols(const Array<float>& values, const py::array& segments, const HeaderTuple& header,
                Array<uint8_t>& codes) {
  const Segments rows = to_segments(segments);
  if (codes.size() != values.size()) throw std::invalid_argument("codes and values differ in size");
  QuantizeContext context{values.data(), rows.rows, nullptr, nullptr, to_header(header)};
  const uint64_t n = static_cast<uint64_t>(values.size());
  uint8_t* to = codes.mutable_data();
  const py::gil_scoped_release release;
  const FloatEnvironment environment;
  Workspace work(kBlockSymbols);
  for (size_t row = 0; row < rows.n; ++row) {
    const Segment& s = one_stream(rows.rows[row], n);
    for (uint64_t at = 0; at < s.numel; at += kBlockSymbols) {
      const size_t count = std::min(s.numel - at, kBlockSymbols);
      quantize(context, static_cast<uint32_t>(row), at, count, {-kMaxCode, kMaxCode},
               {work.codes.data(), work.escapes.data()});
      std::copy_n(work.codes.data(), count, to + s.offset + at);
    }
  }
}

void py_from_symbols(const Array<uint8_t>& codes, const py::array& segments,
                     const HeaderTuple& header, Array<float>& out, bool add) {
  const Segments rows = to_segments(segments);
  if (codes.size() != out.size()) throw std::invalid_argument("codes and out differ in size");
  const Header h = to_header(header);
  const uint8_t* from = codes.data();
  const uint64_t n = static_cast<uint64_t>(out.size());
  float* to = out.mutable_data();
  const py::gil_scoped_release release;
  const FloatEnvironment environment;
  Workspace work(kBlockSymbols);
  // Escapes are gone with the values they stood for; they count as 0.
  std::fill(work.escapes.begin(), work.escapes.end(), 0.0f);
  for (size_t row = 0; row < rows.n; ++row) {
    const Segment& s = one_stream(rows.rows[row], n);
    for (uint64_t at = 0; at < s.numel; at += kBlockSymbols) {
      const size_t count = std::min(s.numel - at, kBlockSymbols);
      std::copy_n(from + s.offset + at, count, work.codes.data());
      const Output output = {to + s.offset + at, 1.0f, add};
      if (s.reconstruction == kRounded)
        kernels().dequantize_rounded(work.codes.data(), count, s.step, work.escapes.data(), output);
      else
        kernels().dequantize_dithered(work.codes.data(), count, s.step, stream_of(h, s, at),
                                      work.escapes.data(), output);
    }
  }
}

}  // namespace

void bind_symbols(py::module_& m) {
  m.def("symbols", &py_symbols, py::arg("values").noconvert(), py::arg("segments"),
        py::arg("header"), py::arg("codes").noconvert());
  m.def("from_symbols", &py_from_symbols, py::arg("codes").noconvert(), py::arg("segments"),
        py::arg("header"), py::arg("out").noconvert(), py::arg("add"));
}

}  // namespace qoda
