"""The arithmetic of the cluster benchmarks: what is left to run, gains, and the fitted model."""

from __future__ import annotations

import argparse
import copy
from dataclasses import asdict, replace

import pytest

from benchmarks import end_to_end, scaling
from horovod_qoda import cost


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
