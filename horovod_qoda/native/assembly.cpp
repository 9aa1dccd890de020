// What a coder on another device shares with this one: where blocks lie in a chunk, meta parts that
// have been checked, and the few functions whose results must be the same to the bit.
#include <algorithm>

#include "arguments.hpp"
#include "choose_classes.hpp"
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

// uint16 [tables, 256].
Array<uint16_t> frequencies(const std::vector<CodeTable>& tables) {
  Array<uint16_t> freq({static_cast<py::ssize_t>(tables.size()), py::ssize_t{256}});
  uint16_t* to = freq.mutable_data();
  for (const CodeTable& table : tables) to = std::copy(table.freq.begin(), table.freq.end(), to);
  return freq;
}

// Positions count from the payload's first byte; -1 where a segment has no raw values. All blocks, the
// raw ones too, lie one behind the other from meta_bytes on: "checked" bytes of each make "checksum".
py::dict to_dict(const Unpacked& unpacked, const Frame& frame) {
  std::vector<uint8_t> classes, shift;
  std::vector<int64_t> block_at, raw_at;
  std::vector<uint32_t> length, info, checked, checksum;
  std::vector<CodeTable> tables;
  for (const UnpackedTable& table : unpacked.tables) {
    classes.push_back(static_cast<uint8_t>(table.coding.classes()));
    shift.push_back(table.coding.shift);
    for (const CodeTable& of_class : table.coding.tables()) tables.push_back(of_class);
  }
  for (size_t b = 0; b < unpacked.block_at.size(); ++b) {
    block_at.push_back(static_cast<int64_t>(unpacked.block_at[b]));
    length.push_back(load<uint32_t>(unpacked.entries[b]));
    info.push_back(load<uint32_t>(unpacked.entries[b] + 4));
  }
  for (const uint64_t raw : unpacked.raw_at) raw_at.push_back(raw == 0 ? -1 : int64_t(raw));
  for (uint32_t b = 0; b < frame.n_blocks; ++b) {
    const uint8_t* entry = frame.block_entry(b);
    checked.push_back(static_cast<uint32_t>(padded4(load<uint32_t>(entry))));
    checksum.push_back(load<uint32_t>(entry + 8));
  }
  py::dict out;
  out["header"] = to_tuple(unpacked.header);
  out["kinds"] = array_of(unpacked.kinds);
  out["steps"] = array_of(unpacked.steps);
  out["sides"] = array_of(unpacked.sides);
  out["classes"] = array_of(classes);
  out["shift"] = array_of(shift);
  out["freq"] = frequencies(tables);
  out["block_at"] = array_of(block_at);
  out["length"] = array_of(length);
  out["info"] = array_of(info);
  out["raw_at"] = array_of(raw_at);
  out["meta_bytes"] = frame.meta_bytes;
  out["payload_bytes"] = frame.length;
  out["checked"] = array_of(checked);
  out["checksum"] = array_of(checksum);
  return out;
}

py::dict py_unpack(const Array<uint8_t>& front, const py::array& segments, uint64_t n_values,
                   const HeaderTuple& expect, const std::optional<Array<uint16_t>>& tables,
                   uint64_t book_hash, const Levels& levels) {
  const Segments rows = to_segments(segments);
  const std::optional<Book> book = to_book(tables, book_hash);
  const LevelSet level_set(levels);
  const DecodeRequest request{rows.rows, rows.n, {}, book ? &*book : nullptr,
                              &level_set, false, 1.0f, 1};
  const uint8_t* bytes = front.data();
  const uint64_t n = static_cast<uint64_t>(front.size());
  const Header wanted = to_header(expect);
  Frame frame;
  Unpacked unpacked;
  {
    const py::gil_scoped_release release;
    const Plan plan = make_plan(rows.rows, rows.n, n_values, level_set.counts());
    frame = open_meta(bytes, n);
    unpacked = unpack(frame, wanted, request, plan);
  }
  return to_dict(unpacked, frame);
}

uint32_t py_crc32c(const Array<uint8_t>& data, uint32_t crc) {
  return kernels().crc32c(crc, data.data(), static_cast<size_t>(data.size()));
}

py::bytes py_serialize(const Array<uint16_t>& freq) {
  const std::vector<CodeTable> tables = to_tables(freq);
  const std::vector<uint8_t> bytes = serialize(tables.data(), tables.size());
  return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

double py_coded_bits(const Array<uint16_t>& freq, const Array<uint64_t>& counts) {
  if (counts.size() != 256) throw std::invalid_argument("counts must have 256 entries");
  Counts values;
  std::copy(counts.data(), counts.data() + 256, values.begin());
  return coded_bits(to_tables(freq)[0], values);
}

// (frequencies of the classes, none if they do not pay; class of each size; bits of the sample)
py::tuple py_choose_classes(const Array<uint64_t>& codes, const Array<uint64_t>& groups,
                            const Array<uint16_t>& freq, double scale, double most_bits) {
  if (codes.size() != py::ssize_t{256} * kSizeBins || groups.size() != py::ssize_t{kSizeBins})
    throw std::invalid_argument("counts must have a row of 256 for every size of groups");
  SizedCounts counts;
  for (size_t bin = 0; bin < kSizeBins; ++bin) {
    std::copy_n(codes.data() + 256 * bin, 256, counts.codes[bin].begin());
    counts.groups[bin] = groups.data()[bin];
  }
  const ChosenClasses chosen = choose_classes(counts, to_tables(freq)[0], scale, most_bits);
  const std::vector<uint8_t> of_bin(chosen.class_of_bin.begin(), chosen.class_of_bin.end());
  return py::make_tuple(frequencies(chosen.tables), array_of(of_bin), chosen.bits);
}

}  // namespace

void bind_assembly(py::module_& m) {
  m.def("plan", &py_plan, py::arg("segments"), py::arg("n_values"), py::arg("levels"));
  m.def("unpack", &py_unpack, py::arg("front").noconvert(), py::arg("segments"),
        py::arg("n_values"), py::arg("expect"), py::arg("tables").noconvert().none(true),
        py::arg("book_hash"), py::arg("levels"));
  m.def("crc32c", &py_crc32c, py::arg("data").noconvert(), py::arg("crc") = 0);
  m.def("serialize", &py_serialize, py::arg("freq").noconvert());
  m.def("coded_bits", &py_coded_bits, py::arg("freq").noconvert(), py::arg("counts").noconvert());
  m.def("choose_classes", &py_choose_classes, py::arg("codes").noconvert(),
        py::arg("groups").noconvert(), py::arg("freq").noconvert(), py::arg("scale"),
        py::arg("most_bits"));
}

}  // namespace qoda
