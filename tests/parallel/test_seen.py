"""A real job as its user sees it: lines of the monitor, a profiler's ranges, Horovod's timeline."""

import json
import math

from horovod_qoda.monitor import read_lines
from tests.parallel.seen import STEPS

LAYERS = ["0.weight", "0.bias", "2.weight"]


def test_lines_ranges_and_timeline(mpi_run, tmp_path):
    metrics, timeline = tmp_path / "metrics.jsonl", tmp_path / "timeline.json"
    done = mpi_run(
        2, "tests/parallel/seen.py", metrics, env={"HOROVOD_TIMELINE": str(timeline)}, cwd=tmp_path
    )

    lines = read_lines(metrics)
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    for line in steps:
        parts = [line[name] for name in ("encode_s", "decode_s", "exchange_s", "wait_s", "busy_s")]
        assert all(0 < part < line["step_s"] for part in parts), line
        assert line["topology"] == "scatter_reduce" and line["raw_bytes"] > 2 * line["wire_bytes"]
        assert math.isfinite(line["loss"]) and 2 < line["coded_bits"] < 4
    (model,) = (line for line in lines if line["event"] == "model")
    assert sorted(model["names"]) == sorted(LAYERS)
    looks = [line for line in lines if line["event"] == "layers"]
    assert [line["exchange"] for line in looks] == list(range(0, STEPS, 2))
    at = model["names"].index("0.weight")
    for line in looks:
        assert 0 < line["error"][at] < 0.2 and 2 < line["entropy"][at] <= line["bits"][at] < 4.5
        sent = next(s["wire_bytes"] for s in steps if s["exchange"] == line["exchange"])
        assert math.isclose(sum(line["wire_bytes"]), sent)

    (printed,) = (line for line in done.stdout.splitlines() if line.startswith("["))
    ranges = json.loads(printed)
    for name in ("step", "put", "wait", "encode", "decode"):
        assert f"horovod_qoda.{name}" in ranges, ranges

    text = timeline.read_text()
    for stage in (0, 1):
        assert f"horovod_qoda.0.buffer0.stage{stage}" in text
