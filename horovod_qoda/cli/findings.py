"""What a check found: a line, and where something is broken the command that repairs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, NOTE, BROKEN = "ok", "note", "BROKEN"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        area: what was looked at, one word.
        text: what was found.
        status: `OK`; `NOTE`, works but could be better; `BROKEN`, jobs will fail or be wrong.
        remedy: for the last two, a command or a choice.
    """

    area: str
    text: str
    status: str = OK
    remedy: str = ""

    def __str__(self) -> str:
        mark = "" if self.status == OK else f"{self.status}: "
        lines = f"{mark}{self.text}".splitlines()
        if self.remedy:
            lines += [f"remedy: {self.remedy}".replace("\n", "\n" + " " * 12)]
        return "\n".join(
            f"{self.area if i == 0 else '':<11} {line}" for i, line in enumerate(lines)
        )


def broken(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status == BROKEN]
