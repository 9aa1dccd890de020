"""The examples' images: where they are looked for, what is refused, what stands in for them."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import _data  # noqa: E402
import _metrics  # noqa: E402
import _models  # noqa: E402

TRAIN, HELDOUT = _data.FILES


def idx(images: np.ndarray) -> bytes:
    header = np.array([0x803, len(images), 28, 28], ">u4").tobytes()
    return header + images.astype(np.uint8).tobytes()


@pytest.fixture
def small(monkeypatch) -> dict[str, np.ndarray]:
    """The real file names with 30 and 10 images, and checksums of what `pack` makes of them."""
    seed = 3
    print("seed", seed)
    generator = np.random.default_rng(seed)
    images = {
        TRAIN: generator.integers(0, 256, (30, 784), np.uint8),
        HELDOUT: generator.integers(0, 256, (10, 784), np.uint8),
    }
    files = {n: (hashlib.md5(pack(x)).hexdigest(), len(x)) for n, x in images.items()}
    monkeypatch.setattr(_data, "FILES", files)
    return images


def pack(images: np.ndarray) -> bytes:
    return gzip.compress(idx(images), mtime=0)


def write(folder: Path, images: dict[str, np.ndarray], packed: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, x in images.items():
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(pack(x) if packed else idx(x))
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Neither the Debian package nor a cache on this machine."""
    monkeypatch.setattr(_data, "DEBIAN", tmp_path / "no-package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("packed", [True, False])
def test_images_of_a_given_folder_come_back_as_they_are(tmp_path, small, packed):
    folder = write(tmp_path / "given", small, packed)
    assert _data.locate(folder) == folder
    images = _data.load(folder)
    np.testing.assert_array_equal(images.train, small[TRAIN])
    np.testing.assert_array_equal(images.heldout, small[HELDOUT])
    assert str(folder) in images.name


def test_a_given_folder_without_the_files_is_an_error_not_a_reason_to_look_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"--data {tmp_path}: needs {TRAIN}"):
        _data.locate(tmp_path)


def test_package_before_cache_before_digits(tmp_path, small, nowhere, monkeypatch, capsys):
    assert _data.locate(download=False) is None
    assert "dataset-fashion-mnist" in capsys.readouterr().out
    cache = write(_data.cache_folder(), small, packed=True)
    assert cache.is_relative_to(tmp_path)
    assert _data.locate(download=False) == cache
    package = write(tmp_path / "package", small, packed=True)
    monkeypatch.setattr(_data, "DEBIAN", package)
    assert _data.locate(download=False) == package
    assert _data.locate(_data.DIGITS) is None


class Server:
    """Serves bytes by path from a thread, on a free port."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.asked: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                found = files.get(self.path)
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(found or b"")))
                self.end_headers()
                self.wfile.write(found or b"")

            def log_message(self, *ignored):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._http.shutdown()
        self._http.server_close()


def test_a_download_is_checked_kept_and_not_repeated(tmp_path, small):
    with Server({f"/{name}.gz": pack(x) for name, x in small.items()}) as server:
        folder = tmp_path / "cache"
        assert _data.fetch(folder, "127.0.0.1", server.port) == folder
        assert sorted(server.asked) == sorted(f"/{name}.gz" for name in small)
        np.testing.assert_array_equal(_data.load(folder).train, small[TRAIN])
        assert _data.fetch(folder, "127.0.0.1", server.port) == folder
        assert len(server.asked) == 2
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.gz" for name in small)


def test_a_download_with_the_wrong_checksum_is_not_kept(tmp_path, small, capsys):
    wrong = {f"/{name}.gz": pack(x[::-1]) for name, x in small.items()}
    with Server(wrong) as server:
        assert _data.fetch(tmp_path / "cache", "127.0.0.1", server.port) is None
    assert "MD5" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_gone_and_a_host_that_is_gone_are_said(tmp_path, small, capsys):
    with Server({}) as server:
        assert _data.fetch(tmp_path / "cache", "127.0.0.1", server.port) is None
    assert "404" in capsys.readouterr().out
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert _data.fetch(tmp_path / "cache", "127.0.0.1", unused.getsockname()[1]) is None
    assert "no answer from 127.0.0.1" in capsys.readouterr().out


def test_damaged_and_foreign_files_are_named(tmp_path, small):
    folder = write(tmp_path / "bad", small, packed=True)
    path = folder / f"{TRAIN}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{TRAIN}.gz: not a whole gzip file"):
        _data.load(folder)
    path.write_bytes(gzip.compress(idx(small[HELDOUT])))
    with pytest.raises(ValueError, match="not 30 images of 28x28"):
        _data.load(folder)
    path.write_bytes(gzip.compress(b"short"))
    with pytest.raises(ValueError, match="not 30 images"):
        _data.load(folder)


def test_digits_stand_in_and_say_so():
    images = _data.load(None)
    assert "NOT Fashion-MNIST" in images.name
    assert images.train.shape == (1500, 784) and images.heldout.shape == (297, 784)
    assert images.train.dtype == np.uint8 and images.train.max() == 255
    # Averaged over 3.5 pixels the 28x28 are the 8x8 again, a little blurred.
    from sklearn.datasets import load_digits

    small = load_digits().images[0] / 16
    large = torch.from_numpy(images.train[0].reshape(1, 1, 28, 28) / 255.0)
    back = torch.nn.functional.interpolate(large, (8, 8), mode="area")[0, 0].numpy()
    assert np.corrcoef(back.ravel(), small.ravel())[0, 1] >= 0.95


@pytest.mark.parametrize("size", [1, 3, 4])
def test_shards_are_disjoint_and_together_all(size):
    images = np.arange(22)
    parts = [_data.shard(images, rank, size) for rank in range(size)]
    assert sorted(np.concatenate(parts)) == list(range(22))


def test_sliced_wasserstein_of_a_shift_and_of_itself():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(500, 20, generator=generator)
    assert _metrics.sliced_wasserstein(x, x[torch.randperm(500, generator=generator)]) == 0
    # Shifted by v, every projection moves by |<v, u>|: its mean over u is near |v| sqrt(2/(pi d)).
    v = torch.zeros(20)
    v[3] = 2.0
    expected = 2.0 * (2 / (torch.pi * 20)) ** 0.5
    found = _metrics.sliced_wasserstein(x, x + v, directions=20_000)
    assert found == pytest.approx(expected, rel=0.03)
    with pytest.raises(ValueError, match="one shape"):
        _metrics.sliced_wasserstein(x, x[:10])


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_players_have_the_shapes_and_the_size_promised(kind):
    torch.manual_seed(0)
    generator, critic = _models.build(kind)
    with torch.no_grad():
        images = generator(torch.randn(16, _models.LATENT))
        assert images.shape == (16, 784) and images.abs().max() <= 1
        assert critic(images).shape == (16, 1)
    assert not any(
        "BatchNorm" in type(m).__name__ for p in (generator, critic) for m in p.modules()
    )
    if kind == "dense":
        assert 3e6 <= _models.parameters(generator, critic) <= 5e6
        # Smooth from the start: neighbouring pixels agree.
        pixels = images.view(16, 28, 28)
        rough = (pixels[:, :, 1:] - pixels[:, :, :-1]).square().mean()
        assert rough < 0.2 * pixels.square().mean()
