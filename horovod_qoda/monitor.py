"""What was sent and how long it took: running means, JSON lines, TensorBoard.

    monitor = Monitor("runs/a/metrics.jsonl")
    optimizer.add_listener(monitor)              # called with the record of every exchange
    for batch in batches:
        with monitor.step() as values:           # one line of JSON a step
            ...
            values["loss"] = loss.item()
    print(monitor.totals.ratio, monitor.totals.hidden)

``monitor.watch(optimizer)`` instead of ``add_listener`` also writes what happened layer by layer.
It measures one rank; the sizes of the others differ by a few bytes, their times by the machine.
"""

from __future__ import annotations

import json
import math
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from horovod_qoda.cost import link_bytes, predict
from horovod_qoda.ranges import span
from horovod_qoda.totals import Totals

if TYPE_CHECKING:
    from horovod_qoda.exchange import ExchangeRecord

__all__ = ["Monitor", "Totals", "link_bytes", "predict", "read_lines"]

# The first three steps exchange at synchronize(), to see whether gradients may be sent earlier, and
# the first also allocates and compares the ranks: none of them says what a later step costs.
SKIP_STEPS = 3

# Coding a sample of a layer again takes 0.4 ms of CPU: with 25 coded layers looked at every 50th
# exchange, 0.2 ms a step, or 0.3 % of steps of 67 ms. Where steps are shorter, or layers more, they
# are looked at less often.
LAYERS_EVERY, LAYERS_SHARE = 50, 0.003


class Monitor:
    """Listener of an optimizer's exchanges and stopwatch of its steps.

    Args:
        path: file for the JSON lines, overwritten; its folder is made. None keeps totals only,
            which is what ranks other than 0 want.
        skip_steps: first steps that do not count in the times.
        tensorboard: folder for TensorBoard's events, or None; the ``tensorboard`` package is
            needed. The same figures as in the file, by step.

    A line has ``event`` (``step``, or what :meth:`write` was given), ``step`` and ``time`` (seconds
    since the monitor was made); a step's has ``step_s``, the values set in the ``with`` block, and
    the fields of the exchange under their own names, summed where a step has several. Values that
    are not finite are written as null, so that every JSON reader takes the file.

    Steps are ranges ``horovod_qoda.step`` in a torch.profiler trace, which also has ``….put`` and
    ``….wait`` of each layer and, of the exchange's own thread, ``….encode`` and ``….decode``
    (:func:`horovod_qoda.ranges.ranged`). Collectives have the names of Horovod's timeline,
    ``horovod_qoda.<optimizer>.buffer<i>.stage<j>``.

    Raises:
        ImportError: ``tensorboard`` was asked for and is not installed.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        skip_steps: int = SKIP_STEPS,
        tensorboard: str | Path | None = None,
    ) -> None:
        if skip_steps < 0:
            raise ValueError(f"skip_steps must be at least 0, not {skip_steps}")
        self.totals = Totals()
        self.steps = 0
        self._skip = skip_steps
        self._records: list[ExchangeRecord] = []  # of the present step
        self._begun = time.perf_counter()
        self._model: dict[str, Any] = {}  # as it was last written
        self._file: IO[str] | None = None
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # Buffered by line: a job that is killed leaves whole lines behind.
            self._file = open(path, "w", encoding="utf-8", buffering=1)
        self._board = None if tensorboard is None else _summary_writer(Path(tensorboard))
        self._own_s = 0.0  # of the present step

    def __call__(self, record: ExchangeRecord) -> None:
        """Takes the record of one exchange."""
        begin = time.perf_counter()
        self.totals.count(record)
        self._records.append(record)
        self._own_s += time.perf_counter() - begin

    def watch(self, optimizer: Any, every: int | None = None) -> None:
        """Listens to an optimizer, and every so many exchanges looks at its layers.

        Writes a line of event ``model`` (names and sizes of layers) before the first line of event
        ``layers``, which has a list for each figure of :mod:`horovod_qoda.layer_figures`.

        Args:
            optimizer: a ``DistributedOptimizer``. One whose gradients travel by stock Horovod has
                no layers to tell of; its exchanges are counted all the same.
            every: exchanges; 0 never looks; None is every 50th, and fewer where looking would take
                more than 0.3 % of the time.
        """
        if every is not None and every < 0:
            raise ValueError(f"every must be at least 0, not {every}")
        optimizer.add_listener(self)
        if every == 0 or (self._file is None and self._board is None):
            return
        reference = weakref.ref(optimizer)  # its listeners must not keep it alive
        stride = every or LAYERS_EVERY
        rest_until = 0.0

        def look(record: ExchangeRecord) -> None:
            nonlocal rest_until
            watched, begin = reference(), time.perf_counter()
            if watched is None or record.exchange % stride or begin < rest_until:
                return
            self._look(watched, record)
            spent = time.perf_counter() - begin
            self._own_s += spent
            if every is None:
                rest_until = begin + spent / LAYERS_SHARE

        optimizer.add_listener(look)

    def _look(self, optimizer: Any, record: ExchangeRecord) -> None:
        exchange = getattr(optimizer._gradients.carrier, "exchange", None)
        if exchange is None or record.topology == "raw":
            return
        from horovod_qoda import layer_figures

        known = layer_figures.model(exchange)
        if known != self._model:
            self._model = known
            self.write("model", **known)
        figures = layer_figures.measure(exchange, record.wire_bytes)
        self.write("layers", exchange=record.exchange, **figures)
        if self._board is not None:
            for name, bits, error in zip(
                known["names"], figures["bits"], figures["error"], strict=True
            ):
                self._board.add_scalar(f"bits/{name}", bits, self.steps)
                self._board.add_scalar(f"error/{name}", error, self.steps)

    @contextmanager
    def step(self) -> Iterator[dict[str, Any]]:
        """Times one training step; what is put into the yielded dict goes into its line.

        A block that raises counts as no step.
        """
        values: dict[str, Any] = {}
        records = self._records = []
        self._own_s = 0.0
        begin = time.perf_counter()
        with span("horovod_qoda.step"):
            yield values
        end = time.perf_counter()
        self.steps += 1
        figures = _sum_records(records)
        if self._file is not None:
            self.write("step", step_s=end - begin, **values, **figures)
        if self._board is not None:
            for name, value in {"step_s": end - begin, **values, **figures}.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"step/{name}", value, self.steps)
        if self.steps > self._skip:
            self.totals.time(end - begin, records)
            self.totals.monitor_s += self._own_s + time.perf_counter() - end

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
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "Monitor(tensorboard=...) needs the tensorboard package: pip install tensorboard; "
            "the lines of JSON have the same figures without it"
        ) from error
    return SummaryWriter(str(folder))


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a monitor's file, in order; a last line cut short by a crash is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):
            lines.append(json.loads(text))
    return lines


def _sum_records(records: list[ExchangeRecord]) -> dict[str, Any]:
    """Fields of one step's exchanges: sizes and times summed, the rest from the last one."""
    if not records:
        return {}
    values = dict(vars(records[-1]))  # asdict() copies deeply: a third of the line's cost
    if len(records) > 1:
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
