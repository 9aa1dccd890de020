"""Save and resume: bit-identical with both parts of the state, close without the local one."""


def test_resume(mpi_run, tmp_path):
    script = "tests/parallel/resume.py"
    mpi_run(2, script, tmp_path, "save")
    out = mpi_run(2, script, tmp_path, "resume").stdout
    for kind in ("adam", "qoda"):
        for rank in (0, 1):
            assert f"{kind} resume rank {rank}: same=True" in out, out
    out = mpi_run(2, script, tmp_path, "resume-without-local").stdout
    # Adam keeps nothing local; QODA's differences start at zero, which its rates feel.
    assert out.count("adam resume-without-local") == out.count("same=True") == 2
    qoda = [line for line in out.splitlines() if line.startswith("qoda")]
    assert len(qoda) == 2 and all("same=False" in line for line in qoda)
    assert all(float(line.split("far=")[1]) < 0.1 for line in qoda)
