"""Compiles the kernels for a CUDA architecture, which needs no device, and prints facts as JSON.

Usage: python tests/compile_kernels.py [90] [quick]    (without TRITON_INTERPRET in the environment)

`quick` leaves out max-min, and the sample of all but one stream.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from horovod_qoda.kernels import checksum, classes, dequantize, pack, quantize, rans, sample, spans
from horovod_qoda.kernels.geometry import GROUPS, SAMPLE_GROUPS

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

POINTERS = {
    "*fp32": "values exact inverse sides levels inverse_gaps copy_to out steps payloads_f32",
    "*u8": "codes payloads body ids",
    "*i16": "words payloads16 body16",
    "*i32": "counters bad coding call level_counts counts program_type tables states freq slots "
    "class_of_bin order payloads32 error body32 kinds dithered calls last checksums starts floats "
    "expected blocks wrong",
    "*i64": "tile_piece tile_start pieces code_at block_type group_piece group_start places "
    "places_of_blocks span_at span_to span_n jobs sources raw_at piece_from piece_to piece_n "
    "word_at n_words",
    "*fp64": "results",
    "i32": "n_spans JOBS_EACH n_payloads n_pieces n_blocks n_segments n_sides",
    "fp32": "scale",
}
TYPES = {name: kind for kind, names in POINTERS.items() for name in names.split()}


def variants(quick):
    """(kernel, compile-time arguments, warps) of what the coder launches."""
    for q in (1, 2) if quick else (1, 2, 3):
        yield quantize.quantize_tiles, {"QUANTIZER": q, "GROUPS": GROUPS}, 4
        if q == 1 or not quick:
            yield sample.count_sample, {"QUANTIZER": q, "GROUPS": SAMPLE_GROUPS}, 4
        yield spans.reduce_spans, {"MODE": q - 1, "COPY": q == 2, "SPANS": 2, "UNROLL": 8}, 1
    for q in (1, 2) if quick else (0, 1, 2, 3):
        yield dequantize.sum_tiles, {"QUANTIZER": q, "ADD": q == 1, "GROUPS": GROUPS}, 4
    yield sample.count_all, {"TILE": 1024}, 4
    for several in (False, True):
        yield rans.encode_streams, {"CLASSES": several}, 1
        yield rans.decode_streams, {"CLASSES": several}, 1
    yield classes.find_ids, {"EACH": classes.IDS_EACH}, 4
    yield classes.order_groups, {}, 4
    yield classes.order_sent_groups, {}, 4
    yield rans.fill_slots, {"WIDTH": 1024}, 4
    yield pack.pack_blocks, {"TILE": 1024}, 4
    yield checksum.checksum_blocks, {"LANES": checksum.LANES}, 8
    yield checksum.check_blocks, {"LANES": checksum.LANES}, 8
    yield pack.copy_pieces, {"TILE": 4096}, 4
    yield dequantize.spread_escapes, {"TILE": 1024}, 4


def compiled(kernel, constants, warps, arch):
    types = dict(TYPES)
    if kernel is pack.copy_pieces:
        types["body"] = "*fp32"
    if kernel in (checksum.checksum_blocks, checksum.check_blocks):
        types["steps"] = "*i32"
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"
    }
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    return triton.compile(
        ASTSource(kernel, signature, constexprs=constexprs, attrs=aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "enable_fp_fusion": False},
    )


def facts(kernel, constants, warps, arch):
    code = compiled(kernel, constants, warps, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        usage = tool("cuobjdump", "-res-usage", file.name)
        sass = tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    return {
        "kernel": kernel.__name__,
        "constants": constants,
        "registers": int(found[1]) if found else None,
        "stack_bytes": int(found[2]) if found else None,
        "instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/ ", sass)) or None,
        "fused_multiply_adds_ptx": len(re.findall(r"fma\.rn\.f32", code.asm["ptx"])),
        "fused_multiply_adds_sass": sass.count("FFMA") if sass else None,
        "shared_bytes": code.metadata.shared,
    }


def tool(name, *arguments):
    """Output of a CUDA tool that Triton brings along; empty where it does not."""
    path = TOOLS / name
    if not os.access(path, os.X_OK):
        return ""
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    arch = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    quick = sys.argv[2:] == ["quick"]
    print(json.dumps([facts(*variant, arch) for variant in variants(quick)], indent=1))
