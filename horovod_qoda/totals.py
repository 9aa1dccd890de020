"""Running sums and means over the exchanges of one rank."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from horovod_qoda.exchange import ExchangeRecord


@dataclass
class Totals:
    """Running sums of one rank. Times are seconds, sizes bytes, rates bits per coordinate."""

    exchanges: int = 0
    raw_bytes: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    topology: str = ""
    """Of the latest exchange, as in its record."""
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
    monitor_s: float = 0.0
    """The monitor's own time in those steps."""
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

    @property
    def overhead(self) -> float:
        """The monitor's own share of the step time; nan before the first timed step."""
        return self.monitor_s / self.step_s if self.step_s else math.nan

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
        derived = {"ratio": self.ratio, "hidden": self.hidden, "overhead": self.overhead}
        return {**values, **derived, "per_step": self.per_step()}


def _mean(mean: float, value: float, count: int) -> float:
    return value if count == 1 else mean + (value - mean) / count
