"""A bounded run of the fuzz target under AddressSanitizer and UBSan."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[1] / "fuzz" / "build.sh"
EXECUTIONS = 20_000


@pytest.mark.integration
@pytest.mark.slow
def test_decoder_survives_mutated_payloads(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    program = tmp_path / "decode_fuzz"
    env = {**os.environ, "CXX": "g++"}
    built = subprocess.run([BUILD, program, "portable"], env=env, capture_output=True, text=True)
    if built.returncode != 0 and "asan" in built.stderr:
        pytest.skip("the sanitizers' libraries are not installed")
    assert built.returncode == 0, built.stderr
    # LD_PRELOAD of a job's own tools would come before the sanitizer's runtime.
    env.pop("LD_PRELOAD", None)
    run = subprocess.run([program, str(EXECUTIONS)], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no finding" in run.stdout
