"""The command lines that start ranks, and what they are made from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch import horovod_source, mpi, package, paths, run, stamp
from launch.cores import physical_cores

ENVIRONMENT = Path(sys.prefix)


def launcher_that_prints(folder: Path, text: str) -> str:
    path = folder / "mpirun"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("printed", "family", "version"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to https://...", "Open MPI", "5.0.11"),
        ("mpirun (Open MPI) 4.1.4", "Open MPI", "4.1.4"),
        ("mpirun (IBM Spectrum MPI) 10.04.03.01rtm0", "Spectrum MPI", "10.04.03.01"),
        ("HYDRA build details:\n    Version:          4.0.2\n    CC: gcc", "MPICH", "4.0.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.8 Build 2022", "Intel MPI", "2021.8"),
    ],
)
def test_an_mpi_is_known_by_what_its_launcher_prints(tmp_path, printed, family, version):
    found = mpi.identify(launcher_that_prints(tmp_path, printed))
    assert found is not None
    assert (found.family, found.version, found.mpicxx) == (family, version, None)
    assert str(tmp_path) in found.identity


def test_an_unknown_launcher_is_no_mpi(tmp_path):
    assert mpi.identify(launcher_that_prints(tmp_path, "some launcher 1.0")) is None
    assert mpi.identify(str(tmp_path / "absent")) is None
    assert mpi.search(str(tmp_path / "empty")) is None


def test_an_mpi_inside_an_environment_is_the_same_in_every_environment(tmp_path):
    launcher_that_prints(tmp_path, "mpirun (Open MPI) 5.0.11")
    inside = mpi.search(str(tmp_path), inside=tmp_path)
    assert inside is not None and inside.identity == "Open MPI 5.0.11 (wheel)"


@pytest.mark.parametrize("np", [0, -1, 1.5, "2", True])
def test_a_count_that_is_no_count_is_refused(np):
    with pytest.raises(ValueError, match="np must be a whole number"):
        run.command(np, ["python"], venv=ENVIRONMENT)


def test_an_unknown_launcher_name_and_an_empty_program_are_refused():
    with pytest.raises(ValueError, match="launcher must be"):
        run.command(1, ["python"], launcher="srun", venv=ENVIRONMENT)
    with pytest.raises(ValueError, match="nothing to start"):
        run.command(1, [], venv=ENVIRONMENT)


def open_mpi(folder: Path, version: str) -> Path:
    environment = folder / "venv"
    (environment / "bin").mkdir(parents=True)
    launcher_that_prints(environment / "bin", f"mpirun (Open MPI) {version}")
    for name in ("horovodrun", "python"):
        (environment / "bin" / name).touch(mode=0o755)
    return environment


@pytest.mark.parametrize(
    ("version", "crowded", "alone"),
    [("5.0.11", "--map-by slot:OVERSUBSCRIBE", "--map-by slot"), ("4.1.4", "--oversubscribe", "")],
)
def test_open_mpi_is_told_where_ranks_outnumber_cores(tmp_path, version, crowded, alone):
    environment = open_mpi(tmp_path, version)
    many = physical_cores() + 1
    for launcher in ("mpirun", "horovodrun"):
        line = " ".join(run.command(many, ["x"], launcher=launcher, venv=environment).argv)
        assert crowded in line
        assert "--bind-to none" in line and "mpi_yield_when_idle 1" in line
        line = " ".join(run.command(1, ["x"], launcher=launcher, venv=environment).argv)
        assert crowded not in line and alone in line


def test_variables_of_a_job(tmp_path):
    environment = open_mpi(tmp_path, "5.0.11")
    job = run.command(2, ["x"], venv=environment, environ={"PATH": "/usr/bin"})
    assert job.env["PATH"].split(":")[0] == str(environment / "bin")
    assert job.env["OMP_NUM_THREADS"] == str(max(1, physical_cores() // 2))
    chosen = run.command(
        2, ["x"], venv=environment, environ={"PATH": "/usr/bin", "OMP_NUM_THREADS": "7"}
    )
    assert chosen.env["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(("euid", "told"), [(0, True), (1000, False)])
def test_root_is_allowed_for_root_alone_and_said(tmp_path, monkeypatch, euid, told):
    monkeypatch.setattr("os.geteuid", lambda: euid)
    environment = open_mpi(tmp_path, "5.0.11")
    job = run.command(1, ["x"], venv=environment, environ={"PATH": "/usr/bin"})
    assert ("OMPI_ALLOW_RUN_AS_ROOT" in job.env) is told
    assert any("root" in note for note in job.notes) is told


def test_a_stamp_is_read_back_and_a_torn_one_is_empty(tmp_path):
    assert stamp.read(tmp_path) == {}
    stamp.write(tmp_path, {"mpi": "Open MPI 5.0.11 (wheel)"})
    assert stamp.read(tmp_path) == {"mpi": "Open MPI 5.0.11 (wheel)"}
    for file in tmp_path.iterdir():
        file.write_text('{"mpi": "Open')
    assert stamp.read(tmp_path) == {}


def test_the_cache_follows_the_xdg_specification():
    assert paths.cache_dir({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/horovod_qoda")
    assert paths.cache_dir({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/horovod_qoda"
    assert paths.cache_dir({}) == Path.home() / ".cache/horovod_qoda"


def test_the_native_key_follows_contents_and_names(tmp_path):
    folder = tmp_path / "horovod_qoda" / "native"
    folder.mkdir(parents=True)
    (tmp_path / "setup.py").write_text("")
    keys = [package.native_key(tmp_path)]
    for name, text in (("a.cpp", "1"), ("a.cpp", "2"), ("b.hpp", "2"), ("notes.md", "3")):
        (folder / name).write_text(text)
        keys.append(package.native_key(tmp_path))
    assert len(set(keys[:4])) == 4
    assert keys[4] == keys[3]


@pytest.mark.parametrize(
    ("torch_version", "standard"),
    [("2.0.1", 14), ("2.1.0+cu121", 17), ("2.12.1", 17), ("2.13.0+cpu", 20), ("3.0.0", 20)],
)
def test_the_language_standard_follows_pytorch(torch_version, standard):
    assert horovod_source.cxx_standard(torch_version) == standard
