"""What was set up, kept inside the virtual environment so that it goes when the environment goes.

A flat dictionary: for each step of set-up the key under which it was last done, and facts that jobs
need later ("mpi": the identity of the MPI that Horovod was built with).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_NAME = "horovod_qoda-setup.json"


def read(venv: Path) -> dict[str, Any]:
    """The stamp, empty where there is none or it cannot be read."""
    try:
        found = json.loads((venv / _NAME).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(venv: Path, facts: dict[str, Any]) -> None:
    """Replace the stamp in one step: an interrupted set-up leaves the old one or the new one."""
    temporary = venv / f".{_NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(temporary, venv / _NAME)
