"""The predictions that `horovod-qoda model` prints are those of the cost model."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest

from horovod_qoda import cost
from horovod_qoda.cli import main, model

MACHINE = cost.Machine()
EXCHANGE = cost.Exchange(2**22, 2, "allgather")


def test_a_row_holds_every_topology_and_the_fastest():
    (row,) = model.predict(EXCHANGE, MACHINE, [8], compute=0.1, hidden=0.5)
    assert set(row.exchange) == set(cost.TOPOLOGIES)
    assert row.exchange[row.fastest] == min(row.exchange[name] for name in cost.UNBIASED)
    ours = replace(EXCHANGE, ranks=8, topology="scatter_reduce")
    assert row.exchange["scatter_reduce"] == cost.seconds(ours, MACHINE)
    assert row.step["fp32"] == pytest.approx(0.1 + 0.5 * row.exchange["fp32"])


def test_all_gather_is_for_few_ranks_and_scatter_reduce_for_many():
    # A card that takes the wire's work off the CPU, so that bytes and decoding decide.
    machine = replace(MACHINE, wire_cpu=0.0, start=0.0, latency=1e-6)
    rows = model.predict(EXCHANGE, machine, [2, 64], 0.0, 0.0)
    assert [row.ours for row in rows] == ["allgather", "scatter_reduce"]


def test_up_to_4096_ranks_every_time_is_finite():
    rows = model.predict(EXCHANGE, MACHINE, model.RANKS, 0.0, 0.0)
    assert rows[-1].ranks == 4096
    assert all(math.isfinite(t) and t > 0 for row in rows for t in row.exchange.values())


def test_the_printed_table_and_the_file_agree(tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert main(["model", "--mb", "64", "--ranks", "4", "--gbit", "1", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert "16,777,216 coordinates at 3 bits, links of 1 Gbit/s" in printed
    times, limits = (x.split() for x in printed.splitlines() if x.startswith("     4"))
    assert float(times[1]) == pytest.approx(1e3 * row["exchange"]["fp32"], abs=0.01)
    assert times[7] == row["fastest"]
    against = row["crossover"]["scatter_reduce"]
    assert limits[4] == f"{8e-9 * against['fp32']:.3g}" and limits[5] == "/"


def test_ranks_of_a_host_share_its_link_and_two_levels_make_use_of_it(tmp_path, capsys):
    path = tmp_path / "rows.json"
    words = ["model", "--mb", "64", "--gbit", "1", "--ranks-per-host", "8", "--json", str(path)]
    assert main(words) == 0
    rows = json.loads(path.read_text())
    assert [row["ranks"] for row in rows] == [8 * n for n in model.RANKS if 8 * n <= 4096]
    assert all(row["fastest"] == "two_level" for row in rows if row["ranks"] <= 2048)
    assert "8 rank(s) a host" in capsys.readouterr().out


def test_powersgd_is_shown_and_never_called_the_fastest():
    slow = replace(MACHINE, bandwidth=1e6)
    (row,) = model.predict(EXCHANGE, slow, [8], 0.0, 0.0)
    assert row.exchange["powersgd"] == min(row.exchange.values())
    assert row.fastest != "powersgd" and row.ours != "powersgd"
    assert row.crossover["powersgd"]["fp32"] > 0


def test_speeds_come_from_a_doctors_file_and_flags_overrule(tmp_path, capsys):
    path = tmp_path / "doctor.json"
    slow = cost.Machine(bandwidth=1e6)
    path.write_text(json.dumps({"findings": [], "machine": asdict(slow)}))
    main(["model", "--machine", str(path), "--ranks", "2"])
    assert "links of 0.008 Gbit/s" in capsys.readouterr().out
    main(["model", "--machine", str(path), "--gbit", "10", "--cores", "0.5", "--ranks", "2"])
    assert "links of 10 Gbit/s, 0.5 core(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hidden", "2"], "hidden must be a share"),
        (["--ranks", "0"], "ranks must be at least 1"),
        (["--ranks", "6", "--ranks-per-host", "4"], "multiple of ranks_per_host"),
        (["--machine", "/nowhere.json"], "/nowhere.json"),
        (["--bits", "-1"], "bits must be positive"),
    ],
)
def test_bad_flags_are_refused_by_name(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["model", *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_file_of_one_rank_says_what_to_do(tmp_path, capsys):
    path = tmp_path / "doctor.json"
    path.write_text('{"findings": []}')
    with pytest.raises(SystemExit):
        main(["model", "--machine", str(path)])
    assert "mpirun -np 2 horovod-qoda doctor --json" in capsys.readouterr().err
