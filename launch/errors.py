"""The one error of set-up: what is wrong, and what to do about it."""

from __future__ import annotations


class SetupError(Exception):
    """Set-up cannot go on.

    Attributes:
        problem: what was found, in one sentence or a few lines.
        remedy: the command or choice that puts it right.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\nremedy: {remedy}")
        self.problem = problem
        self.remedy = remedy
