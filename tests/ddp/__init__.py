"""Cases of ``tests/ddp_column.py``: called on each rank, they return, or raise, what came out."""

from tests.ddp import failures, loops, models

__all__ = ["failures", "loops", "models"]
