"""Kernels as torch operators, ours and a user's: schema, fake, gradients, compile, vmap, autocast, modules."""
from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

import tilelang as tile
from tilelang import nn, ops
from tilelang.errors import ArgumentDType, ArgumentGradient
from tilelang.ops.softmax import softmax_kernel
from tilelang.torch_ops import nobody_looks


@pytest.fixture(autouse=True)
def compile_anew() -> None:
    torch._dynamo.reset()


@tile.kernel
def scale_backward(dy: tile.Tensor[tile.T, "M N"], dx: tile.Out[tile.T, "M N"], by: tile.f32):
    m = tile.grid(dy.shape[0])
    for n in tile.range(0, dy.shape[1], 8):
        tile.store(dx, (m, n), tile.load(dy, (m, n), (8,)) * by)


@tile.torch_op("tilelang_test::scale", backward=scale_backward, dims="m n -> m n")
@tile.kernel
def scale(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"], by: tile.f32, B: tile.Const = 8):
    m = tile.grid(x.shape[0])
    for n in tile.range(0, x.shape[1], B):
        tile.store(y, (m, n), tile.load(x, (m, n), (B,)) * by)


@tile.torch_op("tilelang_test::add_one")
@tile.kernel
def add_one(x: tile.InOut[tile.f32, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 8))
    tile.store(x, (n * 8,), tile.load(x, (n * 8,), (8,)) + 1.0)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).requires_grad_()


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "softmax": (ops.softmax, lambda x: x.softmax(-1), lambda: (leaf(2, 3, 33),)),
    "gelu": (ops.gelu, functional.gelu, lambda: (leaf(5, 7),)),
    "rms_norm": (ops.rms_norm, lambda x, w: functional.rms_norm(x, (33,), w, 1e-6),
                 lambda: (leaf(2, 3, 33), leaf(33))),
    "layer_norm": (ops.layer_norm, lambda x, w, b: functional.layer_norm(x, (33,), w, b),
                   lambda: (leaf(2, 3, 33), leaf(33), leaf(33))),
    "add_rms_norm": (ops.add_rms_norm, lambda x, r, w: (functional.rms_norm(x + r, (33,), w, 1e-6), x + r),
                     lambda: (leaf(2, 3, 33), leaf(2, 3, 33), leaf(33))),
    "add_layer_norm": (ops.add_layer_norm, lambda x, r, w, b: (functional.layer_norm(x + r, (33,), w, b), x + r),
                       lambda: (leaf(2, 3, 33), leaf(2, 3, 33), leaf(33), leaf(33))),
    "linear": (ops.linear, functional.linear, lambda: (leaf(2, 9, 17), leaf(33, 17), leaf(33))),
    "linear_gelu": (lambda *a: ops.linear(*a, activation="gelu"), lambda *a: functional.gelu(functional.linear(*a)),
                    lambda: (leaf(2, 9, 17), leaf(33, 17), leaf(33))),
    "linear_plain": (ops.linear, functional.linear, lambda: (leaf(2, 9, 17), leaf(33, 17))),
    "matmul": (ops.matmul, torch.matmul, lambda: (leaf(9, 17), leaf(17, 5))),
    "scale": (lambda x: scale(x, by=3.0), lambda x: 3.0 * x, lambda: (leaf(3, 20),)),
}


def total(out: Any) -> torch.Tensor:
    """A scalar of the results that weighs every element differently."""
    outs = out if isinstance(out, tuple) else (out,)
    return sum(((o * torch.linspace(-1, 1, o.numel()).reshape(o.shape)).sum() for o in outs), torch.zeros(()))


@pytest.mark.parametrize("name", CASES)
def test_compiled_whole_with_gradients(name: str) -> None:
    """Gradients arrive where they belong, eagerly and compiled: close to torch's. Bounds on the numbers themselves are
    in tests/ops."""
    ours, torchs, make = CASES[name]
    inputs = make()
    want = torch.autograd.grad(total(torchs(*inputs)), inputs)
    compiled = torch.compile(lambda *a: total(ours(*a)), fullgraph=True, backend="aot_eager")
    for f in (lambda *a: total(ours(*a)), compiled):
        got = torch.autograd.grad(f(*inputs), inputs)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)


