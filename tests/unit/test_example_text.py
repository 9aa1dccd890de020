"""The language model's parts: text as symbols, attention by distance, memory across segments."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import _text  # noqa: E402
import _transformer_xl as transformer  # noqa: E402

SMALL = transformer.Shape(64, layers=2, width=16, heads=2, inner=32, memory=6)


def test_sources_are_spelled_without_loss():
    corpus = _text.load(None, 1000, 0.2)
    assert corpus.symbols == 1000 and corpus.train.max() < 1000 > corpus.heldout.max()
    counts = np.bincount(corpus.train, minlength=1000)
    assert (np.diff(counts) <= 0).all(), "symbols are not numbered by falling frequency"
    assert corpus.bytes is not None
    # Bytes of every symbol add up to the text: 0.2 MB and at most one file more.
    total = int(corpus.bytes[corpus.train].sum())
    assert 0.2e6 <= total < 0.8e6
    assert len(corpus.train) < 0.7 * total
    again = _text.load(None, 1000, 0.2)
    assert (again.train == corpus.train).all() and (again.heldout == corpus.heldout).all()


def test_a_folder_of_wikitext(tmp_path):
    (tmp_path / _text.TRAIN).write_text(" = A = \n the cat and the dog \n the end\n", "utf-8")
    with pytest.raises(FileNotFoundError, match=_text.HELDOUT):
        _text.load(tmp_path, 0, 1.0)
    (tmp_path / _text.HELDOUT).write_text("the bird and the cat\n", "utf-8")
    every = _text.load(tmp_path, 0, 1.0)
    assert every.bytes is None and every.symbols == 9
    assert len(every.train) == 13 and len(every.heldout) == 6
    the = every.heldout[0]
    assert every.heldout[3] == the and (every.train == the).sum() == 3
    few = _text.load(tmp_path, 4, 1.0)
    assert few.symbols == 4 and len(few.train) == 13
    # bird, and, cat: all are <unk> now
    assert few.heldout[1] == few.heldout[4]


def test_too_few_symbols_are_refused():
    with pytest.raises(ValueError, match="more than 256"):
        _text.load(None, 256, 1.0)
    with pytest.raises(ValueError, match="too few for 4 streams"):
        _text.streams(np.arange(7), 4)


@pytest.mark.parametrize("t, memory", [(1, 0), (5, 3), (4, 9)])
def test_scores_move_to_the_key_at_their_distance(t, memory):
    scores = torch.randn(2, 3, t, t + memory)
    moved = transformer.by_distance(scores)
    for i in range(t):
        for key in range(memory + i + 1):
            farthest_first = t + memory - 1 - (memory + i - key)
            assert torch.equal(moved[:, :, i, key], scores[:, :, i, farthest_first])


def test_a_later_symbol_changes_no_earlier_prediction_and_memory_does():
    torch.manual_seed(0)
    model = transformer.TransformerXL(SMALL)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    symbols = torch.randint(64, (3, 10))

    def first_losses(text, memory):
        # Losses are means: that of the first 5 positions alone.
        return model(text[:, :5], symbols[:, 1:6], memory)[0]

    changed = symbols.clone()
    changed[:, 5:] = 0
    assert torch.equal(
        first_losses(symbols, model.no_memory(3)), first_losses(changed, model.no_memory(3))
    )
    hidden = torch.randn(3, 5, 16)
    attention = model.layers[0].attention
    none, sines = torch.zeros(3, 0, 16), transformer.distances(5, 16)
    whole = attention(hidden, none, sines)
    later = hidden.clone()
    later[:, 3:] += 1.0
    assert torch.allclose(attention(later, none, sines)[:, :3], whole[:, :3], atol=1e-6)
    assert not torch.allclose(attention(later, none, sines)[:, 3:], whole[:, 3:], atol=1e-2)

    _, memory = model(symbols, symbols, model.no_memory(3))
    assert [m.shape for m in memory] == [(3, 6, 16)] * 2
    assert not any(m.requires_grad for m in memory)
    with_memory = model(symbols, symbols, memory)[0]
    assert abs(with_memory - model(symbols, symbols, model.no_memory(3))[0]) > 1e-3


def test_memory_continues_the_text_exactly():
    """Two segments with memory as long as the first give what one long segment gives."""
    torch.manual_seed(1)
    shape = transformer.Shape(64, layers=1, width=16, heads=2, inner=32, memory=8)
    model = transformer.TransformerXL(shape)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    text = torch.randint(64, (2, 17))
    whole = model(text[:, :16], text[:, 1:], model.no_memory(2))[0]
    first, memory = model(text[:, :8], text[:, 1:9], model.no_memory(2))
    second, _ = model(text[:, 8:16], text[:, 9:], memory)
    assert torch.allclose((first + second) / 2, whole, atol=1e-5)
