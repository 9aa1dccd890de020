"""Text for the language model: a folder laid out as WikiText-103, or Python's own sources.

Every machine that runs the examples has the standard library's sources, so a run needs no download.
They are cut into pieces of words; what is not in the vocabulary is spelled in bytes, so the loss
can be given in bits per byte. Words of a WikiText folder that are not in it become <unk>.

Symbols are numbered by falling frequency, as an adaptive softmax wants them.
"""

from __future__ import annotations

import platform
import re
import sysconfig
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TRAIN, HELDOUT = "wiki.train.tokens", "wiki.valid.tokens"

# Pieces of Python's sources: a run of letters with the blank before it, the start of a line with
# its indentation, digits and anything else one by one. Whatever the bytes, pieces join to them.
_PIECES = re.compile(rb" ?[A-Za-z]+|\n *|.", re.DOTALL)

# Every how many files one is held out.
_HELD_OUT = 20

# Folders that are no library code: tests have tables of data, the others are not everywhere.
_SKIP = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Text as symbols, int32 arrays; the most frequent symbol of the training text is 0.

    Attributes:
        name: what it is, for the person who reads the result.
        symbols: size of the vocabulary.
        bytes: of each symbol, int64 [symbols], for bits per byte; None where words were lost.
    """

    name: str
    train: np.ndarray
    heldout: np.ndarray
    symbols: int
    bytes: np.ndarray | None


def load(folder: Path | None, symbols: int, megabytes: float) -> Corpus:
    """The corpus of a folder, or Python's sources for None.

    Args:
        symbols: largest vocabulary; 0 takes every word (with a folder only).
        megabytes: how much of the sources is read; a folder is read whole.

    Raises:
        FileNotFoundError: the folder lacks a file, or Python came without its sources.
        ValueError: a vocabulary that is too small.
    """
    return _sources(symbols, megabytes) if folder is None else _wikitext(folder, symbols)


def _sources(symbols: int, megabytes: float) -> Corpus:
    if symbols <= 256:
        raise ValueError(f"--symbols {symbols}: needs more than 256, one for each byte")
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.rglob("*.py") if not _SKIP & set(p.relative_to(root).parts))
    if len(files) < _HELD_OUT:
        raise FileNotFoundError(f"no Python sources under {root}; give a corpus with --data DIR")
    heldout = b"".join(p.read_bytes() for p in files[::_HELD_OUT])
    train = bytearray()
    for number, path in enumerate(_spread(files)):
        if number % _HELD_OUT and len(train) < megabytes * 1e6:
            train += path.read_bytes()
    counts = Counter(_PIECES.findall(train))
    for byte in range(256):
        counts.pop(bytes([byte]), None)
    pieces = [bytes([byte]) for byte in range(256)]
    pieces += [piece for piece, _ in counts.most_common(symbols - 256)]
    known = {piece: i for i, piece in enumerate(pieces)}
    texts = [_spell(_PIECES.findall(text), known) for text in (train, heldout)]
    order = _by_frequency(texts[0], len(pieces))
    lengths = np.array([len(piece) for piece in pieces])[np.argsort(order)]
    name = f"Python {platform.python_version()}'s standard library, {len(train) / 1e6:.1f} MB"
    return Corpus(name, order[texts[0]], order[texts[1]], len(pieces), lengths)


def _spread(files: Sequence[Path]) -> Iterator[Path]:
    """Files from all over the list: a part of the corpus should not be one package alone.

    Held-out files, every _HELD_OUT-th, keep that number in the new order.
    """
    chosen = [p for i, p in enumerate(files) if i % _HELD_OUT]
    generator = np.random.default_rng(0)
    rest = iter(generator.permutation(len(chosen)))
    for i, path in enumerate(files):
        yield path if i % _HELD_OUT == 0 else chosen[next(rest)]


def _spell(pieces: Iterable[bytes], known: dict[bytes, int]) -> np.ndarray:
    out = array("i")
    for piece in pieces:
        number = known.get(piece)
        if number is None:
            out.extend(piece)
        else:
            out.append(number)
    return np.array(out, np.int32)


def _by_frequency(text: np.ndarray, symbols: int) -> np.ndarray:
    """New number of each symbol: 0 for the most frequent."""
    falling = np.argsort(-np.bincount(text, minlength=symbols), kind="stable")
    return np.argsort(falling).astype(np.int32)


def _wikitext(folder: Path, symbols: int) -> Corpus:
    paths = [folder / TRAIN, folder / HELDOUT]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"--data {folder}: needs {TRAIN} and {HELDOUT}")
    counts = Counter(_words(paths[0]))
    counts.setdefault("<unk>", 1)
    words = [word for word, _ in counts.most_common(symbols or None)]
    if "<unk>" not in words:
        words[-1] = "<unk>"
    known = {word: i for i, word in enumerate(words)}
    unknown = known["<unk>"]
    texts = [
        np.array(array("i", (known.get(word, unknown) for word in _words(path))), np.int32)
        for path in paths
    ]
    order = _by_frequency(texts[0], len(words))
    return Corpus(f"{folder}", order[texts[0]], order[texts[1]], len(words), None)


def _words(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield from line.split()
            yield "<eos>"


def streams(text: np.ndarray, count: int) -> np.ndarray:
    """Cuts a text into ``count`` consecutive streams of one length: [count, length], a view.

    Raises:
        ValueError: less than two symbols a stream.
    """
    length = len(text) // count
    if length < 2:
        raise ValueError(f"{len(text)} symbols are too few for {count} streams")
    return text[: count * length].reshape(count, length)