@pytest.mark.parametrize(("name", "args"), [
    ("tilelang::softmax", lambda: (leaf(2, 3, 33),)), ("tilelang::gelu", lambda: (leaf(5, 7),)),
    ("tilelang::rms_norm", lambda: (leaf(2, 3, 33), leaf(33))),
    ("tilelang::matmul", lambda: (leaf(9, 17), leaf(17, 5))),
    ("tilelang::layer_norm", lambda: (leaf(3, 33), leaf(33), leaf(33), 1e-3)),
    ("tilelang::add_rms_norm", lambda: (leaf(3, 33), leaf(3, 33), leaf(33))),
    ("tilelang::add_layer_norm", lambda: (leaf(3, 33), leaf(3, 33), leaf(33), leaf(33))),
    ("tilelang::linear", lambda: (leaf(2, 9, 17), leaf(33, 17), leaf(33), "gelu")),
    ("tilelang_test::scale", lambda: (leaf(3, 20), 2.0, 16)), ("tilelang_test::add_one", lambda: (torch.randn(20),))])
def test_opcheck(name: str, args: Callable[[], tuple[Any, ...]]) -> None:
    for op in (ops.softmax, ops.gelu, ops.rms_norm, ops.matmul, ops.layer_norm, ops.add_rms_norm, ops.add_layer_norm,
               ops.linear, scale, add_one):
        assert op._ready()
    namespace, bare = name.split("::")
    result = torch.library.opcheck(getattr(getattr(torch.ops, namespace), bare).default, args())
    assert set(result.values()) == {"SUCCESS"}


def test_shapes_that_change_are_compiled_once() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    f = torch.compile(lambda x, w: ops.rms_norm(x, w), fullgraph=True, backend=counter, dynamic=True)
    for rows in (3, 5, 9):
        x, w = torch.randn(rows, 16), torch.randn(16)
        torch.testing.assert_close(f(x, w), ops.rms_norm(x, w))
    assert counter.frame_count == 1


def test_written_arguments() -> None:
    f = torch.compile(lambda x: add_one(x) or x * 2, fullgraph=True, backend="aot_eager")
    x = torch.zeros(20)
    assert torch.equal(f(x), torch.full((20,), 2.0)) and torch.equal(x, torch.ones(20))


def test_other_arrays_and_outputs_go_round_the_operator() -> None:
    x = np.ones((2, 3), np.float32)
    assert isinstance(ops.gelu(x), np.ndarray) and isinstance(scale(x, by=2.0), np.ndarray)
    out = torch.empty(2, 2)
    assert ops.matmul(torch.eye(2), torch.eye(2), out=out) is out and torch.equal(out, torch.eye(2))
    assert torch.equal(ops.matmul(torch.eye(2), torch.eye(2), out=None), out)
    assert "define" in scale.lower(x, by=2.0).source  # still a kernel


def test_vmap_over_a_number() -> None:
    x = torch.randn(3, 4, 10)
    assert torch.vmap(lambda a, by: scale(a, by), (0, None))(x, torch.tensor(2.0)).equal(2 * x)
    for call in (lambda a, by: scale(a, by), lambda a, by: torch.func.grad(lambda a: scale(a, by).sum())(a)):
        with pytest.raises(ArgumentDType, match=r"parameter `by` of `\w+::scale` is one number"):
            torch.vmap(call)(x, torch.ones(3))


def test_vmap() -> None:
    x, w = torch.randn(4, 3, 33), torch.randn(4, 33)
    want = torch.stack([ops.rms_norm(a, w[0]) for a in x])
    assert torch.equal(torch.vmap(ops.rms_norm, (0, None))(x, w[0]), want)
    assert torch.equal(torch.vmap(ops.rms_norm, (1, None))(x.transpose(0, 1), w[0]), want)
    assert torch.equal(torch.vmap(ops.rms_norm)(x, w), torch.stack([
        ops.rms_norm(a, b) for a, b in zip(x, w, strict=True)]))
    assert torch.equal(torch.vmap(lambda a: scale(a, by=2.0))(x), 2 * x)
    rows = tile.torch_op("test::rows", dims="... N -> ... N")(softmax_kernel)  # of two dimensions, as it is
    out = torch.vmap(lambda a: rows(a, BM=2, BN=64))(x)
    torch.testing.assert_close(out, torch.softmax(x, -1))
    assert torch.vmap(lambda a, b: scale(a * b, by=2.0))(x[:0], w[:0]).shape == (0, 3, 33)
    x.requires_grad_()
    dy = torch.randn(2, *x.shape)
    grads, = torch.autograd.grad(ops.rms_norm(x, w[0]), x, dy, is_grads_batched=True)  # vmap of the backward
    for d, g in zip(dy, grads, strict=True):
        assert torch.equal(g, torch.autograd.grad(ops.rms_norm(x, w[0]), x, d)[0])


