// Python bindings.
#include "arguments.hpp"
#include "philox.hpp"
#include "stats.hpp"
#include "wire.hpp"

using namespace qoda;

namespace {

uint64_t py_encode(const Array<float>& values, const py::array& segments,
                   const HeaderTuple& header, Array<uint8_t>& out,
                   const std::optional<Array<uint16_t>>& tables, uint64_t book_hash,
                   const Levels& levels, std::optional<Array<int64_t>>& histogram,
                   unsigned threads, std::optional<Array<float>>& decoded) {
  const Segments rows = to_segments(segments);
  const std::optional<Book> book = to_book(tables, book_hash);
  const LevelSet level_set(levels);
  if (histogram && (histogram->ndim() != 2 || histogram->shape(1) != 256))
    throw std::invalid_argument("histogram must have shape [n_types, 256]");
  if (decoded && decoded->size() != values.size())
    throw std::invalid_argument("decoded and values differ in size");
  float* mirror = decoded ? decoded->mutable_data() : nullptr;
  const auto n = static_cast<size_t>(values.size());
  if (mirror != nullptr && mirror < values.data() + n && values.data() < mirror + n)
    throw std::invalid_argument("decoded must not overlap values");
  EncodeRequest request{};
  request.values = values.data();
  request.n_values = n;
  request.segments = rows.rows;
  request.n_segments = rows.n;
  request.header = to_header(header);
  request.book = book ? &*book : nullptr;
  request.levels = &level_set;
  request.histogram = histogram ? histogram->mutable_data() : nullptr;
  request.n_types = histogram ? static_cast<size_t>(histogram->shape(0)) : 0;
  request.threads = threads;
  request.decoded = mirror;
  uint8_t* to = out.mutable_data();
  const uint64_t capacity = static_cast<uint64_t>(out.size());
  const py::gil_scoped_release release;
  return encode(request, to, capacity);
}

std::vector<HeaderTuple> py_decode(const std::vector<Array<uint8_t>>& payloads,
                                   const py::array& segments, Array<float>& out,
                                   const std::vector<HeaderTuple>& expect,
                                   const std::optional<Array<uint16_t>>& tables,
                                   uint64_t book_hash, const Levels& levels, bool add, float scale,
                                   unsigned threads) {
  const Segments rows = to_segments(segments);
  const std::optional<Book> book = to_book(tables, book_hash);
  const LevelSet level_set(levels);
  if (payloads.size() != expect.size())
    throw std::invalid_argument("as many expected headers as payloads are needed");
  DecodeRequest request{rows.rows, rows.n, {},    book ? &*book : nullptr,
                        &level_set, add,    scale, threads};
  std::vector<Bytes> bytes;
  for (const Array<uint8_t>& payload : payloads)
    bytes.push_back({payload.data(), static_cast<uint64_t>(payload.size())});
  for (const HeaderTuple& header : expect) request.expect.push_back(to_header(header));
  float* to = out.mutable_data();
  const uint64_t n = static_cast<uint64_t>(out.size());
  std::vector<Header> headers;
  {
    const py::gil_scoped_release release;
    headers = decode(bytes, request, to, n);
  }
  std::vector<HeaderTuple> result;
  for (const Header& header : headers) result.push_back(to_tuple(header));
  return result;
}

Frame open(const Array<uint8_t>& payload) {
  const uint8_t* bytes = payload.data();
  const uint64_t n = static_cast<uint64_t>(payload.size());
  const py::gil_scoped_release release;
  return open_meta(bytes, n);
}

py::tuple py_steps(const Array<uint8_t>& payload) {
  const Frame frame = open(payload);
  Array<float> steps(frame.n_segments);
  Array<uint8_t> kinds(frame.n_segments);
  for (uint32_t row = 0; row < frame.n_segments; ++row) {
    steps.mutable_at(row) = load<float>(frame.record(row));
    kinds.mutable_at(row) = frame.record(row)[4];
  }
  return py::make_tuple(steps, kinds);
}

py::tuple py_copy_stats(const Array<float>& src, std::optional<Array<float>>& dst,
                        unsigned threads) {
  if (dst && dst->size() != src.size())
    throw std::invalid_argument("src and dst differ in size");
  const float* from = src.data();
  float* to = dst ? dst->mutable_data() : nullptr;
  const uint64_t n = static_cast<uint64_t>(src.size());
  Sum sum;
  {
    const py::gil_scoped_release release;
    sum = copy_stats(from, to, n, threads);
  }
  return py::make_tuple(sum.value, sum.finite);
}

double py_sum_sq_diff(const Array<float>& a, const Array<float>& b, unsigned threads) {
  if (a.size() != b.size()) throw std::invalid_argument("a and b differ in size");
  const float *first = a.data(), *second = b.data();
  const uint64_t n = static_cast<uint64_t>(a.size());
  const py::gil_scoped_release release;
  return sum_sq_diff(first, second, n, threads);
}

py::tuple py_change_stats(const Array<float>& now, const Array<float>& before, unsigned threads) {
  if (now.size() != before.size()) throw std::invalid_argument("now and before differ in size");
  const float *first = now.data(), *second = before.data();
  const uint64_t n = static_cast<uint64_t>(now.size());
  Change change;
  {
    const py::gil_scoped_release release;
    change = change_stats(first, second, n, threads);
  }
  return py::make_tuple(change.now.value, change.now.finite, change.difference);
}

Array<uint16_t> py_normalize(const Array<uint64_t>& counts, bool exact) {
  if (counts.size() != 256) throw std::invalid_argument("counts must have 256 entries");
  Counts values;
  std::copy(counts.data(), counts.data() + 256, values.begin());
  const CodeTable table = normalize(values, exact);
  Array<uint16_t> freq(256);
  std::copy(table.freq.begin(), table.freq.end(), freq.mutable_data());
  return freq;
}

Array<uint32_t> py_philox(const Array<uint32_t>& counter, const Array<uint32_t>& key) {
  if (counter.size() != 4 || key.size() != 2)
    throw std::invalid_argument("counter needs 4 words and key 2");
  Array<uint32_t> out(4);
  std::copy(counter.data(), counter.data() + 4, out.mutable_data());
  philox4x32_10(key.data(), out.mutable_data());
  return out;
}

}  // namespace

