"""What is stored before a nest repeats it, which way a nest's vectors run, and what a scan does not store."""
from __future__ import annotations

import re

import numpy as np

import tilelang as tile


@tile.function
def compose(first, second):
    return first[0] * second[0], second[0] * first[1] + second[1]


@tile.kernel
def recurrence(a: tile.Tensor[tile.f32, "C S"], b: tile.Tensor[tile.f32, "N S"], y: tile.Out[tile.f32, "S C"],
               BOTH: tile.Const = False):
    """A state of N numbers for each channel, over S steps; tiles [steps, N, channels]."""
    tile.grid(1)
    t, w = tile.exp(tile.load(a, (0, 0), (16, 32)).T), tile.load(b, (0, 0), (8, 32)).T
    decays = t[:, None, :] * 0.5 + tile.zeros((32, 8, 16))
    decay, state = tile.associative_scan((decays, t[:, None, :] * w[:, :, None]), 0, compose)
    out = state.sum(1) + decay.sum(1) if BOTH else state.sum(1)
    tile.store(y, (0, 0), out)


def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    t, w = np.exp(a.astype(np.float64)).T, b.astype(np.float64).T
    h, out = np.zeros((8, 16)), []
    for s in range(32):
        h = 0.5 * t[s] * h + t[s] * w[s][:, None]
        out.append(h.sum(0))
    return np.stack(out)


def test_a_recurrence() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 32)).astype(np.float32), rng.random((8, 32)).astype(np.float32)
    lowered, both = (recurrence.lower(a, b, np.empty((32, 16), np.float32), BOTH=x) for x in (False, True))
    assert len(re.findall(r"= exp ", str(lowered.placed))) == 1  # not in each nest that needs it
    scratch = re.findall(r"ld_gather %(\w+)", str(lowered.thread))
    assert set(scratch) <= {"a", "b"}  # tiles that cover the nest are read along their rows
    allocated = [len(re.findall(r"= alloc ", str(x.thread))) for x in (lowered, both)]
    assert allocated[1] > allocated[0]  # what nothing uses has no memory
    want = reference(a, b)
    assert (abs(recurrence(a, b) - want) <= (3 * 32 + 8 + 8) * 2.0 ** -23 * want).all()  # all terms are positive
