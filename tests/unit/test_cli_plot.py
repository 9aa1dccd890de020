"""Runs are read into the right columns, and drawn into files that stand by themselves."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from horovod_qoda.cli import figures, main, runs


def write(folder, *, steps=40, layers=True, bits=3.0, wire=100, **arguments):
    """A run as the monitor and a training script write it."""
    folder.mkdir(parents=True)
    given = {"bits": bits, "lr": 0.1, **arguments}
    lines = [
        {"event": "start", "step": 0, "time": 0.0, "ranks": 2, "arguments": given},
        {"event": "eval", "step": 0, "time": 0.0, "distance": 1.0, "average": None},
    ]
    if layers:
        lines.append({"event": "model", "step": 0, "names": ["a.weight", "b<i>"], "numel": [9, 4]})
    for step in range(1, steps + 1):
        if layers and step % 10 == 1:
            lines.append({"event": "layers", "step": step, "bits": [3.0 + step / 100, 32.0],
                          "error": [0.02, 0.0]})  # fmt: skip
        lines.append(
            {"event": "step", "step": step, "time": 0.1 * step, "step_s": 0.1, "loss": 1 / step,
             "topology": "allgather", "exchange": step - 1, "raw_bytes": 1000, "wire_bytes": wire,
             "coded_bits": bits, "entropy_bits": bits - 0.01 if step % 10 == 1 else None,
             "encode_s": 0.01, "decode_s": 0.02, "exchange_s": 0.03, "busy_s": 0.05,
             "wait_s": 0.04}
        )  # fmt: skip
    lines.append({"event": "eval", "step": steps, "time": 9.0, "distance": 0.5, "average": 0.4})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"event": "st')  # killed while writing
    return folder


def test_columns_are_what_was_written(tmp_path):
    (run,) = runs.load([write(tmp_path / "a")])
    steps, loss = run.column("loss")
    assert steps.tolist() == list(range(1, 41)) and loss[3] == 0.25
    assert run.own_columns("step") == ["loss"]
    assert run.own_columns("eval") == ["distance", "average"]
    assert run.column("average", "eval")[1].tolist() == [0.4]
    assert run.sent()[1][-1] == 4000
    names, at, bits = run.layers("bits")
    assert names == ["a.weight", "b<i>"] and at.tolist() == [1, 11, 21, 31]
    assert bits.shape == (2, 4) and bits[0, 1] == 3.11
    summary = run.summary()
    assert summary["raw / wire"] == 10.0 and summary["bits a coordinate"] == 3.0
    assert summary["wait, ms"] == pytest.approx(40.0)


def test_a_run_without_layers_or_rates(tmp_path):
    folder = write(tmp_path / "raw", layers=False)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"coded_bits": 3.0', '"coded_bits": null'))
    (run,) = runs.load([folder])
    assert run.layers("bits")[0] == [] and math.isnan(run.summary()["bits a coordinate"])


def test_labels_are_the_shortest_that_differ(tmp_path):
    folders = [write(tmp_path / "x" / "run"), write(tmp_path / "y" / "run")]
    assert [run.label for run in runs.load(folders)] == ["x/run", "y/run"]
    assert [run.label for run in runs.load([folders[0] / "metrics.jsonl"])] == ["run"]
    twice = runs.load([folders[0], folders[0]])
    assert len({run.label for run in twice}) == 2


def test_settings_that_differ_are_named(tmp_path):
    folders = [write(tmp_path / "a", seed=1), write(tmp_path / "b", bits=2.0, seed=1)]
    found = runs.load(folders)
    assert runs.different(found) == ["bits"]
    assert runs.different(found[:1]) == ["bits", "lr", "seed"]


def test_plots_of_two_runs_are_files_and_one_page_without_links(tmp_path, capsys):
    folders = [write(tmp_path / "a"), write(tmp_path / "b", layers=False, wire=500)]
    assert main(["plot", *map(str, folders)]) == 0
    out = tmp_path / "a" / "plots"
    assert str(out / "index.html") in capsys.readouterr().out
    for name in ("loss", "bytes", "phases", "layers-1"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "layers-2.png").exists()
    text = (out / "index.html").read_text()
    assert text.count("data:image/png;base64,") == 4
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "http" not in text
    assert "<td>raw / wire</td><td>10</td><td>2</td>" in text
    assert "Settings that differ" not in text


def test_names_from_the_run_cannot_break_the_page(tmp_path):
    folder = write(tmp_path / "a", name="<script>alert(1)</script>")
    main(["plot", str(folder), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert (tmp_path / "out" / "layers.png").exists()


def test_a_run_of_two_steps_and_one_without_own_numbers(tmp_path):
    folder = write(tmp_path / "a", steps=2)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]
    kept = [{k: v for k, v in x.items() if k != "loss"} for x in lines if x["event"] == "step"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in kept))
    assert main(["plot", str(folder)]) == 0
    assert not (folder / "plots" / "loss.png").exists()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text('{"event": "start", "step": 0}\n')
    for path, says in ((tmp_path / "nowhere", "No such file"), (tmp_path / "empty", "no steps")):
        with pytest.raises(SystemExit) as ended:
            main(["plot", str(path)])
        assert ended.value.code == 2 and says in capsys.readouterr().err


def test_numbers_that_never_change_are_no_curves(tmp_path):
    folder = write(tmp_path / "a")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"distance"', '"floor": 0.01, "distance"'))
    (run,) = runs.load([folder])
    assert "floor" in run.own_columns("eval")
    figure = figures.losses([run])
    labels = [axis.get_ylabel() for axis in figure.axes[::2]]
    figures.close(figure)
    assert labels == ["distance", "average", "loss"]


def test_smoothing_keeps_length_and_mean_of_a_constant():
    smooth = figures._smooth
    values = np.full(500, 3.0)
    assert smooth(values, "step").shape == (500,) and np.allclose(smooth(values, "step"), 3.0)
    assert smooth(np.arange(9.0), "eval").tolist() == list(range(9))
