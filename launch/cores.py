"""How many cores a job on this machine has."""

from __future__ import annotations

import os
from pathlib import Path


def physical_cores() -> int:
    """Physical cores this process may use.

    Open MPI counts these, not hardware threads, as the slots of a machine.
    """
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        listed = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(listed.read_text().strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))
