"""Every function of the language against NumPy, called as `tile.f(x)` and as `x.f()`, interpreted and compiled."""
from __future__ import annotations

import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import tilelang as tile
from tilelang.jit import Kernel
from tilelang.lang.builtins import METHODS, PUBLIC
from tilelang.testing import fuzz

INPUTS = {"a": "f32 3 5", "b": "f32 3 5",
          "i": "i32 3 5", "j": "i32 3 5", "u": "u32 3 5", "s": "i8 3 5", "h": "f16 3 5",
          "m": "f32 5 4", "g": "f32 2 3 5", "q": "f32 2 5 4", "v": "u3 5 2", "t": "f32 7", "c": "i1 3 5"}
EXTRA = {"k": "tile.load(i_, (0, 0), (3, 5)) & 7"}  # indices that mostly lie in `t`


def first(x: Any, axis: int, top: bool) -> Any:
    return (np.argmax if top else np.argmin)(x, axis).astype(np.int32)


def order(x: Any, axis: int = -1, descending: bool = False) -> Any:
    return np.argsort(-x if descending else x, axis, kind="stable").astype(np.int32)


def rounds(x: Any) -> Any:
    """Philox4x32-10 by Python's integers, with seed 7: Salmon et al., SC 2011."""
    out = []
    for n in x.reshape(-1):
        c, k = [int(n), 0, 0, 0], [7, 0]
        for _ in range(10):
            p, r = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [r >> 32 ^ c[1] ^ k[0], r & 0xFFFFFFFF, p >> 32 ^ c[3] ^ k[1], p & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        out.append(c)
    return np.array(out, np.uint32).reshape(*x.shape, 4)


def unit(words: Any) -> Any:
    return (words >> 8) * 2.0 ** -24


def log_add(x: Any, y: Any) -> Any:
    return np.maximum(x, y) + np.log(1 + np.exp(-abs(x - y)))


erf = np.vectorize(math.erf, otypes=[np.float64])
i32, u32 = np.int32, np.uint32
CASES: dict[str, tuple[str, Callable[..., Any]]] = {  # expression: (dtype, NumPy's of the inputs in order of mention)
    "a + b": ("f32", np.add), "a - 2": ("f32", lambda a: a - 2), "a * b": ("f32", np.multiply),
    "a / b": ("f32", np.divide), "i // 3": ("i32", lambda i: i // 3), "i % -3": ("i32", lambda i: i % -3),
    "-a": ("f32", np.negative), "+i": ("i32", np.positive), "a ** 3": ("f32", lambda a: a ** 3),
    "i + s": ("i32", lambda i, s: i + s.astype(i32)), "i / 4": ("f32", lambda i: i.astype(np.float32) / 4.0),
    "a < b": ("i1", np.less), "a <= b": ("i1", np.less_equal), "i > j": ("i1", np.greater),
    "i >= j": ("i1", np.greater_equal), "s == 1": ("i1", lambda s: s == 1), "s != 1": ("i1", lambda s: s != 1),
    "0 < a <= 1": ("i1", lambda a: (a > 0) & (a <= 1)), "a > 0 and b > 0": ("i1", lambda a, b: (a > 0) & (b > 0)),
    "a > 0 or b > 0": ("i1", lambda a, b: (a > 0) | (b > 0)), "not c": ("i1", np.logical_not),
    "tile.logical_not(s)": ("i1", lambda s: s == 0), "c ^ True": ("i1", np.logical_not),
    "i & j": ("i32", np.bitwise_and), "i | j": ("i32", np.bitwise_or), "i ^ j": ("i32", np.bitwise_xor),
    "~i": ("i32", np.invert), "i << 3": ("i32", lambda i: i << 3), "i >> 3": ("i32", lambda i: i >> 3),
    "u >> 3": ("u32", lambda u: u >> 3), "tile.popcount(u)": ("u32", np.bitwise_count),
    "tile.exp(a)": ("f32", np.exp), "tile.exp2(a)": ("f32", np.exp2),
    "tile.log(abs(a))": ("f32", lambda a: np.log(abs(a))),
    "tile.log2(abs(a))": ("f32", lambda a: np.log2(abs(a))), "tile.sqrt(abs(a))": ("f32", lambda a: np.sqrt(abs(a))),
    "tile.rsqrt(abs(a))": ("f32", lambda a: 1 / np.sqrt(abs(a))), "tile.sin(a)": ("f32", np.sin),
    "tile.cos(a)": ("f32", np.cos), "tile.tanh(a)": ("f32", np.tanh), "tile.erf(a)": ("f32", erf),
    "tile.sigmoid(a)": ("f32", lambda a: 1 / (1 + np.exp(-a))), "tile.abs(i)": ("i32", np.abs),
    "tile.floor(a)": ("f32", np.floor), "tile.ceil(a)": ("f32", np.ceil), "tile.round(a)": ("f32", np.round),
    "tile.trunc(a)": ("f32", np.trunc), "tile.fma(a, b, 0.5)": ("f32", lambda a, b: a * b + 0.5),
    "tile.minimum(a, b)": ("f32", np.minimum), "tile.maximum(i, j)": ("i32", np.maximum),
    "min(a, 0.5)": ("f32", lambda a: np.minimum(a, 0.5)), "max(a, b)": ("f32", np.maximum),
    "tile.clamp(a, -0.5, 0.5)": ("f32", lambda a: np.clip(a, -0.5, 0.5)),
    "tile.where(c, a, b)": ("f32", np.where), "tile.isnan(a / 0.0)": ("i1", lambda a: np.isnan(a / 0.0)),
    "a if 1 > 0 else b": ("f32", lambda a, b: a), "tile.cast(a, tile.i32)": ("i32", lambda a: a.astype(i32)),
    "h.to(tile.f32)": ("f32", lambda h: h), "i.to(tile.i8)": ("i8", lambda i: i.astype(np.int8)),
    "tile.bitcast(a, tile.u32)": ("u32", lambda a: a.astype(np.float32).view(u32)),
    "tile.arange(3, 9)": ("i32", lambda: np.arange(3, 9)), "tile.full((2, 3), 2.5)": ("f32", lambda: np.full(6, 2.5)),
    "tile.zeros((2, 1), tile.i8)": ("i8", lambda: np.zeros(2)), "tile.ones((1, 3))": ("f32", lambda: np.ones(3)),
    "tile.zeros_like(i)": ("i32", np.zeros_like), "tile.full_like(i, 4)": ("i32", lambda i: np.full_like(i, 4)),
    "tile.constant((1, 2.5), tile.f32)": ("f32", lambda: np.array([1, 2.5])),
    "tile.reshape(a, (5, -1))": ("f32", lambda a: a),
    "tile.permute(g, (2, 0, 1))": ("f32", lambda g: g.transpose(2, 0, 1)),
    "tile.transpose(g)": ("f32", lambda g: g.swapaxes(1, 2)), "g.T": ("f32", lambda g: g.swapaxes(1, 2)),
    "tile.broadcast_to(a, (2, 3, 5))": ("f32", lambda a: np.broadcast_to(a, (2, 3, 5))),
    "tile.expand_dims(a, 1) + b": ("f32", lambda a, b: a[:, None] + b),
    "tile.squeeze(a[:, :1], 1)": ("f32", lambda a: a[:, 0]), "a[:, None] * b": ("f32", lambda a, b: a[:, None] * b),
    "a[::-1, 1:4:2]": ("f32", lambda a: a[::-1, 1:4:2]), "g[..., -1]": ("f32", lambda g: g[..., -1]),
    "tile.concatenate([a, b], 1)": ("f32", lambda a, b: np.concatenate([a, b], 1)),
    "tile.stack([i, j], -1)": ("i32", lambda i, j: np.stack([i, j], -1)),
    "tile.lookup(t, k)": ("f32", lambda t, i: np.append(t, 0)[i & 7]),
    "tile.lookup((1.5, 2.5), i & 1)": ("f32", lambda i: (i & 1) + 1.5),
    "tile.sum(a)": ("f32", np.sum), "tile.sum(a, axis=1)": ("f32", lambda a: a.sum(1)),
    "tile.sum(g, axis=(0, 2), keepdims=True)": ("f32", lambda g: g.sum((0, 2))),
    "tile.sum(s, axis=0)": ("i32", lambda s: s.sum(0, i32)), "tile.sum(h, axis=0)": ("f16", lambda h: h.sum(0)),
    "tile.prod(a, axis=0)": ("f32", lambda a: a.prod(0)), "tile.prod(i, axis=1)": ("i32", lambda i: i.prod(1, i32)),
    "tile.max(a, axis=0)": ("f32", lambda a: a.max(0)), "tile.min(i, axis=1)": ("i32", lambda i: i.min(1)),
    "tile.any(a > 1, axis=1)": ("i1", lambda a: (a > 1).any(1)),
    "tile.all(a > -1, axis=0)": ("i1", lambda a: (a > -1).all(0)),
    "tile.argmax(i, axis=1)": ("i32", lambda i: first(i, 1, True)),
    "tile.argmin(a, axis=0)": ("i32", lambda a: first(a, 0, False)),
    "tile.argmax(c, axis=1, keepdims=True)": ("i32", lambda c: first(c, 1, True)),
    "tile.reduce(i, 1, lambda x, y: x ^ y)": ("i32", lambda i: np.bitwise_xor.reduce(i, 1)),
    "tile.reduce(a, 0, log_add)": ("f32", lambda a: log_add(log_add(a[0], a[1]), a[2])),
    "tile.reduce((a, i), 1, larger)[1]": ("i32", lambda a, i: np.take_along_axis(i, a.argmax(1)[:, None], 1)),
    "tile.cumsum(a, axis=1)": ("f32", lambda a: a.cumsum(1)),
    "tile.cumsum(i, axis=0, reverse=True)": ("i32", lambda i: i[::-1].cumsum(0, i32)[::-1]),
    "tile.cumprod(a, axis=1)": ("f32", lambda a: a.cumprod(1)),
    "tile.associative_scan(i, 1, lambda x, y: x | y)": ("i32", lambda i: np.bitwise_or.accumulate(i, 1)),
    "tile.associative_scan(i, 0, lambda x, y: x & y, reverse=True)": (
        "i32", lambda i: np.bitwise_and.accumulate(i[::-1], 0)[::-1]),
    "tile.sort(i, axis=0)": ("i32", lambda i: np.sort(i, 0)),
    "tile.sort(a, descending=True)": ("f32", lambda a: -np.sort(-a, -1)), "tile.argsort(i, axis=1)": ("i32", order),
    "tile.topk(a, 2)[0]": ("f32", lambda a: -np.sort(-a, -1)[:, :2]),
    "tile.topk(a, 2, axis=0)[1]": ("i32", lambda a: order(a, 0, True)[:2]),
    "tile.dot(a, m)": ("f32", np.matmul), "tile.dot(a, m, acc=tile.ones((3, 4)))": ("f32", lambda a, m: a @ m + 1),
    "tile.dot(g, q)": ("f32", np.matmul), "a @ m": ("f32", np.matmul),
    "tile.dot(s, v)": ("i32", lambda s, v: s.astype(i32) @ v.astype(i32)),
    "tile.dot(h, v)": ("f32", lambda h, v: h @ v.astype(float)),
    "tile.cdiv(i & 1023, 7)": ("i32", lambda i: -(-(i & 1023) // 7)),
    "tile.philox(7, u)[0]": ("u32", lambda u: rounds(u)[..., 0]),
    "tile.philox(7, u)[3]": ("u32", lambda u: rounds(u)[..., 3]),
    "tile.rand(7, u)": ("f32", lambda u: unit(rounds(u)[..., 0])),
    "tile.randn(7, u)": ("f32", lambda u: np.sqrt(-2 * np.log(1 - unit(rounds(u)[..., 0])))
                         * np.cos(2 * np.pi * unit(rounds(u)[..., 1]))),
}

HELPERS = '''"""Written by tests/lang/test_operations.py."""
import tilelang as tile

@tile.function
def log_add(x, y):
    return tile.maximum(x, y) + tile.log(1 + tile.exp(-abs(x - y)))

@tile.function
def larger(x, y):
    take = x[0] >= y[0]
    return tile.where(take, x[0], y[0]), tile.where(take, x[1], y[1])
'''


def other_style(text: str) -> str:
    """`tile.f(x, ...)` as `x.f(...)`, where f is a method, too."""
    found = re.fullmatch(r"tile\.(\w+)\((\w+|\w+\(\w\)|a [/<>] \S+|a\[.*?\]), ?(.*)\)(.*)|tile\.(\w+)\((.*)\)", text)
    if found is None or (found[1] or found[5]) not in METHODS:
        return text
    return f"({found[2]}).{found[1]}({found[3]}){found[4]}" if found[1] else f"({found[6]}).{found[5]}()"


def mentioned(text: str) -> list[str]:
    """Inputs that an expression needs, in the order of their names in it."""
    names = re.findall(r"(?<![\w.])[a-z](?![\w(])", re.sub("lambda x, y: .*(?=\\))", "", text))
    return list(dict.fromkeys("i" if n in EXTRA else n for n in names if n in INPUTS or n in EXTRA))


def source(name: str, text: str) -> str:
    """A kernel that stores what an expression gives, in both styles."""
    out, plain = CASES[text]
    inputs = mentioned(text)
    made = [np.zeros([int(n) for n in INPUTS[x].split()[1:]], np.float64 if INPUTS[x][0] == "f" else
                     bool if x == "c" else u32 if INPUTS[x][0] == "u" else i32) for x in inputs]
    with np.errstate(all="ignore"):
        size = np.asarray(plain(*made)).size
    params = [f"{x}_: tile.Tensor[tile.{INPUTS[x].split()[0]}, \"{INPUTS[x].split(' ', 1)[1]}\"]" for x in inputs]
    loads = [f"{x} = tile.load({x}_, ({'0, ' * (len(INPUTS[x].split()) - 1)}), "
             f"({', '.join(INPUTS[x].split()[1:])},))" for x in inputs]
    loads += [f"{x} = {y}" for x, y in EXTRA.items() if re.search(rf"\b{x}\b", text)]
    ends = [f"y{n}: tile.Out[tile.{out}, \"{size}\"]" for n in range(2)]
    styles = text, other_style(text)
    stores = [f"tile.store(y{n}, (0,), ({style}).reshape({size}))" for n, style in enumerate(styles)]
    return "\n    ".join([f"\n\n@tile.kernel\ndef {name}({', '.join([*params, *ends])}):", *loads, *stores]) + "\n"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    path = tmp_path_factory.mktemp("operations") / "kernels.py"
    path.write_text(HELPERS + "".join(source(f"k{n}", text) for n, text in enumerate(CASES)))
    found = runpy.run_path(str(path))
    return {text: found[f"k{n}"] for n, text in enumerate(CASES)}


@pytest.fixture
def few() -> None:
    settings.register_profile("few", max_examples=1, deadline=None, derandomize=True, database=None)
    settings.load_profile("few")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("text", CASES)
def test_operation(text: str, kernels: dict[str, Kernel]) -> None:
    def twice(*inputs: Any) -> tuple[Any, Any]:
        with np.errstate(all="ignore"):
            one = np.asarray(CASES[text][1](*inputs))
        return one, one
    fuzz(kernels[text], twice)
    with tile.target("reference"):
        fuzz(kernels[text], twice)


def test_both_styles_are_tried() -> None:
    tried = {text for text in CASES if other_style(text) != text}
    names = {re.match(r"tile\.(\w+)", text)[1] for text in tried}  # type: ignore[index]
    assert set(METHODS) - names <= {"view"}, set(METHODS) - names


def test_every_function_of_the_language_is_called_by_some_test() -> None:
    texts = "\n".join(p.read_text() for p in Path(__file__).parents[1].rglob("*.py"))
    assert {n for n in PUBLIC if not re.search(rf"\btile\.{n}\(", texts)} <= {"assert_"}  # an `assert` statement
