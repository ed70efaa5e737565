"""Products that make blocks of the weight where they are used: vectors of codebooks, any parameters, any target; and
gradients by x, against the f64 meaning of the weight."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.ops.mpgemm.test_api import exact, quantised, weight
from tilelang import nn, ops
from tilelang.errors import TargetError
from tilelang.ops.mpgemm import gradient
from tilelang.ops.mpgemm.plan import plan
from tilelang.quant import LowRank, Parameter, QuantTensor, RowParts, Sparse, VectorCodes
from tilelang.quant.nodes import values_of

EMULATED = ["emulate:cuda:sm_80", "emulate:hip:gfx942"]


def vectors(rng: np.random.Generator, n: int, k: int, d: int, axis: Any, stages: int = 1,
            block: tuple[int, int] | None = None, bits: int = 4) -> VectorCodes:
    """Random codes of vectors of `d` weights."""
    grid = (n, -(-k // d)) if axis == 1 else (-(-n // d), k)
    entries = (1 << bits, d) if block is None else (-(-n // block[0]), -(-k // block[1]), 1 << bits, d)
    return VectorCodes(
        tuple(tile.Packed.from_codes(rng.integers(0, 1 << bits, grid), tile.dtype(f"u{bits}")) for _ in range(stages)),
        tuple(rng.standard_normal(entries).astype(np.float16) for _ in range(stages)), (n, k), axis, block)


def composed(kind: str) -> QuantTensor:
    """A weight (42, 100) as a method of the literature has it, or with what only blocks can multiply by."""
    rng = np.random.default_rng(0)
    n, k = 42, 100

    def numbers(*shape: int) -> Any:
        return rng.uniform(0.5, 2, shape).astype(np.float32)
    if kind == "AQLM":  # vectors along k, several stages, a scale of each row
        return QuantTensor(vectors(rng, n, k, 8, 1, 2), Parameter(numbers(n, 1), (1, k)))
    if kind == "VPTQ":  # vectors along n, main and residual, scale and minimum of each column
        return QuantTensor(vectors(rng, n, k, 6, 0, 2), Parameter(numbers(1, k), (n, 1)), None,
                           Parameter(numbers(1, k), (n, 1)))
    if kind == "blocks":
        return QuantTensor(vectors(rng, n, k, 2, 0, block=(14, 25)), permutation=rng.permutation(k))
    if kind == "runs":
        w = weight(rng, "u3", n, k, 32)
        return QuantTensor(w.codes, Parameter(numbers(53, 1), 80), Parameter(numbers(3, 2), (14, 50)))
    assert kind == "long"
    codes = tile.Packed.from_codes(rng.integers(0, 1 << 12, (n, k)), tile.u12)
    index = rng.permutation(k) % 2
    return QuantTensor(codes, Parameter(numbers(n, 2), (1, 50), index), Parameter(numbers(n, 4), (1, 25)))


KINDS = ["AQLM", "VPTQ", "blocks", "runs", "long"]


def size(w: QuantTensor) -> Any:
    """|W| before terms of it cancel, f64 [N, K]."""
    if isinstance(w.codes, VectorCodes):
        out = sum(abs(VectorCodes((s,), (t,), w.codes.shape, w.codes.axis, w.codes.block).dequantize())
                  for s, t in zip(w.codes.stages, w.codes.tables, strict=True))
    else:
        out = abs(values_of(w.codes))
    out = out + (0 if w.zero is None else abs(w.zero.expand(w.shape)))
    out = out * (1 if w.scale is None else abs(w.scale.expand(w.shape)))
    out = out + (0 if w.minimum is None else abs(w.minimum.expand(w.shape)))
    if w.permutation is not None:
        stored, out = out, np.empty_like(out)
        out[:, w.permutation] = stored
    return out


def slack(x: Any, of: Any) -> Any:
    """What f32's roundings of x @ of amount to: as many additions as rows of `of`, and 16 more operations on parts."""
    return (len(of) + 16) * 2.0 ** -24 * (abs(np.asarray(x, np.float64)) @ of)


@pytest.mark.parametrize(("kind", "target"), [*((kind, "cpu") for kind in KINDS),
                                             ("AQLM", EMULATED[0]), ("runs", EMULATED[0]), ("VPTQ", EMULATED[1])])
def test_every_composition_both_ways(kind: str, target: str) -> None:
    rng = np.random.default_rng(1)
    w, bias = composed(kind), rng.standard_normal(42).astype(np.float32)
    x, dz = rng.standard_normal((3, 100)).astype(np.float32), rng.standard_normal((3, 42)).astype(np.float32)
    with tile.target(target):
        y, dx = ops.mpgemm(x, w, bias, decomposition="dequant_dot"), gradient.by_x(dz, w)
    meant = w.dequantize()
    assert (abs(y - (x.astype(np.float64) @ meant.T + bias)) <= slack(x, size(w).T) + 2.0 ** -22 * abs(bias)).all()
    assert (abs(dx - dz.astype(np.float64) @ meant) <= slack(dz, size(w))).all()


def test_halves_are_multiplied_as_halves_on_a_gpu() -> None:
    w = composed("AQLM")
    x = np.random.default_rng(1).standard_normal((3, 100)).astype(np.float16)
    with tile.target(EMULATED[0]):
        y = ops.mpgemm(x, w, out_dtype="f32")
    rounded = 2.0 ** -11 * (abs(x.astype(np.float64)) @ size(w).T)
    assert (abs(y - x.astype(np.float64) @ w.dequantize().T) <= slack(x, size(w).T) + rounded).all()


