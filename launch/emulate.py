"""A cluster on one machine: hosts in network namespaces, joined by links of a chosen speed.

    sudo python launch/emulate.py --hosts 4 --rate 1gbit -- python train.py
    sudo python launch/emulate.py --hosts 2 --rate 100mbit --ranks-per-host 2 -- python train.py

Each host is a namespace with one interface, limited in both directions by a token bucket and
plugged into a switch (a bridge in a namespace of its own). mpirun starts in the first host and
reaches the others through `ip netns exec`, so ranks talk TCP over those links and nothing else.
Cores, memory and disk are shared: what is emulated is the network.

Needs root, iproute2 and Open MPI. Everything made here carries this process's number in its name
and is removed at the end, also after Ctrl-C, SIGTERM, a closed terminal, or when the job is killed.
Of several signals the first counts, and the others do not interrupt the removal. Nothing else is
touched: where a name is taken, nothing starts. SIGKILL leaves something behind: `ip netns list`
shows it, as hq and a number.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: the checkout, not launch/, belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch import run
from launch.cleanup import afterwards
from launch.errors import SetupError

SUBNET = "10.77.0"
"""A private range that hosts use among themselves; it exists inside the namespaces only."""

# The bucket holds a few milliseconds at 1 Gbit/s, and a packet waits for at most 20 ms.
_LIMIT = "burst 128kb latency 20ms"


@dataclass(frozen=True)
class Host:
    name: str
    address: str

    def sent_bytes(self) -> int:
        """Bytes that left this host's interface, headers of all layers included."""
        # `ip netns exec` mounts a /sys of its own, which shows the namespace's interfaces.
        path = "/sys/class/net/eth0/statistics/tx_bytes"
        return int(_ip("netns", "exec", self.name, "cat", path))


def usable() -> str:
    """Why namespaces cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc", "unshare"):
        if shutil.which(program) is None:
            return f"{program} is missing: install iproute2 and util-linux"
    try:
        with _namespaces([f"hq{os.getpid()}-probe"]):
            pass
    except subprocess.CalledProcessError as error:
        return f"this system does not let us make network namespaces: {error.stderr.strip()}"
    except SetupError as error:
        return error.problem
    return ""


@contextmanager
def cluster(count: int, rate: str | None) -> Iterator[list[Host]]:
    """Hosts joined by a switch, for as long as the context lasts.

    Args:
        count: number of hosts, 1 to 250.
        rate: speed of each link in each direction, as tc writes it ("1gbit"); None is unlimited.

    Raises:
        SetupError: not root, tools missing, a name that is taken, or a rate that tc does not
            understand.
    """
    if not 1 <= count <= 250:
        raise SetupError(f"--hosts must be between 1 and 250, not {count}", "choose fewer hosts")
    if reason := usable():
        raise SetupError(reason, "run as root (sudo) on a machine or container that allows it")
    mark = f"hq{os.getpid()}"
    switch = f"{mark}-switch"
    hosts = [Host(f"{mark}-{i + 1}", f"{SUBNET}.{i + 1}") for i in range(count)]
    try:
        with _namespaces([switch, *(h.name for h in hosts)]):
            _ip("-n", switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", switch, "link", "set", "br0", "up")
            for i, host in enumerate(hosts):
                _plug(host, switch, f"port{i + 1}", rate)
            _name(hosts)
            yield hosts
    except subprocess.CalledProcessError as error:
        raise SetupError(
            f"{shlex.join(error.cmd)} failed: {error.stderr.strip()}",
            "check --rate (for example 1gbit, 100mbit) and that the kernel has veth and tbf",
        ) from None


@contextmanager
def _namespaces(names: Sequence[str]) -> Iterator[None]:
    """Namespaces that are there for as long as the context lasts, and their folders in /etc."""
    _refuse_taken(names)
    made: list[str] = []

    def remove() -> None:
        for name in made:
            _remove(name)

    with afterwards(remove):
        for name in names:
            made.append(name)  # before it is there: a signal can come in between
            try:
                _ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                if error.returncode > 0:  # it was refused, so what has this name is not ours
                    made.remove(name)
                raise
        yield


def _refuse_taken(names: Sequence[str]) -> None:
    """Raises SetupError where something of these names is there: it is not ours to remove."""
    for name in names:
        for path in (Path("/run/netns") / name, Path("/etc/netns") / name):
            if path.exists():
                raise SetupError(
                    f"{path} is there already and was not made by this process",
                    f"if nothing uses it: ip netns delete {name}; rm -r /etc/netns/{name}",
                )


def _plug(host: Host, switch: str, port: str, rate: str | None) -> None:
    inside = ["-n", host.name]
    _ip("link", "add", "eth0", "netns", host.name, "type", "veth",
        "peer", "name", port, "netns", switch)  # fmt: skip
    _ip(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip(*inside, "link", "set", "eth0", "up")
    _ip(*inside, "link", "set", "lo", "up")
    _ip("-n", switch, "link", "set", port, "master", "br0", "up")
    if rate is not None:
        for namespace, device in ((host.name, "eth0"), (switch, port)):
            limit = f"qdisc add dev {device} root tbf rate {rate} {_LIMIT}"
            _run(["tc", "-n", namespace, *limit.split()])


def _name(hosts: Sequence[Host]) -> None:
    """Gives every host a /etc/hosts of its own; `ip netns exec` mounts it over the machine's."""
    text = "127.0.0.1 localhost\n" + "".join(f"{h.address} {h.name}\n" for h in hosts)
    for host in hosts:
        folder = Path("/etc/netns") / host.name
        folder.mkdir(parents=True)
        (folder / "hosts").write_text(text)


