"""Writes payloads.json, the exact bytes of a few payloads: python -m tests.golden.make

Only when the format changes, together with its version and docs/wire-format.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from horovod_qoda.coding import Book
from tests.codec_cases import LEVELS, QUANTIZERS, join, payload, segment

FILE = Path(__file__).with_name("payloads.json")


def wave(n: int) -> np.ndarray:
    """Floats without a random generator or libm: a triangle wave with an outlier."""
    i = np.arange(n)
    v = ((i * 37 % 101) - 50).astype(np.float32) * np.float32(0.03125)
    v[n // 2] *= np.float32(40)
    return v


def cases() -> dict[str, tuple[np.ndarray, np.ndarray, Book | None]]:
    """Name -> values, segments, book."""
    made: dict[str, tuple[np.ndarray, np.ndarray, Book | None]] = {}
    for name, fields in QUANTIZERS.items():
        step = {"step": 0.5} if fields["quantizer"] == 1 else {}
        made[name] = (wave(700), segment(700, **fields, **step), None)
    made["low_bits"] = (wave(700), segment(700, quantizer=1, step=2.0**-9), None)
    kinds = join([segment(60, quantizer=1, step=s, index=0) for s in (0.5, 0.0, 1e-38, 0.25)])
    kinds["nonfinite"][3] = 1
    kinds["type"] = [0, 0, 0, 4]
    made["kinds"] = (wave(240), kinds, None)
    counts = np.zeros((1, 256), dtype=np.int64)
    counts[0, 120:137] = 17 - np.abs(np.arange(-8, 9))
    made["agreed"] = (wave(700), segment(700, quantizer=1, step=0.5), Book.from_histogram(counts))
    return made


def main() -> None:
    made = {
        name: payload(values, segments, book=book, levels=LEVELS).tobytes().hex()
        for name, (values, segments, book) in cases().items()
    }
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
