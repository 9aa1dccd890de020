"""What was sent and how long it took: running means, JSON lines, and a prediction for slower links.

    monitor = Monitor("runs/a/metrics.jsonl")
    optimizer.add_listener(monitor)              # called with the record of every exchange
    for batch in batches:
        with monitor.step() as values:           # one line of JSON a step
            ...
            values["loss"] = loss.item()
    print(monitor.totals.ratio, monitor.totals.hidden)

It measures one rank; the sizes of the others differ by a few bytes, their times by the machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from horovod_qoda.exchange import ExchangeRecord

# The first three steps exchange at synchronize(), to see whether gradients may be sent earlier, and
# the first also allocates and compares the ranks: none of them says what a later step costs.
SKIP_STEPS = 3


@dataclass
class Totals:
    """Running sums of one rank. Times are seconds, sizes bytes, rates bits per coordinate."""

    exchanges: int = 0
    raw_bytes: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    topology: str = ""
    """Of the latest exchange: ``allgather``, ``scatter_reduce`` or ``raw``."""
    coded_bits: float = math.nan
    """Mean over all exchanges that quantised anything."""
    sampled: int = 0
    """Exchanges that came with an entropy."""
    sampled_coded_bits: float = math.nan
    """Mean of the coded bits over the sampled exchanges, to be held against ``entropy_bits``."""
    entropy_bits: float = math.nan
    timed_steps: int = 0
    """Steps behind the times below: all but the first few (`Monitor(skip_steps=)`)."""
    step_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    exchange_s: float = 0.0
    busy_s: float = 0.0
    wait_s: float = 0.0
    _coded: int = field(default=0, repr=False)

    @property
    def ratio(self) -> float:
        """Gradient bytes over bytes handed to Horovod; nan before the first exchange."""
        return self.raw_bytes / self.wire_bytes if self.wire_bytes else math.nan

    @property
    def compute_s(self) -> float:
        """Time the training thread was not blocked by the exchange."""
        return max(self.step_s - self.wait_s, 0.0)

    @property
    def hidden(self) -> float:
        """Share of the exchange that passed while the training thread computed, 0 to 1."""
        return max(1.0 - self.wait_s / self.busy_s, 0.0) if self.busy_s else math.nan

    def per_step(self) -> dict[str, float]:
        """Mean seconds a timed step: step = compute + wait; the other parts overlap with both."""
        names = ("step_s", "compute_s", "wait_s", "encode_s", "exchange_s", "decode_s", "busy_s")
        steps = self.timed_steps or math.nan
        return {name: getattr(self, name) / steps for name in names}

    def count(self, record: ExchangeRecord) -> None:
        """Adds sizes and rates of one exchange."""
        self.exchanges += 1
        self.raw_bytes += record.raw_bytes
        self.payload_bytes += record.payload_bytes
        self.wire_bytes += record.wire_bytes
        self.topology = record.topology
        if math.isfinite(record.coded_bits):
            self._coded += 1
            self.coded_bits = _mean(self.coded_bits, record.coded_bits, self._coded)
            if math.isfinite(record.entropy_bits):
                self.sampled += 1
                self.sampled_coded_bits = _mean(
                    self.sampled_coded_bits, record.coded_bits, self.sampled
                )
                self.entropy_bits = _mean(self.entropy_bits, record.entropy_bits, self.sampled)

    def time(self, seconds: float, records: list[ExchangeRecord]) -> None:
        """Adds the times of one step and of the exchanges in it."""
        self.timed_steps += 1
        self.step_s += seconds
        for name in ("encode_s", "decode_s", "exchange_s", "busy_s", "wait_s"):
            total = sum(getattr(record, name) for record in records)
            setattr(self, name, getattr(self, name) + total)

    def as_dict(self) -> dict[str, Any]:
        """Everything above by name, with the derived values, ready for JSON."""
        values = {key: value for key, value in asdict(self).items() if not key.startswith("_")}
        return {**values, "ratio": self.ratio, "hidden": self.hidden, "per_step": self.per_step()}


class Monitor:
    """Listener of an optimizer's exchanges and stopwatch of its steps.

    Args:
        path: file for the JSON lines, overwritten; its folder is made. None keeps totals only,
            which is what ranks other than 0 want.
        skip_steps: first steps that do not count in the times.

    A line has ``event`` (``step``, or what :meth:`write` was given), ``step`` and ``time`` (seconds
    since the monitor was made); a step's has ``step_s``, the values set in the ``with`` block, and
    the fields of the exchange under their own names, summed where a step has several. Values that
    are not finite are written as null, so that every JSON reader takes the file.
    """

    def __init__(self, path: str | Path | None = None, *, skip_steps: int = SKIP_STEPS) -> None:
        if skip_steps < 0:
            raise ValueError(f"skip_steps must be at least 0, not {skip_steps}")
        self.totals = Totals()
        self.steps = 0
        self._skip = skip_steps
        self._records: list[ExchangeRecord] = []  # of the present step
        self._begun = time.perf_counter()
        self._file: IO[str] | None = None
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # Buffered by line: a job that is killed leaves whole lines behind.
            self._file = open(path, "w", encoding="utf-8", buffering=1)

    def __call__(self, record: ExchangeRecord) -> None:
        """Takes the record of one exchange."""
        self.totals.count(record)
        self._records.append(record)

    @contextmanager
    def step(self) -> Iterator[dict[str, Any]]:
        """Times one training step; what is put into the yielded dict goes into its line.

        A block that raises counts as no step.
        """
        values: dict[str, Any] = {}
        records = self._records = []
        begin = time.perf_counter()
        yield values
        seconds = time.perf_counter() - begin
        self.steps += 1
        if self.steps > self._skip:
            self.totals.time(seconds, records)
        if self._file is not None:
            self.write("step", step_s=seconds, **values, **_sum_records(records))

    def write(self, event: str, **values: Any) -> None:
        """Writes one line of any other kind: an evaluation, a summary."""
        if self._file is not None:
            now = time.perf_counter() - self._begun
            line = {"event": event, "step": self.steps, "time": now, **values}
            self._file.write(json.dumps(_finite(line), allow_nan=False) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a monitor's file, in order; a last line cut short by a crash is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):
            lines.append(json.loads(text))
    return lines


def link_bytes(topology: str, wire_bytes: float, ranks: int) -> float:
    """Bytes that one rank receives over its link in one exchange (and sends: all are symmetric).

    `wire_bytes` is what a rank hands to Horovod. With K ranks a ring moves

    - ``raw``, an all-reduce of W bytes: 2 (K−1)/K · W;
    - ``allgather`` of W bytes from every rank: (K−1) · W;
    - ``scatter_reduce``, an all-to-all of A bytes, of which 1/K stay, then an all-gather of this
      rank's chunk of B bytes: (K−1)/K · A + (K−1) · B. Both stages code the same number of bits,
      so A = K·B and W = A + B, which makes it 2 (K−1)/(K+1) · W.

    Raises:
        ValueError: unknown topology, or ranks < 1.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, not {ranks}")
    factors = {
        "raw": 2 * (ranks - 1) / ranks,
        "allgather": ranks - 1,
        "scatter_reduce": 2 * (ranks - 1) / (ranks + 1),
    }
    if topology not in factors:
        raise ValueError(f"topology must be one of {', '.join(factors)}, not {topology!r}")
    return factors[topology] * wire_bytes


