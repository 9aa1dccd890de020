"""Prints the instruction set in use and hashes of payloads and decoded floats of many cases.

Run by tests/unit/test_payload.py under each HOROVOD_QODA_SIMD: the hashes must be the same. In one
run they must not depend on the number of threads either.
"""

from __future__ import annotations

import hashlib

import numpy as np

from horovod_qoda.coding import change_stats, copy_stats, decode, simd, sum_sq_diff
from tests.codec_cases import HEADER, INPUTS, LEVELS, QUANTIZERS, join, make_input, payload, segment

SIZES = [1, 15, 16, 17, 31, 33, 127, 129, 1000, 2048, 5003]


def cases():
    rng = np.random.default_rng(16)
    for kind in QUANTIZERS.values():
        for name in INPUTS:
            for c in (0.004, 0.02, 0.3, 1.0, 4.0):
                parts = [make_input(name, n, rng) for n in SIZES]
                rows = [segment(len(v), c=c, values=v, index=0, **kind) for v in parts]
                yield np.concatenate(parts), join(rows)
        for name in ("student", "rows"):
            values = make_input(name, 250_001, rng)
            yield values, segment(250_001, c=0.5, values=values, **kind)


def run(threads: int) -> str:
    digest = hashlib.sha256()
    for values, segments in cases():
        # Offsets of one float: kernels may not rely on alignment.
        out, own = np.ones((2, len(values) + 1), dtype=np.float32)[:, 1:]
        data = payload(values, segments, levels=LEVELS, threads=threads, decoded=own)
        digest.update(data.tobytes())
        decode(data, segments, out, expect=HEADER, levels=LEVELS)
        assert out.tobytes() == own.tobytes(), "encoding's own values differ from decoding's"
        for add in (False, True):
            decode(data, segments, out, expect=HEADER, levels=LEVELS, threads=threads, add=add)
            digest.update(out.tobytes())
        decode(data, segments, out, expect=HEADER, levels=LEVELS, scale=0.3, add=True)
        digest.update(out.tobytes())
        sums = copy_stats(values, out, threads), sum_sq_diff(values, out[::-1].copy(), threads)
        digest.update(repr(sums).encode() + out.tobytes())
        both = change_stats(values, out[::-1].copy(), threads)
        assert both == (*sums[0], sums[1]), "one pass sums otherwise than two"
        values = values.copy()
        values[-1] = np.inf
        assert not copy_stats(values, None, threads)[1]
    return digest.hexdigest()


if __name__ == "__main__":
    hashes = {run(threads) for threads in (1, 2, 3)}
    assert len(hashes) == 1, "the number of threads changes bytes"
    print(simd(), *hashes)
