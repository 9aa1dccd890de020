"""Ranges in torch.profiler's traces: there while it runs, and no cost while it does not."""

import subprocess
import sys

import torch

from horovod_qoda import ranges


def names_of(profile):
    return [event.name for event in profile.events()]


def test_calls_and_blocks_are_ranges_while_a_profiler_runs():
    @ranges.ranged("horovod_qoda.test.call")
    def double(x: int) -> int:
        return 2 * x

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert double(3) == 6
        with ranges.span("horovod_qoda.test.block"):
            pass
    assert double(3) == 6
    assert names_of(profile) == ["horovod_qoda.test.call", "horovod_qoda.test.block"]


def test_nothing_is_recorded_nor_made_while_none_runs(monkeypatch):
    def refuse(name):
        raise AssertionError(name)

    monkeypatch.setattr(torch.profiler, "record_function", refuse)
    with ranges.span("horovod_qoda.test.block"):
        assert ranges.ranged("horovod_qoda.test.call")(abs)(-1) == 1
    assert ranges.span("a") is ranges.span("b")


def test_a_profiler_has_ranges_of_its_active_window_only():
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
    found = []
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        schedule=schedule,
        on_trace_ready=lambda p: found.extend(names_of(p)),
    ) as profile:
        for step in range(3):
            with ranges.span(f"horovod_qoda.test.{step}"):
                pass
            profile.step()
    assert [name for name in found if name.startswith("horovod_qoda")] == ["horovod_qoda.test.1"]


def test_pytorch_is_not_imported_for_it():
    code = (
        "import sys; from horovod_qoda import ranges\n"
        "with ranges.span('a'): pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
