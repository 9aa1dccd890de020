"""Save and resume: bit-identical with both parts of the state, close without the local one."""


def test_resume(mpi_run, tmp_path):
    script = "tests/parallel/resume.py"
    mpi_run(2, script, tmp_path, "save", timeout=400)
    out = mpi_run(2, script, tmp_path, "resume", timeout=400).stdout
    for kind in ("adam", "qoda", "separated", "stock"):
        for rank in (0, 1):
            assert f"{kind} resume rank {rank}: same=True" in out, out
    out = mpi_run(2, script, tmp_path, "resume-without-local", timeout=400).stdout
    # Adam and the separated rates use no differences; coupled ones feel that they start at zero.
    for kind in ("adam", "qoda", "separated", "stock"):
        lines = [line for line in out.splitlines() if line.startswith(f"{kind} ")]
        assert len(lines) == 2, out
        unharmed = kind in ("adam", "separated")
        assert all(f"same={unharmed}" in line for line in lines), lines
        assert all(float(line.split("far=")[1]) < 0.1 for line in lines), lines