PYBIND11_MODULE(_codec, m) {
  m.doc() = "Quantise, entropy-code and decode gradients (docs/wire-format.md)";
  py::register_exception<PayloadError>(m, "PayloadError", PyExc_ValueError);
  m.attr("SEGMENT_BYTES") = sizeof(Segment);
  m.def("simd", [] { return std::string(kernels().name); });
  m.def("encode", &py_encode, py::arg("values").noconvert(), py::arg("segments"),
        py::arg("header"), py::arg("out").noconvert(), py::arg("tables").noconvert().none(true),
        py::arg("book_hash"), py::arg("levels"), py::arg("histogram").noconvert().none(true),
        py::arg("threads"), py::arg("decoded").noconvert().none(true));
  m.def("decode", &py_decode, py::arg("payloads").noconvert(), py::arg("segments"),
        py::arg("out").noconvert(), py::arg("expect"), py::arg("tables").noconvert().none(true),
        py::arg("book_hash"), py::arg("levels"), py::arg("add"), py::arg("scale"),
        py::arg("threads"));
  m.def("max_payload_bytes", [](const py::array& segments) {
    const Segments rows = to_segments(segments);
    return max_payload_bytes(rows.rows, rows.n);
  });
  m.def("peek", [](const Array<uint8_t>& payload) {
    const Frame frame = open(payload);
    return py::make_tuple(to_tuple(frame.header), frame.length);
  }, py::arg("payload").noconvert());
  m.def("seal", [](Array<uint8_t>& payload, double sum_sq, double sum_sq_diff, double aux) {
    seal(payload.mutable_data(), static_cast<uint64_t>(payload.size()), sum_sq, sum_sq_diff, aux);
  }, py::arg("payload").noconvert(), py::arg("sum_sq"), py::arg("sum_sq_diff"), py::arg("aux"));
  m.def("steps", &py_steps, py::arg("payload").noconvert());
  m.def("copy_stats", &py_copy_stats, py::arg("src").noconvert(),
        py::arg("dst").noconvert().none(true), py::arg("threads"));
  m.def("sum_sq_diff", &py_sum_sq_diff, py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("threads"));
  m.def("change_stats", &py_change_stats, py::arg("now").noconvert(),
        py::arg("before").noconvert(), py::arg("threads"));
  m.def("normalize", &py_normalize, py::arg("counts").noconvert(), py::arg("exact"));
  m.def("philox", &py_philox, py::arg("counter").noconvert(), py::arg("key").noconvert());
  bind_assembly(m);
  bind_code_symbols(m);
  bind_symbols(m);
}
