"""The wire format is what it was: stored payloads are made again and decoded again."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from horovod_qoda.coding import decode
from tests import reference
from tests.codec_cases import HEADER, LEVELS
from tests.golden.make import FILE, cases, changed, make

STORED = json.loads(FILE.read_text())
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made():
    return make()


def test_every_case_is_stored(made):
    assert set(STORED["payloads"]) == set(made["payloads"])
    assert set(STORED["sha256"]) == set(made["sha256"])


def test_bytes_of_a_version_never_change(made):
    names = changed(STORED, made)
    assert not names, (
        f"the bytes of {names} are no longer those of format version {STORED['version']}; a format "
        "that differs needs a new version (tests/golden/make.py)"
    )
    assert made["version"] == STORED["version"], "store the new version's payloads"


def test_the_version_is_documented():
    text = (ROOT / "docs" / "wire-format.md").read_text()
    assert re.findall(r"^Version (\d+)", text, re.MULTILINE) == [str(STORED["version"])]


@pytest.mark.parametrize("name", STORED["payloads"])
def test_stored_payloads_decode(name):
    values, segments, book = cases()[name]
    stored = bytes.fromhex(STORED["payloads"][name])
    out = np.empty_like(values)
    decode(stored, segments, out, expect=HEADER, book=book, levels=LEVELS)
    wanted = reference.decode(stored, segments, HEADER, book, LEVELS)
    np.testing.assert_array_equal(out, wanted)
