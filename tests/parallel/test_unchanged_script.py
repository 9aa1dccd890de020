"""``python -m horovod_qoda`` and a script that was written for Horovod alone."""

import re

SCRIPT = "tests/parallel/stock_script.py"


def sizes(finished):
    found = re.findall(r"done epochs=(\d+) loss=\S+ raw=(\d+) wire=(\d+)", finished.stdout)
    assert len(found) == 1, finished.stdout
    return tuple(map(int, found[0]))


def test_compression_replaces_the_scripts_none(mpi_run):
    finished = mpi_run(2, "horovod_qoda", "--bits", "2.5", SCRIPT, "--epochs", "2")
    epochs, raw, wire = sizes(finished)
    assert epochs == 2 and wire < raw / 4
    assert "NoneCompressor is replaced" in finished.stderr


def test_fp16_is_replaced_and_respected(mpi_run):
    _, raw, wire = sizes(mpi_run(2, "horovod_qoda", SCRIPT, "--fp16-allreduce"))
    assert wire < raw / 4
    kept = mpi_run(2, "horovod_qoda", "--respect-script", SCRIPT, "--fp16-allreduce")
    _, raw, wire = sizes(kept)
    assert wire == raw // 2 and "not layerwise" in kept.stderr


def test_module_and_traceback(mpi_run):
    finished = mpi_run(
        1, "horovod_qoda", "-m", "tests.parallel.stock_script", "--fail", check=False
    )
    assert finished.returncode != 0
    assert 'KeyError: "the script\'s own mistake"' in finished.stderr
    assert 'stock_script.py", line' in finished.stderr


def test_bad_setting_is_refused_before_the_script_runs(mpi_run):
    finished = mpi_run(1, "horovod_qoda", "--bits", "-3", SCRIPT, check=False)
    assert finished.returncode != 0
    assert "bits must be between" in finished.stderr and "done" not in finished.stdout
