"""Markers, the order of the suites, and real ranks for tests that need them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests import ranks

# A shared machine makes single examples slow at random: hypothesis must not call that a failure.
settings.register_profile("horovod_qoda", deadline=None, print_blob=True)
settings.load_profile("horovod_qoda")

_SUITES = ("unit", "parallel", "integration")


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "parallel: starts MPI ranks (set by itself on tests/parallel)",
        "integration: starts whole programs (set by itself on tests/integration)",
        "gpu: needs a CUDA device; skipped where there is none",
        "slow: takes more than 20 s",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and run the cheap suites first."""
    for item in items:
        suite = _suite(item)
        if suite in ("parallel", "integration"):
            item.add_marker(suite)
        if item.get_closest_marker("gpu") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
    items.sort(key=lambda item: _SUITES.index(_suite(item)))


def _suite(item: pytest.Item) -> str:
    folders = Path(item.path).relative_to(Path(__file__).parent).parts
    return folders[0] if folders[0] in _SUITES else "integration"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def mpi_run() -> ranks.Runner:
    """``mpi_run(np, script_or_module, *args, timeout=120)``: see tests/ranks.py."""
    return ranks.run
