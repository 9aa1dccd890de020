"""Real images for the examples: Fashion-MNIST where it can be had, scikit-learn's digits elsewhere.

Looked up in this order:

1. the folder that was given (`--data DIR`), which must have the files (`--data digits`: go to 5);
2. /usr/share/datasets/fashion-mnist, the Debian package dataset-fashion-mnist;
3. the user's cache, $XDG_CACHE_HOME/horovod_qoda/fashion-mnist (by default under ~/.cache);
4. the public download, checked and put into that cache;
5. 1,797 digits of scikit-learn, scaled up to the same size.

Labels are not used, so only the two files of images are looked for.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import threading
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Name of the file without ".gz": (MD5 of the published .gz file, number of images).
FILES = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 60_000),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", 10_000),
}
HOST = "fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28

# As --data: the digits, whatever else there is.
DIGITS = Path("digits")

# A host that does not answer within this many seconds counts as no network.
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Images:
    """Images as bytes, [n, 784] uint8, 0 black to 255 white.

    Attributes:
        name: what they are, for the person who reads the result.
    """

    name: str
    train: np.ndarray
    heldout: np.ndarray


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "horovod_qoda" / "fashion-mnist"


def has_files(folder: Path) -> bool:
    """Whether the folder has both files, packed or not."""
    return all(_path(folder, name) is not None for name in FILES)


def locate(given: Path | None = None, *, download: bool = True) -> Path | None:
    """Folder with Fashion-MNIST, fetched if need be; None, and why, where it cannot be had.

    Only one process of a job should call this: two would download the same files.

    Raises:
        FileNotFoundError: `given` does not have the files.
    """
    if given == DIGITS:
        return None
    if given is not None:
        if not has_files(given):
            raise FileNotFoundError(
                f"--data {given}: needs {' and '.join(FILES)}, each with or without .gz"
            )
        return given
    for folder in (DEBIAN, cache_folder()):
        if has_files(folder):
            return folder
    found = fetch(cache_folder()) if download else None
    if found is None:
        print(
            "data: Fashion-MNIST was not found, so the digits of scikit-learn stand in for it.\n"
            "data: to have it: apt-get install dataset-fashion-mnist (Debian), or --data DIR",
            flush=True,
        )
    return found


def fetch(folder: Path, host: str = HOST, port: int = 80) -> Path | None:
    """Downloads what is missing into `folder`; None, with the reason printed, where that fails.

    A file appears under its name only when complete and with the published checksum.
    """
    if not _answers(host, port):
        print(f"data: no answer from {host} within {TIMEOUT_S:g} s", flush=True)
        return None
    for name, (md5, _) in FILES.items():
        if _path(folder, name) is not None:
            continue
        url = f"http://{host}:{port}/{name}.gz"
        print(f"data: downloading {url}", flush=True)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                packed = response.read()
        except OSError as error:
            print(f"data: {url}: {error}", flush=True)
            return None
        found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        if found != md5:
            print(f"data: {url}: MD5 is {found}, should be {md5}; not kept", flush=True)
            return None
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.gz.{os.getpid()}"
        part.write_bytes(packed)
        part.replace(folder / f"{name}.gz")
    return folder


def load(folder: Path | None) -> Images:
    """The images of a folder that :func:`locate` found; the digits for None.

    Raises:
        ValueError: a file is damaged or is something else; it is named.
    """
    if folder is None:
        return _digits()
    train, heldout = (_read(folder, name, count) for name, (_, count) in FILES.items())
    return Images(f"Fashion-MNIST ({folder})", train, heldout)


def shard(images: np.ndarray, rank: int, size: int) -> np.ndarray:
    """Every `size`-th image from `rank` on: shards are disjoint and together they are all."""
    return images[rank::size]


def _path(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _read(folder: Path, name: str, count: int) -> np.ndarray:
    path = _path(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder} has no {name} and no {name}.gz")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}); delete it") from None
    # The IDX format: magic 0x00000803 (unsigned bytes, 3 dimensions), the dimensions, the bytes.
    header = np.array([0x803, count, SIDE, SIDE], ">u4").tobytes()
    if raw[:16] != header or len(raw) != 16 + count * SIDE * SIDE:
        raise ValueError(f"{path}: not {count} images of {SIDE}x{SIDE} in the IDX format")
    return np.frombuffer(raw, np.uint8, offset=16).reshape(count, SIDE * SIDE)


def _digits() -> Images:
    """Digits of 8x8, scaled up bilinearly; the last 297 of 1,797 are held out."""
    from sklearn.datasets import load_digits

    small = load_digits().images / 16.0
    # Row i of the weights says where pixel i of 28 lies between the 8 of the original.
    at = np.clip((np.arange(SIDE) + 0.5) * 8 / SIDE - 0.5, 0, 7)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8)))
    large = np.einsum("ip,npq,jq->nij", weights, small, weights)
    pixels = np.rint(255 * large).astype(np.uint8).reshape(len(large), -1)
    name = "digits of scikit-learn, 8x8 scaled up to 28x28, NOT Fashion-MNIST"
    return Images(name, pixels[:1500], pixels[1500:])


def _answers(host: str, port: int) -> bool:
    """Whether a connection opens in time; name resolution, which has no timeout, included."""
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=TIMEOUT_S).close()
            opened.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return opened.is_set()
