"""NumPy reference of the payload (docs/wire-format.md): slow, obvious, no code shared with native.

Symbols and bytes must equal the native codec's.
"""

from tests.reference.payload import choose_table, crc32c, decode, encode, jitter, plan_blocks
from tests.reference.quantizers import dequantize, philox4x32_10, quantize, side_values, uniforms
from tests.reference.rans import (
    coded_bits,
    count_codes,
    decode_block,
    encode_block,
    normalize,
    rans_decode,
    rans_encode,
)

__all__ = [
    "choose_table",
    "coded_bits",
    "count_codes",
    "crc32c",
    "decode",
    "decode_block",
    "dequantize",
    "encode",
    "encode_block",
    "jitter",
    "normalize",
    "philox4x32_10",
    "plan_blocks",
    "quantize",
    "rans_decode",
    "rans_encode",
    "side_values",
    "uniforms",
]
