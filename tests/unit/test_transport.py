"""The in-process transport behaves like Horovod's: ragged, empty, repeated and out of order."""

import numpy as np
import pytest

from horovod_qoda.transport import local_transports
from tests.threads import in_threads


@pytest.mark.parametrize("size", [1, 2, 3])
def test_collectives(size):
    def run(t):
        a = t.allgather("a", np.full(t.rank, t.rank, np.uint8)).wait()
        splits = np.arange(size, dtype=np.int32)
        data = np.repeat(np.arange(size) + 10 * t.rank, splits).astype(np.uint8)
        b, received = t.alltoall("b", data, splits).wait()
        c = t.allreduce("c", np.array([t.rank, 1], np.int64)).wait()
        return a, b, received, c

    for rank, (a, b, received, c) in enumerate(in_threads(local_transports(size), run)):
        assert a.tolist() == [r for r in range(size) for _ in range(r)]
        assert b.tolist() == [rank + 10 * r for r in range(size) for _ in range(rank)]
        assert received.tolist() == [rank] * size
        assert c.tolist() == [sum(range(size)), size]


def test_same_name_again_is_another_collective_and_bytes_are_counted():
    def run(t):
        out = [
            t.allgather("x", np.array([(10 * i + t.rank) % 256], np.uint8)).wait()
            for i in range(50)
        ]
        return [o.tolist() for o in out], t.sent_bytes, t.link_bytes

    for out, sent, left in in_threads(local_transports(2), run):
        assert out == [[10 * i % 256, (10 * i + 1) % 256] for i in range(50)]
        assert sent == left == 50


@pytest.mark.parametrize("size", [1, 2, 4])
def test_bytes_that_leave_a_rank(size):
    def run(t):
        t.allgather("a", np.zeros(100, np.float32)).wait()
        t.alltoall("b", np.zeros(10 * size, np.int16), np.full(size, 10, np.int32)).wait()
        t.allreduce("c", np.zeros(12, np.float64)).wait()
        return t.link_bytes

    others = size - 1
    expected = others * 400 + others * 20 + 2 * others * 96 / size
    assert in_threads(local_transports(size), run) == [expected] * size
