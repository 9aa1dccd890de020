"""What waits for what on a device, with streams that only keep the order of what is queued.

The real ones need a device; tests marked `gpu` go through them.
"""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # for the tests that come after these
pytest.importorskip("triton", reason="Triton is not installed: pip install horovod-qoda[gpu]")

from horovod_qoda.kernels.streams import Mark, Streams  # noqa: E402

DEVICE = torch.device("cuda:0")


class Stream:
    def __init__(self, device=DEVICE):
        self.device, self.before = device, set()

    def queue(self, work):
        """Queues work; returns everything that has ended when it begins."""
        before = set(self.before)
        self.before.add(work)
        return before

    def wait_stream(self, other):
        self.before |= other.before


class Event:
    def __init__(self):
        self.behind = None

    def record(self):
        self.behind = set(torch.cuda.current_stream().before)


@pytest.fixture
def now(monkeypatch):
    """The calling thread's current stream, by device."""
    current = {DEVICE: Stream(), torch.device("cuda:1"): Stream(torch.device("cuda:1"))}

    @contextlib.contextmanager
    def using(stream):
        before, current[stream.device] = current[stream.device], stream
        yield
        current[stream.device] = before

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", using)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=DEVICE: current[device])
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    return current


def gradient(device=DEVICE):
    used = []
    return SimpleNamespace(is_cuda=True, device=device, record_stream=used.append, used=used)


def test_a_copy_waits_for_its_gradient_and_for_nothing_later(now):
    streams, source = Streams(DEVICE), gradient()
    now[DEVICE].queue("first gradient")
    with streams.taking(source):
        copy = now[DEVICE].queue("first copy")
        mark = Mark(DEVICE)
        mark.set()
    now[DEVICE].queue("second gradient")
    with streams.taking(gradient()):
        now[DEVICE].queue("second copy")
    with streams.working():
        encode = now[DEVICE].queue("encode")
    assert copy == {"first gradient"} and source.used
    assert mark._event.behind == {"first gradient", "first copy"}
    # The host asks the mark before it encodes: no event may tie payloads to later gradients.
    assert encode == set()
    assert "first copy" not in now[DEVICE].before, "the training stream waits for the exchange"


def test_a_gradient_of_another_device_is_waited_for_there(now):
    other = torch.device("cuda:1")
    streams, source = Streams(DEVICE), gradient(other)
    now[other].queue("gradient")
    with streams.taking(source):
        assert now[DEVICE].queue("copy") == {"gradient"}
    assert not source.used


def test_the_next_mean_is_written_after_the_last_one_was_read(now):
    streams = Streams(DEVICE)
    now[DEVICE].queue("mean into p.grad")
    streams.follow()
    now[DEVICE].queue("step")
    with streams.working():
        assert now[DEVICE].queue("decode") == {"mean into p.grad"}


def test_memory_made_for_both_streams_is_there_for_both(now):
    streams, made = Streams(DEVICE), gradient()
    with streams.working():
        now[DEVICE].queue("zeros")
    streams.share(made)
    with streams.taking(None):
        assert now[DEVICE].queue("copy") == {"zeros"}
    assert made.used