def predict(
    topology: str,
    ranks: int,
    wire_bytes: float,
    bits_per_second: float,
    *,
    compute_s: float,
    encode_s: float = 0.0,
    decode_s: float = 0.0,
) -> float:
    """Seconds a step would take on hosts joined by links of `bits_per_second` each way.

        compute + encode + 8 · link_bytes / bits_per_second + decode

    The parts are the measured ones. Nothing is hidden behind anything, latency and protocol
    overhead are left out, a host has one rank: an upper bound on the parts and a lower bound on the
    wire, the same for compressed and uncompressed exchanges (encode = decode = 0), so that the two
    can be compared. Ranks that share cores inflate every part.

    Raises:
        ValueError: a rate that is not positive, an unknown topology, ranks < 1.
    """
    if not bits_per_second > 0:
        raise ValueError(f"bits_per_second must be positive, not {bits_per_second}")
    wire_s = 8 * link_bytes(topology, wire_bytes, ranks) / bits_per_second
    return compute_s + encode_s + wire_s + decode_s


def _mean(mean: float, value: float, count: int) -> float:
    return value if count == 1 else mean + (value - mean) / count


def _sum_records(records: list[ExchangeRecord]) -> dict[str, Any]:
    """Fields of one step's exchanges: sizes and times summed, the rest from the last one."""
    if not records:
        return {}
    values = asdict(records[-1])
    for name in values:
        if name.endswith(("_bytes", "_s")):
            values[name] = sum(getattr(record, name) for record in records)
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
