"""Horovod's own tests for PyTorch, with stock Horovod and with the import changed, side by side.

    python tests/horovod_suite.py [-np 2] [--tests FILE] [--keep FOLDER] [-k EXPRESSION]

Without ``--tests`` the file is taken from the source archive of Horovod 0.19.5 on PyPI, the last
one that holds tests; ``--tests`` takes any other, such as ``test/parallel/test_torch.py`` of a
checkout. Nothing of it is kept here. Exits with an error where a test passes with stock Horovod and
not with this package.

Three things are adapted to the years since: the helper module ``common``, which the archive lacks,
is supplied, and so is ``inspect.getargspec``, which Python 3.11 has dropped; and PyTorch's Muon,
which takes matrices only, is kept out of the tests that go through all optimizers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from xml.etree import ElementTree

if not __package__:  # started as a file: the checkout, not tests/, belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch import run as launcher

RELEASE = "0.19.5"
"""Of the tests, not of the Horovod that runs them."""

UNSOUND = ("allgather_grad", "broadcast_grad", "join_allreduce")
"""Fail with stock Horovod 0.28.1 and leave its ranks at different places of the file."""

IMPORT = "import horovod.torch as hvd"

COMMON = """
import contextlib, os, tempfile

def mpi_env_rank_and_size():
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        if rank in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1

def skip_or_fail_gpu_test(test, message):
    test.skipTest(message)

@contextlib.contextmanager
def temppath():
    with tempfile.TemporaryDirectory() as folder:
        yield os.path.join(folder, "file")
"""

RANK = """
import inspect, sys
import pytest
import torch
from common import mpi_env_rank_and_size
inspect.getargspec = inspect.getfullargspec
if hasattr(torch.optim, "Muon"):
    torch.optim.Muon.__module__ = "newer"
xml = f"--junitxml=result.{mpi_env_rank_and_size()[0]}.xml"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", xml, "test_torch.py", *sys.argv[1:]]))
"""


def download(folder: Path) -> str:
    """Text of the test file in Horovod's source archive."""
    command = [sys.executable, "-m", "pip", "download", f"horovod=={RELEASE}", "--no-deps", "-q"]
    command += ["--no-binary", "horovod", "--no-build-isolation", "-d", str(folder)]
    subprocess.run(command, check=True)
    with tarfile.open(folder / f"horovod-{RELEASE}.tar.gz") as archive:
        member = archive.extractfile(f"horovod-{RELEASE}/test/test_torch.py")
        assert member is not None
        return member.read().decode()


def run(text: str, folder: Path, np: int, limit: float, arguments: list[str]) -> dict[str, str]:
    """Outcome of every test, the worst over ranks: passed, skipped, failed or missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test_torch.py").write_text(text)
    (folder / "common.py").write_text(COMMON)
    (folder / "rank.py").write_text(RANK)
    path = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
    job = launcher.command(
        np,
        [sys.executable, "rank.py", *arguments],
        launcher="mpirun",
        venv=Path(sys.prefix),
        environ={
            "HOROVOD_STALL_CHECK_TIME_SECONDS": "30",
            "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "60",
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": path,
        },
    )
    with open(folder / "log", "w") as log:
        subprocess.run(
            job.argv, env=job.env, cwd=folder, stdout=log, stderr=log, timeout=limit, check=False
        )
    worst: dict[str, str] = {}
    order = ("skipped", "passed", "missing", "failed")
    for rank in range(np):
        for name, outcome in outcomes(folder / f"result.{rank}.xml").items():
            worst[name] = max(worst.get(name, outcome), outcome, key=order.index)
    return worst


def outcomes(report: Path) -> dict[str, str]:
    """Outcome by test of one rank's JUnit report."""
    if not report.exists():
        raise SystemExit(f"a rank ended before its report: see {report.parent / 'log'}")
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        failed = kinds & {"failure", "error"}
        found[case.get("name", "")] = (
            "failed" if failed else "skipped" if "skipped" in kinds else "passed"
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Horovod's tests with this package's import.")
    parser.add_argument("-np", type=int, default=2, help="ranks")
    parser.add_argument("--tests", type=Path, help="a test_torch.py of Horovod")
    parser.add_argument("--keep", type=Path, help="folder for the files and logs of both runs")
    parser.add_argument("-k", help="which tests, as for pytest")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for each run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        text = args.tests.read_text() if args.tests else download(folder)
        if IMPORT not in text:
            raise SystemExit(f"no line {IMPORT!r} to change in the tests")
        extra = ["-k", args.k or " and ".join(f"not {x}" for x in UNSOUND)]
        changed = text.replace(IMPORT, "import horovod_qoda.torch as hvd")
        stock = run(text, folder / "stock", args.np, args.limit, extra)
        plugin = run(changed, folder / "plugin", args.np, args.limit, extra)
    lost = []
    for name in sorted(stock):
        here = plugin.get(name, "missing")
        print(f"{name:50s} stock {stock[name]:8s} with this package {here}")
        if stock[name] == "passed" and here != "passed":
            lost.append(name)
    for what, results in (("stock", stock), ("with this package", plugin)):
        counts = [f"{list(results.values()).count(k)} {k}" for k in ("passed", "failed", "skipped")]
        print(f"{what}: {', '.join(counts)}")
    print(f"passed with stock only: {', '.join(lost) or 'none'}")
    return 1 if lost or not stock else 0


if __name__ == "__main__":
    raise SystemExit(main())
