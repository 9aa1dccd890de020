"""The rooms below transport work where neither Horovod nor MPI is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "settings", "flags", "layout", "layer_types", "quantization", "coding", "qoda", "theory",
    "cost", "monitor", "totals", "ranges",
)  # fmt: skip

# Refuses the named packages, as if they were not installed.
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def python(program: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_all_rooms_import_without_horovod_and_mpi():
    there = [
        room
        for room in ROOMS
        if (ROOT / "horovod_qoda" / room / "__init__.py").exists()
        or (ROOT / "horovod_qoda" / f"{room}.py").exists()
    ]
    assert there, "none of the rooms is on disk"
    # One process each would import PyTorch as many times; the first that fails names itself.
    program = "import importlib\n" + "".join(
        f"print({room!r}); importlib.import_module('horovod_qoda.{room}')\n" for room in there
    )
    done = python(program, ("horovod", "mpi4py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == there


def test_the_package_itself_imports_neither_pytorch_nor_horovod():
    program = "import horovod_qoda; print(horovod_qoda.__version__); dir(horovod_qoda)"
    done = python(program, ("horovod", "mpi4py", "torch", "numpy"))
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import horovod_qoda

    with pytest.raises(AttributeError, match="nonsense"):
        horovod_qoda.nonsense  # noqa: B018


def test_every_forwarded_name_is_where_the_package_says():
    import importlib

    import horovod_qoda

    for name, room in horovod_qoda._FORWARDED.items():
        assert getattr(horovod_qoda, name) is getattr(importlib.import_module(room), name)
        assert name in dir(horovod_qoda)


@pytest.mark.parametrize(
    ("blocked", "says"),
    [
        (("torch",), ["needs PyTorch", "make setup", "download.pytorch.org/whl/cpu"]),
        (
            ("horovod",),
            ["Horovod is not installed", "make setup", "CMAKE_CXX_STANDARD", "--no-deps"],
        ),
    ],
)
def test_what_is_missing_is_named_with_the_command(blocked, says):
    program = "from horovod_qoda import _horovod; _horovod.require()"
    done = python(program, blocked)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    for part in says:
        assert part in done.stderr
