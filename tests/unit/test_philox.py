"""Philox4x32-10 against the vectors published with Random123 (Salmon et al., SC 2011)."""

import numpy as np
import pytest

from horovod_qoda.native import _codec
from tests import reference

VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text):
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


@pytest.mark.parametrize("counter, key, result", VECTORS)
def test_published_vectors(counter, key, result):
    assert (_codec.philox(words(counter), words(key)) == words(result)).all()
    got = np.stack(reference.philox4x32_10(words(counter), words(key)))
    assert (got == words(result)).all()
