"""What the doctor says of what it is shown: libraries, launchers, hosts, speeds."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from horovod_qoda import cost
from horovod_qoda.cli import devices, doctor, installation, mpi, verdict
from horovod_qoda.cli.findings import BROKEN, NOTE, OK, Finding, broken
from horovod_qoda.cli.speed import Codec, Network, codec, machine


@pytest.mark.parametrize(
    ("text", "family", "version"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs", "Open MPI", "5.0.11"),
        ("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4", "Open MPI", "4.1.4"),
        ("mpirun (IBM Spectrum MPI) 10.04.03.01rtm0", "Spectrum MPI", "10.04.03.01"),
        ("HYDRA build details:\n    Version:          4.0.2\n", "MPICH", "4.0.2"),
        ("MPICH Version:\t4.3.2\nMPICH Release date: x", "MPICH", "4.3.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.8 Build 2022", "Intel MPI", "2021.8"),
        ("Intel(R) MPI Library 2021.13 for Linux* OS\n", "Intel MPI", "2021.13"),
        ("some launcher 1.0", "", ""),
    ],
)
def test_libraries_and_launchers_name_their_mpi(text, family, version):
    assert mpi.parse(text) == (family, version)


@pytest.mark.parametrize(
    ("variables", "promised"),
    [
        ({}, (0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}, (3, 8)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2)),
        # In Slurm's batch step the allocation is not what was started.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
    ],
)
def test_what_launchers_promise(variables, promised):
    assert mpi.promised(variables) == promised


@dataclass
class Loaded:
    """A library as it could be loaded elsewhere."""

    version: str = "Open MPI v5.0.11, package: x"
    path: str = "/opt/openmpi/lib/libmpi.so.40"
    level: str = "MULTIPLE"

    def thread_level(self) -> str:
        return self.level


def test_a_launcher_of_the_same_mpi_is_fine():
    found = list(installation.mpi_library(Loaded(), ("/x/mpirun", "mpirun (Open MPI) 5.0.9")))
    assert not broken(found)
    assert "thread level MULTIPLE" in found[0].text


@pytest.mark.parametrize("printed", ["mpirun (Open MPI) 4.1.4", "HYDRA\n Version: 4.2.1"])
def test_a_launcher_of_another_mpi_is_broken_with_the_way_out(printed):
    found = broken(installation.mpi_library(Loaded(), ("/usr/bin/mpirun", printed)))
    (finding,) = found
    assert "every rank would believe that it is alone" in finding.text
    assert "export PATH=" in finding.remedy and "HOROVOD_WITH_MPI=1" in finding.remedy


def test_too_low_a_thread_level_is_broken():
    found = broken(installation.mpi_library(Loaded(level="SINGLE"), ("", "")))
    assert len(found) == 1 and "thread level SINGLE" in found[0].text


def test_ranks_that_are_each_alone():
    (finding,) = doctor.alone(1, 4, Loaded())
    assert finding.status == BROKEN and "started 4 processes" in finding.text
    assert not list(doctor.alone(4, 4, Loaded()))
    assert not list(doctor.alone(1, 1, Loaded()))


ROW = {
    "host": "a", "cores": 8, "of": 8, "load": 0.5, "threads": 2, "codec": True,
    "simd": "avx512 path", "capability": "AVX512", "python": "3.11.7", "torch": "2.13.0",
    "horovod": "0.28.1", "horovod_qoda": "0.1",
}  # fmt: skip


def test_equal_hosts_need_one_line():
    rows = [{**ROW, "host": host} for host in "aabb"]
    (finding,) = doctor.hosts(rows)
    assert finding.status == OK and finding.text == "4 ranks on 2 host(s): a: 2, b: 2"


@pytest.mark.parametrize(
    ("changed", "status", "says"),
    [
        ({"torch": "2.12.0"}, BROKEN, "differ in torch: 2.13.0 on 1, 2.12.0 on 1"),
        ({"horovod_qoda": ""}, BROKEN, "none on 1"),
        ({"capability": "AVX2"}, NOTE, "drift apart"),
        ({"codec": False, "simd": "does not load"}, BROKEN, "rank 1 on b: does not load"),
        ({"load": 33.0}, NOTE, "b is busy with other work (load 33 on 8 cores)"),
        ({"cores": 1}, NOTE, "bound to one core of 8"),
        ({"threads": 16}, NOTE, "1 ranks on 8 cores with 16 compute threads"),
    ],
)
def test_what_differs_is_named_with_a_remedy(changed, status, says):
    rows = [ROW, {**ROW, "host": "b", **changed}]
    found = [f for f in doctor.hosts(rows) if f.status != OK]
    assert len(found) == 1, found
    assert found[0].status == status and says in found[0].text and found[0].remedy


def test_a_finding_prints_its_remedy_below():
    lines = str(Finding("mpi", "wrong", BROKEN, "mend it")).splitlines()
    assert lines[0].split() == ["mpi", "BROKEN:", "wrong"]
    assert lines[1].split() == ["remedy:", "mend", "it"]


def test_the_codec_here_passes_its_own_check():
    measured = codec()
    (finding,) = verdict.codec_speed(measured)
    assert finding.status == OK
    assert measured.bits == pytest.approx(3.0, rel=0.03)
    wrong = Codec(**{**measured.__dict__, "relative_error": 1.0})
    assert broken(verdict.codec_speed(wrong))[0].remedy.startswith("HOROVOD_QODA_SIMD=portable")


SLOW = Codec(1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 3.0, 0.03)


def test_the_cost_model_gets_what_was_measured():
    network = Network(latency=3e-3, bandwidth=1e8)
    speeds = machine(SLOW, network, 4)
    tiny = cost.Exchange(2, 4, "fp32")
    assert cost.seconds(tiny, speeds) == pytest.approx(3e-3, rel=1e-3)
    large = cost.Exchange(2**26, 4, "fp32", buffer=2**40)
    assert cost.seconds(large, speeds) == pytest.approx(1.5 * 2**28 / 1e8, rel=0.02)


def test_the_verdict_follows_the_link_and_the_measurement_overrules_it():
    slow, fast = Network(1e-3, 1e7), Network(1e-4, 1e11)
    pays = list(verdict.verdict(machine(SLOW, slow, 4), 4, "scatter_reduce", {}))[-1]
    assert "compression pays here" in pays.text and "predicted" in pays.text
    loses = list(verdict.verdict(machine(SLOW, fast, 4), 4, "scatter_reduce", {}))[-1]
    assert loses.status == NOTE and "does not pay" in loses.text
    times = {"fp32": 1.0, "fp16": 0.5, "allgather": 2.0, "scatter_reduce": 2.0}
    overruled = list(verdict.verdict(machine(SLOW, slow, 4), 4, "scatter_reduce", times))[-1]
    assert "does not pay" in overruled.text and "0.5x fp32, measured" in overruled.text


def test_a_faster_topology_than_the_automatic_one_is_named():
    times = {"fp32": 1.0, "fp16": 0.5, "allgather": 0.2, "scatter_reduce": 0.4}
    note = list(verdict.measured_exchange(16, times, "scatter_reduce"))[-1]
    assert note.status == NOTE and note.remedy == "HOROVOD_QODA_TOPOLOGY=allgather"
    even = {**times, "allgather": 0.39}
    assert all(f.status == OK for f in verdict.measured_exchange(16, even, "scatter_reduce"))


def test_what_auto_picks_is_what_the_exchange_picks(monkeypatch):
    assert verdict.automatic(2) == "allgather" and verdict.automatic(16) == "scatter_reduce"
    assert verdict.automatic(16, hosts=object()) == "two_level"
    monkeypatch.setenv("HOROVOD_QODA_TOPOLOGY", "allgather")
    assert verdict.automatic(16) == "allgather"


def test_only_one_rank_speaks_and_the_file_has_everything(tmp_path, capsys):
    for speaks in (True, False):
        report = doctor.Report(speaks)
        report.add([Finding("mpi", "wrong", BROKEN, "mend it")])
        report.close(tmp_path / f"{speaks}.json")
    printed = capsys.readouterr().out
    assert printed.count("wrong") == 1 and "1 broken" in printed
    assert json.loads((tmp_path / "True.json").read_text())["findings"][0]["remedy"] == "mend it"
    assert not (tmp_path / "False.json").exists()


def test_devices_say_by_what_their_gradients_are_coded(monkeypatch):
    monkeypatch.delenv("HOROVOD_QODA_KERNELS", raising=False)
    (none,) = devices.cuda([], "12.8")
    assert none.status == OK and "no device here (PyTorch for CUDA 12.8" in none.text
    (good, bad) = devices.cuda(["A", "B"], "12.8", {"cuda:0": "", "cuda:1": "of x"}.get)
    assert good.status == OK and "cuda:0 (A)" in good.text and "native codec" in good.text
    assert bad.status == NOTE and "copied to the host as float32" in bad.text
    assert "because of x" in bad.text
    monkeypatch.setenv("HOROVOD_QODA_KERNELS", "native")
    (asked,) = devices.cuda(["A"], "12.8", lambda device: "")
    assert "=native asks for it" in asked.text and asked.remedy == "HOROVOD_QODA_KERNELS=auto"
    monkeypatch.setenv("HOROVOD_QODA_KERNELS", "gpu")
    (refused,) = devices.cuda(["A"], "12.8")
    assert refused.status == BROKEN and "auto, native or triton" in refused.text
    monkeypatch.setenv("HOROVOD_QODA_KERNELS", "auto")
    monkeypatch.setenv("HOROVOD_QODA_HOST_CODED", "65536")
    (small,) = devices.cuda(["A"], "12.8", lambda device: "")
    assert (
        small.status == OK
        and "payloads of up to 65536 symbols that leave from the host" in small.text
    )
    monkeypatch.setenv("HOROVOD_QODA_HOST_CODED", "64k")
    (refused,) = devices.cuda([], "12.8")
    assert refused.status == BROKEN and refused.remedy == "unset HOROVOD_QODA_HOST_CODED"


class Built:
    """What a build of Horovod says about itself."""

    def __init__(self, cuda, nccl):
        self.cuda_built, self.nccl_built = lambda: cuda, lambda: nccl


def test_payloads_of_devices_say_how_they_travel(monkeypatch):
    for name in ("HOROVOD_QODA_PAYLOADS", "HOROVOD_ENABLE_ASYNC_COMPLETION"):
        monkeypatch.delenv(name, raising=False)
    assert list(devices.payloads([], Built(False, 0))) == []
    (default,) = devices.payloads(["A"], Built(True, 22800))
    assert default.status == OK and "by MPI from pinned host memory" in default.text
    assert "HOROVOD_QODA_PAYLOADS=device" in default.text and "NCCL" in default.text
    monkeypatch.setenv("HOROVOD_QODA_PAYLOADS", "device")
    (without,) = devices.payloads(["A"], Built(False, 0))
    assert without.status == NOTE and "built without CUDA" in without.text
    assert without.remedy == "make setup ARGS=--gpu"
    (tensors,) = devices.payloads(["A"], Built(True, 0))
    assert "as CUDA tensors, by MPI: Horovod was built without NCCL" in tensors.text
    monkeypatch.setenv("HOROVOD_ENABLE_ASYNC_COMPLETION", "1")
    (early,) = devices.payloads(["A"], Built(True, 22800))
    assert early.status == NOTE and early.remedy == "HOROVOD_QODA_PAYLOADS=host"
    monkeypatch.setenv("HOROVOD_QODA_PAYLOADS", "nccl")
    (refused,) = devices.payloads([], Built(True, 0))
    assert refused.status == BROKEN and "host or device" in refused.text


def test_two_levels_are_not_promised_where_gradients_would_leave_their_devices(monkeypatch):
    def leave(kernels="auto", way="host", names=("A",), built=(True, 22800), why=""):
        monkeypatch.setenv("HOROVOD_QODA_KERNELS", kernels)
        monkeypatch.setenv("HOROVOD_QODA_PAYLOADS", way)
        return devices.leave_device(list(names), Built(*built), lambda device: why)

    monkeypatch.delenv("HOROVOD_ENABLE_ASYNC_COMPLETION", raising=False)
    assert leave() and leave(way="device", built=(False, 0))
    assert not leave(way="device") and not leave(names=()) and not leave(why="no Triton")
    assert not leave(kernels="native") and not leave(kernels="gpu") and not leave(way="nccl")