def _remove(name: str) -> None:
    pids = _try("ip", "netns", "pids", name).stdout
    for pid in pids.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    _try("ip", "netns", "delete", name)
    shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def _try(*command: str) -> subprocess.CompletedProcess[str]:
    # In a session of its own: the terminal's Ctrl-C does not reach it.
    return subprocess.run(command, capture_output=True, text=True, start_new_session=True)


def _ip(*words: str) -> str:
    return _run(["ip", *words])


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def command(hosts: Sequence[Host], ranks: int, argv: Sequence[str], agent: Path) -> run.Job:
    """The job that starts ``ranks`` ranks of ``argv`` on each host, from inside the first one."""
    base = run.command(ranks * len(hosts), argv, launcher="mpirun")
    where = ",".join(f"{h.name}:{ranks}" for h in hosts)
    mpirun, *rest = base.argv
    agent.write_text(
        "#!/bin/sh\n# mpirun calls this as it would call ssh: HOST COMMAND...\n"
        'host=$1; shift\nexec ip netns exec "$host" unshare --uts '
        'sh -c "hostname $host; $*"\n'
    )
    agent.chmod(0o755)
    network = f"{SUBNET}.0/24"
    flags = ["-H", where, "--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp",
             "--mca", "btl_tcp_if_include", network,
             "-x", "PATH", "-x", "OMP_NUM_THREADS"]  # fmt: skip
    if _major(mpirun) >= 5:
        flags += ["--mca", "plm_ssh_agent", str(agent), "--prtemca", "prte_if_include", network]
    else:
        flags += ["--mca", "plm_rsh_agent", str(agent), "--mca", "oob_tcp_if_include", network]
    flags += [w for k in base.env if k.startswith(("HOROVOD_", "PYTHONPATH")) for w in ("-x", k)]
    inner = shlex.join([mpirun, *flags, *rest])
    start = f"hostname {hosts[0].name}; exec {inner}"
    whole = ["ip", "netns", "exec", hosts[0].name, "unshare", "--uts", "sh", "-c", start]
    return run.Job(whole, base.env, base.notes)


def _major(mpirun: str) -> int:
    """Major version of Open MPI, the one MPI whose launcher is asked to use our agent."""
    text = _run([mpirun, "--version"])
    found = re.search(r"Open MPI\) (\d+)\.", text)
    if found is None:
        raise SetupError(
            f"{mpirun} is not Open MPI: {text.splitlines()[0]}", "put Open MPI first on PATH"
        )
    return int(found[1])


def execute(job: run.Job, timeout: float | None = None) -> int:
    """Runs the job in a process group of its own; the group is dead when this returns.

    Returns:
        The job's exit status; 128 and the signal's number where one has ended it.
    """
    child = subprocess.Popen(job.argv, env=job.env, start_new_session=True)

    def kill() -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(child.pid, sign)
            except ProcessLookupError:
                break
            time.sleep(0.2)

    with afterwards(kill):
        status = child.wait(timeout)
        return status if status >= 0 else 128 - status


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="launch/emulate.py", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", help="speed of every link, such as 1gbit; default: unlimited")
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--timeout", type=float, help="seconds after which the job is killed")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARGS")
    options = parser.parse_args()
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            cluster(options.hosts, options.rate) as hosts,
        ):
            job = command(hosts, options.ranks_per_host, program, Path(folder) / "agent")
            for note in job.notes:
                print(f"launch: {note}", file=sys.stderr)
            status = execute(job, options.timeout)
            sent = ", ".join(f"{host.sent_bytes():,}" for host in hosts)
            print(f"launch: bytes sent by each host: {sent}", file=sys.stderr)
            return status
    except (SetupError, ValueError) as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    except subprocess.TimeoutExpired:
        print(f"launch: the job ran longer than {options.timeout} s", file=sys.stderr)
        return 124
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