@pytest.mark.parametrize("x_dtype", ["i8", "f8e4m3"])
def test_rounded_activations(x_dtype: str) -> None:
    rng = np.random.default_rng(1)
    w, x = weight(rng, "u3", 42, 100, 32), rng.standard_normal((3, 100)).astype(np.float32)
    for token in (True, False):
        q, scale = quantised(x, w, x_dtype, token)
        taken = (q * scale[..., None]).reshape(3, -1)[:, :100]
        y = ops.mpgemm(x, w, x_dtype=x_dtype, x_group="token" if token else "group", decomposition="dequant_dot")
        assert (abs(y - taken.astype(np.float64) @ w.dequantize().T) <= 2 * slack(taken, size(w).T)).all()
    y = ops.mpgemm(x, w, x_dtype="i8", decomposition="int_dot")
    np.testing.assert_array_equal(y, exact(x, w, "i8", True))
    v = composed("AQLM")
    q, scale = np.rint(x / (abs(x).max(1, keepdims=True) / np.float32(127))), abs(x).max(1, keepdims=True) / 127
    error = abs(ops.mpgemm(x, v, x_dtype="i8") - (q * scale).astype(np.float64) @ v.dequantize().T)
    assert (error <= 2 * slack(q * scale, size(v).T)).all()


def test_vectors_have_one_decomposition() -> None:
    w, x = composed("VPTQ"), np.zeros((1, 100), np.float32)
    assert plan(tile.f32, w, 1).decomposition == "dequant_dot" and plan(tile.f32, w, 1).chunk == 100
    with pytest.raises(TargetError, match="int_dot cannot compute"):
        ops.mpgemm(x, w, x_dtype="i8", decomposition="int_dot")
    assert ops.mpgemm(x[:0], w).shape == (0, 42)


FUNCTIONS = {None: lambda z: z, "gelu": torch.nn.functional.gelu, "relu": torch.relu, "silu": torch.nn.functional.silu}


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gradients(activation: str | None) -> None:
    """Beside torch's, in f64, of the same product with the weight's meaning."""
    torch.manual_seed(0)
    w = tile.quantize(torch.randn(48, 64), "u4", 32)
    given = [torch.randn(2, 3, 64), torch.randn(48), torch.randn(2, 3, 48)]
    (x, bias, residual), wide = ([t.clone().to(dt).requires_grad_() for t in given]
                                 for dt in (torch.float32, torch.float64))
    y = ops.mpgemm(x, w, bias, activation, residual)
    dy = torch.randn_like(y)
    y.backward(dy)
    (FUNCTIONS[activation](wide[0] @ torch.tensor(w.dequantize()).T + wide[1]) + wide[2]).backward(dy.double())
    z = slack(given[0].reshape(6, 64), size(w).T).max()  # of z, whose error slopes (at most 1.2, curvature 1) pass on
    dz = abs(dy.reshape(6, 48).numpy())
    allowed = slack(2 * dz, size(w)) + (z + 2.0 ** -20) * (dz @ size(w)) * (activation is not None)
    assert (abs(x.grad - wide[0].grad).reshape(6, 64).numpy() <= allowed).all()
    per_bias = dz.sum(0) * (6 * 2.0 ** -24 + (z + 2.0 ** -20) * (activation is not None))
    assert (abs(bias.grad - wide[1].grad).numpy() <= per_bias).all() and torch.equal(residual.grad, dy)


def test_gradients_through_corrections_and_rows_of_several_kinds() -> None:
    rng = np.random.default_rng(5)
    dz = rng.standard_normal((2, 20)).astype(np.float32)
    starts = np.minimum(np.arange(21) * 5, 90)
    add = Sparse(starts, rng.integers(0, 64, 90), rng.standard_normal(90).astype(np.float32))
    rank = LowRank(rng.standard_normal((20, 3)).astype(np.float32), rng.standard_normal((3, 64)).astype(np.float32))
    base = weight(rng, "u3", 20, 64, 32)
    single = Sparse(np.arange(21), np.arange(20) * 3, rng.standard_normal(20).astype(np.float32), "replace")
    order = rng.permutation(20)
    mixed = RowParts((weight(rng, "i8", 6, 64, 64), QuantTensor(vectors(rng, 14, 64, 4, 1))), order)
    for w in (QuantTensor(base.codes, base.scale, permutation=rng.permutation(64), corrections=(add, rank)),
              QuantTensor(base.codes, base.scale, corrections=(rank, single)), QuantTensor(mixed)):
        large = abs(w.dequantize()) + 16 + abs(rank.a) @ abs(rank.b)
        assert (abs(gradient.by_x(dz, w) - dz.astype(np.float64) @ w.dequantize()) <= 4 * slack(dz, large)).all()


def test_an_adapter_is_trained_on_a_quantised_layer() -> None:
    """QLoRA (arXiv 2305.14314): the loss falls, and the quantised weight stays as it was."""
    torch.manual_seed(0)
    base = nn.QuantLinear.from_linear(torch.nn.Linear(64, 48), "u4", 32)
    before = base.weight.dequantize()
    first, a, b = torch.nn.Linear(64, 64), torch.nn.Linear(64, 4, bias=False), torch.nn.Linear(4, 48, bias=False)
    torch.nn.init.zeros_(b.weight)
    x, want = torch.randn(6, 64), torch.randn(6, 48)
    optimiser = torch.optim.Adam([p for layer in (first, a, b) for p in layer.parameters()], 1e-2)
    losses = []
    for _ in range(20):
        h = first(x)
        loss = ((base(h) + b(a(h)) - want) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0] and np.array_equal(base.weight.dequantize(), before)
