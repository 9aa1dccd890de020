"""The helper that starts ranks: what it returns, and that nothing outlives it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests import ranks


def test_a_failing_command_fails_the_test_with_all_its_output():
    script = "import sys; print('to out'); print('to err', file=sys.stderr); sys.exit(3)"
    with pytest.raises(pytest.fail.Exception) as caught:
        ranks.start([sys.executable, "-c", script], dict(os.environ), timeout=60)
    for part in ("ended with 3", "to out", "to err"):
        assert part in str(caught.value)


def test_a_command_past_its_time_takes_its_children_along(tmp_path: Path):
    pid_file = tmp_path / "pid"
    # The child leaves the process group, as MPI launchers make ranks do, and ignores SIGTERM.
    child = (
        "import os, signal, time; os.setpgid(0, 0); signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(pytest.fail.Exception, match="ran past"):
        ranks.start([sys.executable, "-c", parent], dict(os.environ), timeout=10)
    pid = int(pid_file.read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")
