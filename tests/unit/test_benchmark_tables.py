"""The arithmetic of the cluster benchmarks: what is left to run, gains, and the fitted model."""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import _gpu_wire, end_to_end, scaling
from horovod_qoda import cost

ROOT = Path(__file__).resolve().parents[2]


def row(method, seconds, *, workload="exchange-16", rate="1gbit", seed=0, **more):
    return {
        "workload": workload, "rate": rate, "method": method, "seed": seed, "seconds": seconds,
        "low": seconds, "high": seconds, "interface_bytes": 1e6, "counted_bytes": None,
        "quality": 0.5, **more,
    }  # fmt: skip


def test_methods_of_one_workload_follow_each_other():
    args = argparse.Namespace(
        rates=["1gbit"], workloads=["wgan", "exchange-1"], seeds=[0, 1], methods=["a", "b"]
    )
    found = list(end_to_end.pieces(args))
    assert found[:3] == [("1gbit", "wgan", "a", 0), ("1gbit", "wgan", "b", 0),
                         ("1gbit", "wgan", "a", 1)]  # fmt: skip
    assert len(found) == len(set(found)) == 8


def test_gains_are_means_over_seeds_of_ratios_within_a_seed():
    rows = [row("horovod-fp32", 1.0), row("ours-allgather", 0.5),
            row("horovod-fp32", 3.0, seed=1), row("ours-allgather", 1.0, seed=1)]  # fmt: skip
    gain = end_to_end._gain(rows, "exchange-16", "1gbit", "ours-allgather", "horovod-fp32")
    assert gain == pytest.approx(2.5)
    assert "target: exchange-16 at 1gbit over horovod-fp32: 2.50, wanted 5.00" in end_to_end.table(
        rows
    )


def test_a_job_that_failed_is_shown_and_counts_in_no_ratio():
    failed = {"workload": "exchange-16", "rate": "1gbit", "method": "ours-allgather", "seed": 0,
              "failed": "ended with 134"}  # fmt: skip
    text = end_to_end.table([row("horovod-fp32", 1.0), failed])
    assert "ours-allgather ended with 134" in text and "target" not in text


TRUE = scaling.Fit(
    cost.Machine(encode=2e-9, decode=1.5e-9, copy=1e-9, cast=1e-9, start=4e-3, wire_cpu=9e-10),
    efficiency=0.6,
    cores=2,
    left=0.7,
)


def measured():
    """Rows as a cluster would give them that is exactly as the model says."""
    rows = []
    for ranks in (2, 4):
        for rate in scaling.RATES:
            for megabytes in (1, 16):
                for method in scaling.NAMES:
                    one = {"ranks": ranks, "rate": rate, "megabytes": megabytes, "bits": 3.0,
                           "method": method}  # fmt: skip
                    rows.append({**one, "seconds": scaling.predicted(one, TRUE)})
    names = ("encode", "decode", "copy", "cast")
    codec = {name: getattr(TRUE.machine, name) for name in names}
    return {"cores": TRUE.cores, "codec": codec, "rows": rows}


def test_the_fit_finds_the_speeds_that_made_the_rows():
    fit = scaling.calibrate(measured())
    assert fit.efficiency == pytest.approx(TRUE.efficiency, rel=1e-2)
    assert fit.left == pytest.approx(TRUE.left, rel=1e-2)
    for name in ("start", "wire_cpu"):
        assert asdict(fit.machine)[name] == pytest.approx(asdict(TRUE.machine)[name], rel=1e-2)


def test_errors_are_reported_for_rows_that_were_not_fitted():
    rows = measured()
    assert sum(scaling.fitted(one, rows) for one in rows["rows"]) == 5
    text = scaling.validate(rows)
    assert text.count("(fitted)") == 5
    assert "4 hosts: median error 0 %, largest" in text
    slower = copy.deepcopy(rows)
    for one in slower["rows"]:
        if one["ranks"] == 4 and not scaling.fitted(one, slower):
            one["seconds"] *= 2
    assert "4 hosts: median error 50 %" in scaling.validate(slower)


def test_hosts_that_share_two_cores_are_slower():
    one = {"ranks": 8, "rate": "unlimited", "megabytes": 16, "bits": 3.0, "method": "allgather"}
    alone = cost.seconds(
        cost.Exchange(16 * 2**18, 8, "allgather", layers=16),
        replace(TRUE.machine, cores=1.0, bandwidth=float("inf")),
    )
    assert scaling.predicted(one, TRUE) > 3 * alone


def test_links_on_which_a_codec_pays():
    """A codec of 10 ms that leaves a tenth of float32's bytes of 100 million coordinates."""
    one = _gpu_wire.Measured(100_000_000, 0.008, 0.003, 0.004, 40e6, cast=0.001)
    ranks = 4
    codec = _gpu_wire.codec_s(one, ranks)
    assert codec == pytest.approx(0.001 + 0.003 * 1.25 + 0.004 * 1.75)
    for way in ("fp32", "fp16"):
        limit = _gpu_wire.crossover(one, ranks, way)
        for gbit, faster in ((0.9 * limit, True), (1.1 * limit, False)):
            times = _gpu_wire.times(one, ranks, gbit)
            assert (times["ours"] < times[way]) == faster
    assert _gpu_wire.crossover(one, ranks, "fp16") < _gpu_wire.crossover(one, ranks, "fp32")
    grown = replace(one, payload=500e6)
    assert _gpu_wire.crossover(grown, ranks, "fp32") == 0.0
    assert _gpu_wire.crossover(replace(one, cast=1.0), ranks, "fp16") == float("inf")


def test_models_whose_gradients_the_gpu_benchmark_exchanges():
    assert sum(math.prod(shape) for shape in _gpu_wire.transformer_xl()) == 191_950_298
    assert sum(math.prod(shape) for shape in _gpu_wire.wgan()) == 3_076_753


def test_the_gpu_benchmark_runs_in_the_interpreter_and_says_that_no_device_is_there(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed: pip install horovod-qoda[gpu]")
    if torch.cuda.is_available():
        pytest.skip("with a device it is run as it is")
    command = [sys.executable, "benchmarks/gpu.py", "--mb", "0.0005", "--shrink", "400"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "gpu.json"],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        timeout=600, check=True,
    )  # fmt: skip
    for said in ("NO DEVICE HERE", "torch hook: quantise", "nvCOMP ANS: left out", "target 0.60",
                 "Transformer-XL:", "WGAN:", "faster on links slower than"):  # fmt: skip
        assert said in done.stdout, done.stdout
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["device"].startswith("none")
    assert set(report["exchanges"]) == {"Transformer-XL", "WGAN"}


def test_the_cpu_codes_up_to_where_it_has_always_won(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    times = [(4096, 0.2, 0.1), (65536, 0.3, 0.2), (131072, 0.3, 0.4), (262144, 0.5, 0.4)]
    rows = [dict(zip(("symbols", "device_ms", "cpu_ms"), t, strict=True)) for t in times]
    assert gpu.best_limit(rows).endswith("=65536") and gpu.best_limit(rows[2:]).endswith("=0")
