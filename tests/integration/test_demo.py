"""The demo as `make demo` starts it, with two ranks, twenty steps and the digits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from horovod_qoda.monitor import read_lines
from tests import ranks

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20


def demo(folder: Path, *flags: object, check: bool = True) -> ranks.Finished:
    argv = [sys.executable, "examples/demo.py", "--np", "2", "--steps", str(STEPS)]
    argv += ["--data", "digits", "--runs", str(folder), "--name", "t", *map(str, flags)]
    return ranks.start(argv, dict(os.environ), timeout=600, check=check)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, ranks.Finished]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, demo(folder, "--eval-every", 10)


def test_files_of_both_runs_are_there(finished):
    folder, _ = finished
    for run in ("t", "t-none"):
        for name in ("metrics.jsonl", "samples.png", "curves.png", "checkpoint.pt"):
            assert (folder / run / name).stat().st_size > 0
    for figure in ("samples.png", "curves.png"):
        assert (folder / "t" / figure).read_bytes().startswith(b"\x89PNG")


def test_bytes_on_the_wire_are_fewer_than_a_quarter(finished):
    folder, _ = finished
    compressed, plain = (read_lines(folder / run / "metrics.jsonl") for run in ("t", "t-none"))
    for lines in (compressed, plain):
        assert [line["event"] for line in lines].count("step") == STEPS
        assert [line["step"] for line in lines if line["event"] == "eval"] == [0, 10, 20]
        assert lines[-1]["event"] == "summary"
        assert lines[-1]["exchanges"] == STEPS
    ours, theirs = compressed[-1], plain[-1]
    raw = 4 * sum(
        x.numel()
        for player in ("generator", "critic")
        for x in torch.load(folder / "t" / "checkpoint.pt", weights_only=True)[player].values()
    )
    assert ours["raw_bytes"] == theirs["raw_bytes"] == STEPS * raw
    assert theirs["wire_bytes"] == theirs["raw_bytes"]
    assert ours["wire_bytes"] < ours["raw_bytes"] / 4
    assert ours["payload_bytes"] <= ours["wire_bytes"]
    # The entropy pools buffers and groups, which have tables of their own: less is possible.
    entropy = ours["entropy_bits"]
    assert 0.7 * entropy < ours["sampled_coded_bits"] < entropy + 0.1
    parts = ours["per_step"]
    assert parts["compute_s"] + parts["wait_s"] == pytest.approx(parts["step_s"])
    assert parts["encode_s"] > 0 and parts["decode_s"] > 0 and theirs["per_step"]["encode_s"] == 0


def test_the_table_compares_the_two_runs(finished):
    folder, job = finished
    table = job.stdout[job.stdout.rindex("layerwise") :]
    ours = read_lines(folder / "t" / "metrics.jsonl")[-1]
    cells = {line[:44].strip(): line[44:].split() for line in table.splitlines() if line[44:]}
    assert cells["ratio raw / wire"] == [f"{ours['ratio']:.2f}", "1.00"]
    assert cells["coded bits per coordinate"][1] == "-"
    for title in (
        "entropy of their symbols, buffers pooled",
        "compute",
        "encode",
        "decode",
        "exchange hidden behind backward, %",
        "Wasserstein distance at the start",
        "at the end, last iterate",
        "at the end, ergodic average",
        "step predicted at 1 Gbit/s, ms",
        "step predicted at 100 Mbit/s, ms",
    ):
        assert len(cells[title]) == 2, title
    # Both runs start from the same players and are measured by the same projections.
    start = cells["Wasserstein distance at the start"]
    assert start[0] == start[1]
    assert "no slow wire" in table


def test_the_checkpoint_holds_players_optimizer_and_settings(finished):
    folder, _ = finished
    saved = torch.load(folder / "t" / "checkpoint.pt", weights_only=True)
    assert saved["optimizer"]["horovod_qoda"]["exchange"] == STEPS
    assert saved["optimizer"]["param_groups"][0]["t"] == STEPS
    assert saved["arguments"]["bits"] == 3.0
    for player in ("generator", "critic"):
        assert all(torch.isfinite(x).all() for x in saved[player].values())


def test_a_job_that_fails_fails_the_demo_with_its_output(tmp_path):
    job = demo(tmp_path, "--rule", "nothing.like.this=raw", check=False)
    assert job.returncode == 1
    assert "nothing.like.this" in job.stdout
    assert "the job ended with status" in job.stderr
    assert not (tmp_path / "t-none").exists()
