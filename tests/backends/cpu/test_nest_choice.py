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


@tile.kernel
def chain(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "N"], u: tile.Out[tile.f32, "N"]):
    n = tile.grid(tile.cdiv(x.shape[1], 64))
    block = tile.load(x, (0, n * 64), (8, 64))
    total, largest = tile.zeros((64,), tile.f32), tile.zeros((64,), tile.f32)
    for i in tile.static_range(8):
        total, largest = total + block[i, :], tile.maximum(largest, block[i, :])
    tile.store(y, (n * 64,), total)
    tile.store(u, (n * 64,), largest)


def test_a_nest_computes_in_the_order_of_the_program() -> None:
    """It once began with the last operand of a chain: memory was read backwards in blocks, which the hardware does not
    read ahead (products with u8 weights took 2.2 times as long), and all that two chains share was kept."""
    x = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    text = str(chain.lower(x, np.empty(128, np.float32), np.empty(128, np.float32)).thread)
    inside = text[:text.index("yield")]  # the block that is written without masks
    steps = re.findall(r"= (ld %x|(?:add|max) %\d+, %\d+ : f32)", inside)
    assert [step[:3] for step in steps] == ["ld ", "add", "max"] * 8
    y, u = chain(x)
    np.testing.assert_array_equal(y, sum(x, np.zeros(128, np.float32)))
    np.testing.assert_array_equal(u, np.maximum(x.max(0), 0))
