"""The language model on two ranks, a few steps, on Python's own sources and on a folder."""

from __future__ import annotations

import math

import pytest
import torch

from horovod_qoda.monitor import read_lines
from tests import ranks

SMALL = ["--layers", 2, "--width", 64, "--inner", 128, "--memory", 32, "--segment", 32]
SMALL += ["--batch", 4, "--symbols", 2048, "--megabytes", 0.5, "--eval-symbols", 4096]


def train(folder, *flags):
    arguments = [*SMALL, "--runs", folder, "--name", "t", *flags]
    job = ranks.run(2, "examples/transformer_xl.py", *arguments, timeout=600)
    return job, read_lines(folder / "t" / "metrics.jsonl")


def test_five_steps_learn_and_compress(tmp_path):
    job, lines = train(tmp_path, "--steps", 5, "--lr-warmup", 1, "--lr", 0.01)
    evaluations = [line for line in lines if line["event"] == "eval"]
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    assert len(losses) == 5 and all(math.isfinite(x) for x in losses)
    # At the start all symbols of the softmax's head, an eighth and two clusters, are alike.
    assert math.log(258) < evaluations[0]["nats"] < math.log(2048)
    assert evaluations[-1]["nats"] < evaluations[0]["nats"] - 0.3
    assert evaluations[-1]["bits_per_byte"] < evaluations[0]["bits_per_byte"]
    summary = lines[-1]
    assert summary["event"] == "summary" and summary["ratio"] > 4
    saved = torch.load(tmp_path / "t" / "checkpoint.pt", weights_only=True)
    numel = sum(x.numel() for x in saved["model"].values())
    assert summary["raw_bytes"] == 5 * 4 * numel
    assert saved["optimizer"]["horovod_qoda"]["exchange"] == 5
    assert (tmp_path / "t" / "curves.png").read_bytes().startswith(b"\x89PNG")
    cells = {line[:44].strip(): line[44:].split() for line in job.stdout.splitlines()}
    assert cells["ratio raw / wire"] == [f"{summary['ratio']:.2f}"]
    assert float(cells["symbols a second, all ranks"][0]) > 0


def test_thin_matrices_carry_the_layers_that_they_halve(tmp_path):
    flags = ["--quantizer", "powersgd", "--low-rank", 2, "--rule", "softmax.tail.*=4"]
    job, lines = train(tmp_path, "--steps", 3, "--lr-warmup", 1, "--lr", 0.01, *flags)
    assert "are sent by PowerSGD as" in job.stdout + job.stderr
    assert "are quantised to about 4 bits" in job.stdout + job.stderr
    evaluations = [line for line in lines if line["event"] == "eval"]
    assert evaluations[-1]["nats"] < evaluations[0]["nats"] - 0.1
    # The first exchanges count symbols for the quantised layers, which is most of what is sent.
    assert lines[-1]["ratio"] > 4 and lines[-1]["raw_bytes"] > 8 * lines[-1]["payload_bytes"]


def test_a_folder_gives_perplexity_but_no_bits_per_byte(tmp_path):
    for name, count in (("wiki.train.tokens", 400), ("wiki.valid.tokens", 40)):
        text = "".join(f" the word {i % 17} follows the word {i % 13}\n" for i in range(count))
        (tmp_path / name).write_text(text, encoding="utf-8")
    flags = ["--data", tmp_path, "--symbols", 0, "--min-numel", 256, "--batch", 2]
    job, lines = train(tmp_path, "--steps", 3, *flags, "--optimizer", "sgd", "--lr", 0.1)
    last = [line for line in lines if line["event"] == "eval"][-1]
    assert "bits_per_byte" not in last and "perplexity" in job.stdout
    assert last["perplexity"] == pytest.approx(math.exp(last["nats"]))
    assert str(tmp_path) in job.stdout
