// What a coder on another device shares with this one: where blocks lie in a chunk, meta parts that
// have been checked, and the few functions whose results must be the same to the bit.
#include <algorithm>

#include "arguments.hpp"
#include "unpack.hpp"
#include "wire.hpp"

namespace qoda {
namespace {

template <typename T>
Array<T> array_of(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict py_plan(const py::array& segments, uint64_t n_values, const Levels& levels) {
  const Segments rows = to_segments(segments);
  const Plan plan = make_plan(rows.rows, rows.n, n_values, LevelSet(levels).counts());
  std::vector<uint16_t> types;
  std::vector<uint32_t> block_type, piece_block, piece_segment, piece_numel;
  std::vector<uint64_t> piece_start;
  for (const TypeRun& run : plan.types) types.push_back(run.type);
  for (size_t b = 0; b < plan.blocks.size(); ++b) {
    const Block& block = plan.blocks[b];
    block_type.push_back(block.slot);
    piece_block.insert(piece_block.end(), block.end_piece - block.first_piece,
                       static_cast<uint32_t>(b));
  }
  for (const Piece& piece : plan.pieces) {
    piece_segment.push_back(piece.segment);
    piece_start.push_back(piece.start);
    piece_numel.push_back(piece.numel);
  }
  py::dict out;
  out["types"] = array_of(types);
  out["block_type"] = array_of(block_type);
  out["piece_block"] = array_of(piece_block);
  out["piece_segment"] = array_of(piece_segment);
  out["piece_start"] = array_of(piece_start);
  out["piece_numel"] = array_of(piece_numel);
  out["side_at"] = array_of(plan.side_offset);
  return out;
}

// Positions count from the payload's first byte; -1 where a segment has no raw values.
py::dict to_dict(const Unpacked& unpacked, const uint8_t* payload) {
  std::vector<uint8_t> table_kind, shift;
  std::vector<int64_t> block_at, raw_at;
  std::vector<uint32_t> length, info;
  Array<uint16_t> freq({static_cast<py::ssize_t>(unpacked.tables.size()), py::ssize_t{256}});
  uint16_t* to = freq.mutable_data();
  for (const UnpackedTable& table : unpacked.tables) {
    table_kind.push_back(table.coding.table.present());
    shift.push_back(table.coding.shift);
    to = std::copy(table.coding.table.freq.begin(), table.coding.table.freq.end(), to);
  }
  for (size_t b = 0; b < unpacked.blocks.size(); ++b) {
    block_at.push_back(unpacked.blocks[b] - payload);
    length.push_back(load<uint32_t>(unpacked.entries[b]));
    info.push_back(load<uint32_t>(unpacked.entries[b] + 4));
  }
  for (const uint8_t* raw : unpacked.raw) raw_at.push_back(raw == nullptr ? -1 : raw - payload);
  py::dict out;
  out["header"] = to_tuple(unpacked.header);
  out["kinds"] = array_of(unpacked.kinds);
  out["steps"] = array_of(unpacked.steps);
  out["sides"] = array_of(unpacked.sides);
  out["present"] = array_of(table_kind);
  out["shift"] = array_of(shift);
  out["freq"] = freq;
  out["block_at"] = array_of(block_at);
  out["length"] = array_of(length);
  out["info"] = array_of(info);
  out["raw_at"] = array_of(raw_at);
  return out;
}

py::dict py_unpack(const Array<uint8_t>& payload, const py::array& segments, uint64_t n_values,
                   const HeaderTuple& expect, const std::optional<Array<uint16_t>>& tables,
                   uint64_t book_hash, const Levels& levels) {
  const Segments rows = to_segments(segments);
  const std::optional<Book> book = to_book(tables, book_hash);
  const LevelSet level_set(levels);
  const DecodeRequest request{rows.rows, rows.n, {}, book ? &*book : nullptr,
                              &level_set, false, 1.0f, 1};
  const Bytes bytes = {payload.data(), static_cast<uint64_t>(payload.size())};
  const Header wanted = to_header(expect);
  Unpacked unpacked;
  {
    const py::gil_scoped_release release;
    const Plan plan = make_plan(rows.rows, rows.n, n_values, level_set.counts());
    unpacked = unpack(bytes, wanted, request, plan);
  }
  return to_dict(unpacked, bytes.data);
}

uint32_t py_crc32c(const Array<uint8_t>& data, uint32_t crc) {
  return kernels().crc32c(crc, data.data(), static_cast<size_t>(data.size()));
}

CodeTable to_table(const Array<uint16_t>& freq) {
  CodeTable table;
  if (freq.size() != 256 || !make_table(freq.data(), table))
    throw std::invalid_argument("a code table is 256 frequencies on one range that sum to 4096");
  return table;
}

py::bytes py_serialize(const Array<uint16_t>& freq) {
  const CodeTable table = to_table(freq);
  const std::vector<uint8_t> bytes = serialize(&table, 1);
  return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

double py_coded_bits(const Array<uint16_t>& freq, const Array<uint64_t>& counts) {
  if (counts.size() != 256) throw std::invalid_argument("counts must have 256 entries");
  Counts values;
  std::copy(counts.data(), counts.data() + 256, values.begin());
  return coded_bits(to_table(freq), values);
}

}  // namespace

void bind_assembly(py::module_& m) {
  m.def("plan", &py_plan, py::arg("segments"), py::arg("n_values"), py::arg("levels"));
  m.def("unpack", &py_unpack, py::arg("payload").noconvert(), py::arg("segments"),
        py::arg("n_values"), py::arg("expect"), py::arg("tables").noconvert().none(true),
        py::arg("book_hash"), py::arg("levels"));
  m.def("crc32c", &py_crc32c, py::arg("data").noconvert(), py::arg("crc") = 0);
  m.def("serialize", &py_serialize, py::arg("freq").noconvert());
  m.def("coded_bits", &py_coded_bits, py::arg("freq").noconvert(), py::arg("counts").noconvert());
}

}  // namespace qoda