def test_leading_dimensions_are_batched_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, namespace = [], ops.softmax.fn.__globals__
    kernel = namespace["softmax_kernel"]
    monkeypatch.setitem(namespace, "softmax_kernel", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    torch.vmap(ops.softmax)(torch.randn(6, 2, 5))
    assert len(calls) == 1


def test_autocast() -> None:
    x, w, b = torch.randn(3, 16), torch.randn(8, 16), torch.randn(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.linear(x, w, b)
        compiled = torch.compile(lambda *a: ops.linear(*a), backend="aot_eager", fullgraph=True)(x, w, b)
        assert got.dtype is torch.bfloat16 and torch.equal(compiled, got)
        assert ops.rms_norm(got, torch.ones(8)).dtype is torch.float32  # the weight's: the widest
    assert torch.equal(got, ops.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()))


def test_autocast_leaves_what_needs_its_digits() -> None:
    q, slopes, many = torch.randn(1, 2, 70, 16), torch.tensor([0.3, 0.1]), torch.randn(1, 2, 70)
    low = q.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention = ops.attention(q, q, q, alibi=slopes, bias=many[..., None])
        chosen = ops.dynamic_mask_attention(q, q, q, many, 20)
        local = ops.lla(q, q, q, slopes[:, None])
    assert torch.equal(attention, ops.attention(low, low, low, alibi=slopes, bias=many[..., None]))
    assert torch.equal(chosen, ops.dynamic_mask_attention(low, low, low, many, 20))
    assert torch.equal(local, ops.lla(low, low, low, slopes[:, None]))


def test_kernels_allocate_for_tensors_without_memory() -> None:
    y = scale(torch.empty(3, 5, device="meta"), by=2.0)
    assert y.shape == (3, 5) and y.device.type == "meta"
    with tile.target("shapes"):
        assert ops.matmul.fn(np.zeros((2, 3)), np.zeros((3, 4))).shape == (2, 4)


def test_modules_are_drop_in() -> None:
    for name, args in (("Linear", (16, 8)), ("Linear", (16, 8, False)), ("GELU", ()), ("RMSNorm", (16,)),
                       ("Softmax", (1,)), ("LayerNorm", (16, 1e-3))):
        ours, theirs = (getattr(library, name)(*args) for library in (nn, torch.nn))
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, 3, 16)
        torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(ValueError, match="approximate='none'"):
        nn.GELU("tanh")
    with pytest.raises(ValueError, match="needs one extent"):
        nn.LayerNorm((3, 4))


def test_mistakes_are_named() -> None:
    with pytest.raises(tile.errors.TileError, match="cannot be allocated by an operator"):
        @tile.torch_op("tilelang_test::a")
        @tile.kernel
        def a(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "P"]):
            tile.store(y, (0,), tile.load(x, (0,), (1,)))
    with pytest.raises(TypeError, match="a parameter `z`: needs one of dout, out, x"):
        tile.torch_op("tilelang_test::b", backward=_stranger)(_plain)
    with pytest.raises(TypeError, match="annotation no operator can take"):
        tile.torch_op("tilelang_test::c")(_odd)
    with pytest.raises(TypeError, match=r"returns 1 of the results dx, dw: needs -> tuple\[Any, Any\]"):
        tile.torch_op("tilelang_test::g", backward=_stranger)(_two)
    with pytest.raises(ValueError, match="must describe 1 tensors and 1 results"):
        tile.torch_op("tilelang_test::d", dims="n, n -> n")(_plain)
    with pytest.raises(ValueError, match="autocast must be"):
        tile.torch_op(autocast="upper")
    with pytest.raises(ValueError, match="autocast of `tilelang_test::f` names `y`: needs some of its tensors, x"):
        tile.torch_op("tilelang_test::f", autocast="lower y")(_plain)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        tile.torch_op("tilelang_test::e")(_plain)(leaf(3)).sum().backward()
    x = torch.zeros(2, 3)
    for call, message in ((lambda: ops.gelu(x, w=3), r"gelu\(\) got an unexpected keyword argument 'w'; its"),
                          (lambda: ops.softmax(x, x=x), "multiple values for argument 'x'"),
                          (lambda: ops.linear(x), "missing a required argument: 'w'"),
                          (lambda: ops.gelu(x, x), "takes at most 1 arguments, got 2")):
        with pytest.raises(TypeError, match=message):
            call()


def _plain(x: Any) -> Any:
    return x.clone()


def _odd(x: dict[str, int]) -> Any:
    return x


def _two(x: Any, w: Any) -> Any:
    return x * w


def _stranger(z: Any) -> Any:
    return z


def test_results_written_elsewhere_have_no_gradient() -> None:
    x, y = leaf(3, 20), leaf(20, 5)
    with pytest.raises(ValueError, match="`tilelang::matmul` with `out` has no gradient: call it under torch"):
        ops.matmul(x, y, out=torch.empty(3, 5))
    with torch.no_grad():
        assert torch.equal(ops.matmul(x, y, out=torch.empty(3, 5)), ops.matmul(x, y))


