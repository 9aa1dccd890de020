"""The wire format is what it was: stored payloads are made again and decoded again."""

import json

import numpy as np
import pytest

from horovod_qoda.coding import decode
from tests import reference
from tests.codec_cases import HEADER, LEVELS, payload
from tests.golden.make import FILE, cases

STORED = json.loads(FILE.read_text())


def test_every_case_is_stored():
    assert set(STORED) == set(cases())


@pytest.mark.parametrize("name", STORED)
def test_golden_payload(name):
    values, segments, book = cases()[name]
    stored = bytes.fromhex(STORED[name])
    assert payload(values, segments, book=book, levels=LEVELS).tobytes() == stored
    out = np.empty_like(values)
    decode(stored, segments, out, expect=HEADER, book=book, levels=LEVELS)
    wanted = reference.decode(stored, segments, HEADER, book, LEVELS)
    np.testing.assert_array_equal(out, wanted)
