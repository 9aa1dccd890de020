"""Columns of the int64 tables that say to the kernels where things lie."""

from __future__ import annotations

import triton.language as tl

# A piece: a run of one segment inside one coding block, or a raw segment. [n_pieces, PIECE]
PIECE = tl.constexpr(10)
VALUE_AT = tl.constexpr(0)  # first coordinate in the float array
SEGMENT = tl.constexpr(1)
BLOCK = tl.constexpr(2)
START = tl.constexpr(3)  # first coordinate in the segment
NUMEL = tl.constexpr(4)
GROUP = tl.constexpr(5)  # index in the layer / 128
LAYER = tl.constexpr(6)
SIDE_AT = tl.constexpr(7)  # first side value of the segment
BUCKET_BITS = tl.constexpr(8)  # log2 of the bucket size, 63 if one bucket spans the segment
SEQUENCE = tl.constexpr(9)  # which level sequence

# What the encoder knows of a block before it packs it. [n_blocks, PLACE]
PLACE = tl.constexpr(9)
BODY_AT = tl.constexpr(0)  # byte in the body
SYMBOLS = tl.constexpr(1)  # number of symbols
SYMBOL_AT = tl.constexpr(2)  # first symbol in the buffers of codes, exact symbols and words
ESCAPES = tl.constexpr(3)
FLOATS = tl.constexpr(4)
WORDS = tl.constexpr(5)
MODE = tl.constexpr(6)
SHIFT = tl.constexpr(7)
N_CLASSES = tl.constexpr(8)  # of the block's type

# What the decoder knows of a block of one payload. [n_jobs, JOB]
JOB = tl.constexpr(10)
BYTE_AT = tl.constexpr(0)  # byte in the buffer of payloads
# SYMBOLS, SYMBOL_AT, ESCAPES as above
TAIL = tl.constexpr(4)
LENGTH = tl.constexpr(5)
# MODE, SHIFT as above
TABLE = tl.constexpr(8)  # first row of the slot tables, or the code of a certain table
CLASSES = tl.constexpr(9)  # tables from there on

# Values of MODE.
EMPTY = tl.constexpr(0)
STREAM = tl.constexpr(1)
PLAIN = tl.constexpr(2)
CERTAIN = tl.constexpr(3)

# Where a piece of one payload has its symbols. [n_payloads, n_pieces, SOURCE]
SOURCE = tl.constexpr(3)
CODE_AT = tl.constexpr(0)  # -1 where the piece is not coded
LOW_BIT_AT = tl.constexpr(1)  # bit in the buffer of payloads, if the block had no escape floats
LOW_BITS = tl.constexpr(2)

# Counters of a block. [n_blocks, COUNTER]
COUNTER = tl.constexpr(4)
N_ESCAPES = tl.constexpr(0)
N_FLOATS = tl.constexpr(1)
N_WORDS = tl.constexpr(2)
N_TAIL = tl.constexpr(3)

# Kinds of segments in a payload (horovod_qoda.coding.KIND_…).
ZERO = tl.constexpr(0)
CODED = tl.constexpr(1)
RAW = tl.constexpr(2)
NONFINITE = tl.constexpr(3)