def test_operators_of_saved_programs_are_known_without_a_call() -> None:
    """`torch.export.load` looks for them by name, in a process that may not have called any."""
    tile.torch_op("tilelang_test::known")(_plain)
    assert torch.ops.tilelang_test.known.default
    names = ("attention", "attention_decode", "attention_varlen", "linear", "mpgemm", "softmax", "softmax_backward")
    assert all(hasattr(torch.ops.tilelang, name) for name in names)
    text = f"""if 1:
        import sys, tilelang.ops
        from tilelang.torch_ops import register
        assert "torch" not in sys.modules
        import torch
        register()
        assert all(hasattr(torch.ops.tilelang, name) for name in {names})"""
    subprocess.run([sys.executable, "-c", text], check=True)


def test_numbers_have_no_gradient() -> None:
    by = torch.tensor(2.0, requires_grad=True)
    for x in (torch.ones(2, 3), leaf(2, 3)):
        with pytest.raises(ArgumentGradient, match="`by` of `tilelang_test::scale`, a number, has no gradient"):
            scale(x, by=by)
    with pytest.raises(ArgumentGradient, match="parameter `by` of `scale` requires a gradient"):
        scale.fn(torch.ones(2, 3), by=by)
    with torch.no_grad():
        assert torch.equal(scale(torch.ones(2, 3), by=by), torch.full((2, 3), 2.0))
    assert torch.equal(scale(torch.ones(2, 3), by=by.detach()), torch.full((2, 3), 2.0))


class _Watched(TorchFunctionMode):
    def __torch_function__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return fn(*args, **(kwargs or {}))


def test_who_looks_at_calls_of_operators() -> None:
    x, wanted = torch.randn(2, 3), leaf(2, 3)
    seen: list[bool] = []

    def looked(t: torch.Tensor) -> torch.Tensor:
        seen.append(nobody_looks((t,)))
        return t + 1
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert nobody_looks((wanted, [x, torch.zeros(1)], "text", None))
    assert nobody_looks((x,)) and not nobody_looks((wanted,))
    assert not nobody_looks(([x, wanted],)) and not nobody_looks(((x, wanted),))
    for other in (torch.empty(3, device="meta"), torch.ones(2, dtype=torch.complex64).conj().imag,
                  FakeTensorMode().from_tensor(x), x.to_sparse()):
        assert not nobody_looks((x, other))
    for mode in (torch.autocast("cpu"), FlopCounterMode(display=False), profile(), forward_ad.dual_level(),
                 _Watched()):
        with mode:
            looked(x)
    torch.vmap(looked)(x)
    torch.func.grad(lambda t: looked(t).sum())(x)
    make_fx(looked)(x)
    assert len(seen) == 8 and not any(seen)


def test_quantised_products_pass_the_dispatcher_by_unseen() -> None:
    """The same numbers, under a profile an event, gradients where they are wanted."""
    x, w = torch.randn(1, 32), tile.quantize(torch.randn(8, 32), "u4", group=32)
    y = ops.mpgemm(x, w)
    with profile() as found:
        assert torch.equal(ops.mpgemm(x, w), y)
    assert any(event.name == "tilelang::mpgemm" for event in found.events())
    assert ops.mpgemm(x.clone().requires_grad_(), w).requires_grad and not y.requires_grad


def test_ordinary_calls_save_the_way_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    x, wanted = torch.randn(2, 3), leaf(2, 3)
    ops.softmax(x)  # makes the operator known

    def looked(*args: Any) -> Any:
        raise AssertionError("the dispatcher")
    monkeypatch.setattr(ops.softmax, "_op", looked)
    torch.testing.assert_close(ops.softmax(x), torch.softmax(x, -1))
    with torch.no_grad():
        ops.softmax(wanted)
    with pytest.raises(AssertionError, match="the dispatcher"):
        ops.softmax(wanted)
    with pytest.raises(AssertionError, match="the dispatcher"), _Watched():
        ops.softmax(x)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="'weight' but instead found type 'str'"):  # what no operator takes
        ops.rms_norm(x, "weight")


def test_operators_are_copied_and_pickled_by_name() -> None:
    """Also an operator of a kernel alone: a copied module keeps the operator, with its gradients."""
    for op in (ops.softmax, scale):
        assert pickle.loads(pickle.dumps(op)) is copy.deepcopy(op) is copy.copy(op) is op


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_is_refused() -> None:
    """torch would take the derivative to be 0."""
    x = torch.randn(3, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(ArgumentGradient, match="no derivative in forward mode"):
            ops.softmax(dual)
        assert torch.equal(forward_ad.unpack_dual(dual + ops.softmax(x)).tangent, x)
