"""Writes payloads.json, the exact bytes of a few payloads: python -m tests.golden.make

Bytes of a version are frozen. They may change with a new version only: kVersion in
horovod_qoda/native/wire.hpp and docs/wire-format.md first, then this.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np

from horovod_qoda.coding import Book
from tests.codec_cases import LEVELS, QUANTIZERS, join, payload, segment

FILE = Path(__file__).with_name("payloads.json")

Cases = dict[str, tuple[np.ndarray, np.ndarray, Book | None]]


def wave(n: int) -> np.ndarray:
    """Floats without a random generator or libm: a triangle wave with an outlier."""
    i = np.arange(n)
    v = ((i * 37 % 101) - 50).astype(np.float32) * np.float32(0.03125)
    v[n // 2] *= np.float32(40)
    return v


def cases() -> Cases:
    """Name -> values, segments, book, of payloads that are stored byte by byte."""
    made: Cases = {}
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
    rows = wave(3000) * np.repeat(np.float32([0, 1, 3, 0.25, 0.5]), 600)
    made["classes"] = (rows, segment(3000, quantizer=1, reconstruction=1, step=0.5), None)
    return made


def large_cases() -> Cases:
    """Payloads of many blocks, types and sampled tables, of which a hash is stored."""
    n = 300_001
    made: Cases = {}
    for name, step in (("two_bits", 1.0), ("four_bits", 0.25), ("seven_bits", 0.03125)):
        made[f"large_{name}"] = (
            wave(n),
            segment(n, quantizer=1, reconstruction=1, step=step),
            None,
        )
    sizes = np.float32(2) ** ((np.arange(n) // 640 * 7 % 5) - 3).astype(np.float32)
    made["large_classes"] = (wave(n) * sizes, segment(n, quantizer=1, step=0.25), None)
    rows = [segment(n // 5, step=0.5, index=0, **QUANTIZERS[kind]) for kind in QUANTIZERS]
    mixed = join([row for row in rows for _ in range(2)])
    mixed["step"][mixed["quantizer"] != 1] = 0
    mixed["type"] = np.arange(len(mixed)) // 3
    made["large_mixed"] = (wave(n // 5 * len(mixed)), mixed, None)
    return made


def make() -> dict:
    """What payloads.json holds: format version, payloads in hex, SHA-256 of large ones."""

    def encoded(made: Cases) -> dict[str, bytes]:
        return {
            name: payload(values, segments, book=book, levels=LEVELS).tobytes()
            for name, (values, segments, book) in made.items()
        }

    small, large = encoded(cases()), encoded(large_cases())
    (version,) = {
        struct.unpack_from("<H", data, 4)[0] for data in (*small.values(), *large.values())
    }
    return {
        "version": version,
        "payloads": {name: data.hex() for name, data in small.items()},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in large.items()},
    }


def changed(stored: dict, made: dict) -> list[str]:
    """Names of stored payloads that are made otherwise, or not at all."""
    return [
        name
        for part in ("payloads", "sha256")
        for name, data in stored[part].items()
        if made[part].get(name) != data
    ]


def main() -> None:
    made = make()
    if FILE.exists():
        stored = json.loads(FILE.read_text())
        names = changed(stored, made)
        if names and stored["version"] == made["version"]:
            sys.exit(f"bytes of version {made['version']} are frozen, but these changed: {names}")
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
