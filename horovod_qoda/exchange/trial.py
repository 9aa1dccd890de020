"""Does compression pay here? Steps are timed with and without it in turn, and the faster stays."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from horovod_qoda.exchange.adaptation import is_update
from horovod_qoda.logs import logger
from horovod_qoda.transport import Transport

RAW, CODED = "raw", "coded"

RUNS = ((10, 13, RAW), (13, 16, CODED), (16, 19, RAW), (20, 23, CODED))
"""First exchange, the one after the last, and how they travel. After the update of exchange 9
tables and steps have settled; 19 is an update again. The first of each run is not timed."""

AGAIN = 20
"""First exchange of a trial that starts anew: there is no update before it has ended."""


class Trial:
    """Steps are timed from one exchange's end to the next, computing included: what overlaps with
    backward costs nothing, and a codec that takes cores from the model costs more than its time.

    Attributes:
        winner: ``raw`` or ``coded``; None while it is not decided.
        late: exchanges by which the runs come later than `RUNS` says.
    """

    def __init__(self) -> None:
        self.winner: str | None = None
        self.late = 0
        self._best = {RAW: math.inf, CODED: math.inf}
        self._ended = 0.0

    def way(self, age: int) -> str:
        """How exchange ``age`` travels, counted since adaptation began."""
        if self.winner is not None:
            return self.winner
        age -= self.late
        return next((way for first, end, way in RUNS if first <= age < end), CODED)

    def resume(self, age: int) -> None:
        """A checkpoint was loaded before exchange ``age``: runs that had begun start anew, because
        times of another job, or of other hosts, are not to be compared with these."""
        if self.winner is None and age > RUNS[0][0] + self.late:
            self.late = max(age, AGAIN) - RUNS[0][0]
            # What travels raw updates nothing, and the next chance may be 1,000 exchanges away.
            while any(self.way(n) == RAW and is_update(n) for n in range(age, age + 2 * AGAIN)):
                self.late += 1
        self._best = {RAW: math.inf, CODED: math.inf}

    def state_dict(self) -> dict[str, str | int | None]:
        """Equal on all ranks."""
        return {"winner": self.winner, "late": self.late}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.winner, self.late = state["winner"], state["late"]

    def note(self, age: int, transport: Transport, name: str) -> None:
        """An exchange has ended; after the last run all ranks decide together."""
        now, before = time.perf_counter(), self._ended
        self._ended = now
        if self.winner is not None:
            return
        age -= self.late
        for first, end, way in RUNS:
            if first < age < end:
                # The fastest one: whatever disturbs a step makes it longer.
                self._best[way] = min(self._best[way], now - before)
        if age >= RUNS[-1][1] - 1:
            mine = np.array([self._best[RAW], self._best[CODED]])
            table = transport.allgather(name + ".trial", mine).wait().reshape(-1, 2)
            raw, coded = table.mean(axis=0).tolist()
            self.decide(raw, coded, say=transport.rank == 0)

    def decide(self, raw: float, coded: float, say: bool) -> None:
        """Takes the mean over ranks of the fastest steps, in seconds; all ranks pass the same."""
        if not math.isfinite(raw) or not math.isfinite(coded):
            self.winner = CODED  # loaded in the middle on some ranks: nothing to compare
            return
        self.winner = RAW if raw < coded else CODED
        if say:
            rest = "uncompressed" if self.winner == RAW else "compressed"
            logger().info(
                f"a step takes {1e3 * coded:.1f} ms with compression and {1e3 * raw:.1f} ms "
                f"without: gradients travel {rest} from now on"
            )
