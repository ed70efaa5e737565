"""Whether two functions mean the same: both run on random inputs through the interpreter.

Integers must agree exactly, and so must everything where the pass declares itself exact. For floats the bound is
derived from the function itself, by random rounding (Vignes, "A stochastic arithmetic for reliable scientific
computation", 1993): the original runs several times with every rounded operation disturbed by as much as an
implementation may differ, which is one unit in the last place, and length * eps * sum |terms| for a reduction. How
far the outputs move is how far a correct pass may move them.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import islice
from typing import Any

import numpy as np

from tilelang.errors import AssertFailed, CheckError
from tilelang.ir import codec, interpreter
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Dim, Function, Op, TensorType, TileType
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.words import halves_of

_SAMPLES = 24
_SLACK = 4
"""The movement seen in so few runs understates the largest possible one; this much more is allowed."""
_EXACT = {"neg", "abs", "min", "max", "floor", "ceil", "round", "trunc"}


# -- inputs -----------------------------------------------------------------------------------------------------------
def random_inputs(fn: Function, rng: np.random.Generator, full: bool = False, special: bool = False,
                  wild: bool = False) -> list[Any]:
    """One argument for each parameter. Extents lie around the blocks that walk them: at least one whole block where
    `full`, anything else too otherwise. Tensors have gaps where their type does not promise unit stride. `special`
    mixes in infinities, NaN and extreme values; `wild` is for functions that stand all that their types allow: any
    integers, loops or not, and tensors without elements, and in any order in memory."""
    draw = _Draw(rng, special, not wild and any(op.name in ("for", "while") for op in fn.walk()), wild)
    blocks = _blocks(fn)
    whole = _promised(fn)
    extents: dict[Dim, int] = {}
    out = []
    for p in fn.params:
        if not isinstance(p.type, TensorType):
            out.append(draw.values(p.type.dtype, ()))
            continue
        for d in p.type.dims:
            block = int(rng.choice(blocks.get(d) or blocks[""]))
            sizes = [block, block + 1, 2 * block] + ([] if full else [1, 3, max(block // 2, 1), max(block - 1, 1)])
            sizes += [0] * (wild and not full and rng.random() < 0.2)
            extents.setdefault(d, d if isinstance(d, int) else whole(d, int(rng.choice(sizes))))
        out.append(draw.tensor(p.type, tuple(extents[d] for d in p.type.dims)))
    return out


def _promised(fn: Function) -> Callable[[Dim, int], int]:
    """Rounds extents of dimensions up to what the alignment of the parameters' types promises of them."""
    steps: dict[Dim, int] = {}
    for t in (p.type for p in fn.params):
        if isinstance(t, TensorType):
            for d in t.dims:
                step = max(t.align // t.dtype.storage.itemsize, 1)
                steps[d] = max(steps.get(d, 1), step)
    return lambda d, n: -(-n // steps[d]) * steps[d]


def _blocks(fn: Function) -> dict[Dim, list[int]]:
    """The extents of the blocks that walk each dimension; under "" those of all tiles. Dimensions that are walked one
    by one are short: an interpreted program or iteration for each takes time."""
    tiles = {e for op in fn.walk() for r in op.results if isinstance(r.type, TileType) for e in r.type.shape}
    found: dict[Dim, set[int]] = {"": {e for e in tiles if 1 < e <= 256} or {4}}
    for d, extents in walked(fn).items():
        if max(extents) > 1 or 0 not in extents:
            found[d] = {e for e in extents if e > 1} or {4}
    return {d: sorted(extents) for d, extents in found.items()}


def walked(fn: Function) -> dict[Dim, set[int]]:
    """The extents, along each dimension of tensors, of the blocks that are accessed: 1 where an index is named, 0
    where any elements may be meant."""
    found: dict[Dim, set[int]] = {}
    for op in fn.walk():
        for t in (o.type for o in op.operands if isinstance(o.type, TensorType)):
            extents = [int("axes" in op.attrs)] * t.rank
            if "axes" in op.attrs:
                block = (op.results[0] if op.results else op.operands[getattr(op, "buffer", -1)]).type
                assert not isinstance(block, TensorType)
                axes = op.attrs["axes"]  # of a copy the last dimensions of its buffer
                for axis, extent in zip(axes, block.shape[len(block.shape) - len(axes):], strict=True):
                    extents[axis] = extent
            for d, extent in zip(t.dims, extents, strict=True) if op.name not in ("dim", "stride") else ():
                found.setdefault(d, set()).add(extent)
    return found


@dataclass(frozen=True)
class _Draw:
    """Random values; `bounded` keeps wide integers small, because they may be how often a loop runs. `wild` tensors
    lie in memory as their types allow: dimensions in any order, forwards or backwards, rows apart, at any address."""

    rng: np.random.Generator
    special: bool
    bounded: bool
    wild: bool = False

    def tensor(self, t: TensorType, shape: tuple[int, ...]) -> Any:
        """A tensor with unit stride in the dimension that promises it, and gaps between the others' elements."""
        unit = t.unit.index(True) if True in t.unit else None
        order = [d for d in range(t.rank) if d != unit]
        if self.wild:
            self.rng.shuffle(order)
        order += [unit] if unit is not None else []
        memory = [shape[d] for d in order]
        if not memory:
            return self.values(t.dtype, ())
        step = max(t.align // t.dtype.storage.itemsize, 1)
        before, behind = (step * self.rng.integers(0, 3, 2)).tolist() if self.wild else (0, 0)
        gap = 1 if unit is not None else 2
        turned = tuple(slice(None, None, -1 if self.wild and d != unit and self.rng.random() < 0.2 else 1)
                       for d in order)
        array = self.values(t.dtype, (*memory[:-1], before + gap * memory[-1] + behind))
        return array[..., before:before + gap * memory[-1]:gap][turned].transpose(np.argsort(order))

    def values(self, dt: DType, shape: tuple[int, ...]) -> Any:
        rng = self.rng
        if dt.kind == "float":
            real = np.where(rng.random(shape) < 0.05, np.copysign(0.0, rng.standard_normal(shape)),
                            rng.standard_normal(shape))
            if self.special:
                chosen = rng.choice([np.inf, -np.inf, np.nan, float(dt.max), dt.smallest_subnormal], shape)
                real = np.where(rng.random(shape) < 0.1, chosen, real)
            return codec.encode(real, dt)
        if dt.kind in ("int", "uint"):
            # Small numbers are valid indices and counts, which is what most scalars are.
            small, wide = rng.integers(0, 9, shape).astype(np.uint64), rng.integers(0, 2**64, shape, np.uint64)
            if self.bounded and dt.bits > 8:
                wide = rng.integers(-64, 64, shape).astype(np.uint64)
            if self.wild:  # the least, the largest, and those beside them and 0
                edges = np.array([1 << dt.bits - 1, (1 << dt.bits - 1) - 1, 1, 0, 2**64 - 1], np.uint64)
                wide = np.where(rng.random(shape) < 0.3, rng.choice(edges, shape), wide)
            return codec.from_bits(np.where((rng.random(shape) < 0.5) | (shape == ()), small, wide), dt)
        if dt.kind == "scale":
            return rng.integers(120, 134, shape).astype(dt.storage)
        return codec.from_bits(rng.integers(0, 3 if dt.kind == "ternary" else 1 << dt.bits, shape), dt)


# -- running ----------------------------------------------------------------------------------------------------------
@dataclass
class _Outcome:
    tensors: list[Any]
    lines: list[str]


def _run(fn: Function, args: list[Any]) -> _Outcome:
    copies = [_copied(a) if isinstance(a, np.ndarray) else a for a in args]
    lines: list[str] = []
    interpreter.run(fn, copies, num_workers=2, output=lines.append)
    return _Outcome(copies, "\n".join(lines).splitlines())


def _run_any(code: Function | Callable[[list[Any]], None], args: list[Any]) -> _Outcome:
    if isinstance(code, Function):
        return _run(code, args)
    copies = [_copied(a) if isinstance(a, np.ndarray) else a for a in args]
    with redirect_stdout(StringIO()) as output:
        code(copies)
    return _Outcome(copies, output.getvalue().splitlines())


def _copied(a: Any) -> Any:
    """A copy with the same strides, which `ndarray.copy` does not keep."""
    root = a if a.base is None else a.base
    offset = a.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return np.ndarray(a.shape, a.dtype, root.copy(), offset, a.strides)


Fraction = Callable[[Op], int]
"""How many bits behind the point a machine keeps in the sums of a `dot`."""


def _disturbed(fn: Function, rng: np.random.Generator, fraction: Fraction | None = None) -> Function:
    """A copy of `fn` whose rounded operations are off by as much as an implementation may be."""
    fn = fn.clone()
    for op in fn.walk():
        if (size := _error_of(op, fraction)) is not None:
            setattr(op, "eval", partial(_disturbed_eval, op, size, rng))  # noqa: B010 (an instance's own method)
    return fn


def _error_of(op: Op, fraction: Fraction | None = None) -> Callable[..., Any] | None:
    """How large the error of one evaluation may be, as a function of result and operands; None: it is exact."""
    if not op.results or op.results[0].type.dtype.kind != "float":
        return None
    dt = op.results[0].dtype
    ulp, sum_ulp = 2.0 ** -dt.mantissa_bits, 2.0 ** -dt.compute.mantissa_bits
    if op.name == "dot2":
        return _error_of_pairs
    if isinstance(op, ew.Elementwise) and op.name not in _EXACT:
        # Where f64 gives the same value nothing was rounded; f64 itself cannot tell.
        return lambda out, *args: ulp * _finite(out) * ((type(op).fn(*args) != out) | (dt.name == "f64"))
    if isinstance(op, ew.Cast):
        return lambda out, a: ulp * _finite(out) * (a != out)
    if op.name == "dot":
        sum_ulp, least = 2.0 ** -fraction(op) if fraction else sum_ulp, op.least  # type: ignore[attr-defined]

        def of_products(out: Any, *terms: Any) -> Any:
            a, b, *acc = map(_finite, terms)
            total = a @ b + sum(acc)
            return sum_ulp * a.shape[-1] * total + _lost(least, a, b) + _overflowing(dt, total)
        return of_products
    if op.name == "dot_scaled":
        return _error_of_scaled
    if op.name in ("reduce", "scan") and op.attrs["kind"] in ("sum", "prod"):
        axis, n, keep = op.attrs["axis"], op.operands[0].shape[op.attrs["axis"]], op.name == "scan"
        if op.attrs["kind"] == "prod":
            return lambda out, a: (ulp + sum_ulp * n) * _finite(out) + _overflowing(
                dt, np.maximum(_finite(a), 1).prod(axis, keepdims=keep))

        def of_sums(out: Any, a: Any) -> Any:
            total = _finite(a).sum(axis, keepdims=keep)
            return ulp * _finite(out) + sum_ulp * n * total + _overflowing(dt, total)
        return of_sums
    return None


def _finite(x: Any) -> Any:
    """|x|, and 0 for what is infinite or NaN in any order."""
    return np.where(np.isfinite(x), np.abs(x), 0.0)


def _overflowing(dt: DType, total: Any) -> Any:
    """NaN, for any result, where what is finite may add up to an infinity on the way, and meet another of the other
    sign: in which order is not defined, nor whether a product is rounded before it is added."""
    return np.where(total > float(dt.compute.max), np.nan, 0.0)


def _error_of_pairs(out: Any, a: Any, b: Any, c: Any) -> Any:
    """Two additions, of numbers that may be zeros."""
    x, y = (_finite(np.stack(halves_of(words), -1).astype(np.float64)) for words in (a, b))
    total = (x * y).sum(-1) + _finite(c)
    return 2.0 ** -23 * total + dtype("bf16").smallest_normal * (x.sum(-1) + y.sum(-1) + 3) + \
        _overflowing(dtype("f32"), total)


def _error_of_scaled(out: Any, a: Any, b: Any, a_scale: Any, b_scale: Any, *acc: Any) -> Any:
    """As that of a `dot` of bf16, which it may be."""
    run = a.shape[-1] // a_scale.shape[-1]
    a, b = _finite(a * np.repeat(a_scale, run, -1)), _finite(b * np.repeat(b_scale, run, -2))
    total = a @ b + sum(map(_finite, acc))
    return 2.0 ** -23 * a.shape[-1] * total + _lost(dtype("bf16").smallest_normal, a, b) + \
        _overflowing(dtype("f32"), total)


def _lost(least: float, a: Any, b: Any) -> Any:
    """How far a product of |a| [..., M, K] and |b| [..., K, N] may be off where numbers below `least` may be zeros."""
    return least * (a.sum(-1)[..., None] + b.sum(-2)[..., None, :] + a.shape[-1] + 1)


def _disturbed_eval(op: Op, size: Callable[..., Any], rng: np.random.Generator, frame: Any, *args: Any) -> Any:
    out = type(op).eval(op, frame, *args)
    (out,) = out if isinstance(out, tuple) else (out,)
    dt = op.result.dtype
    real = codec.decode(out, dt).astype(np.float64)
    error = size(real, *(codec.decode(a, v.dtype).astype(np.float64) for a, v in zip(args, op.operands, strict=True)))
    # Half errors too: the sine of a huge number may move more by one step than by two.
    moved = real + rng.choice([-1.0, -0.5, 0.5, 1.0], real.shape) * error
    return np.asarray(codec.encode(np.where(np.isfinite(real) | np.isnan(error), moved, real), dt))


def _rounds(fn: Function) -> bool:
    return any(_error_of(op) is not None for op in fn.walk())


def noise(fn: Function, args: list[Any], rng: np.random.Generator,
          fraction: Fraction | None = None) -> Iterator[list[Any]]:
    """Arguments after disturbed runs of `fn`, which happen as they are asked for: how far rounding may move its
    results. Sums of a `dot` are rounded to `fraction(op)` bits behind the point, or to those of the dtype they are
    summed up in. No runs where nothing is rounded."""
    if _rounds(fn):
        disturbed = _disturbed(fn, rng, fraction)
        for _ in range(_SAMPLES):
            yield _run(disturbed, args).tensors


# -- comparing --------------------------------------------------------------------------------------------------------
def difference(before: Function, after: Function | Callable[[list[Any]], None], rng: np.random.Generator,
               exact: bool = False, trials: int = 4, inputs: list[Any] | None = None, checked: bool = False,
               wild: bool = False) -> str:
    """What shows that `after` (a function, or compiled code that takes NumPy arguments in storage form) means
    something else than `before`; empty if nothing does. Neither is changed. `inputs` are tried first, then others are
    drawn. Inputs that `before` rejects (a failed assertion, a read of memory never written) say nothing; where `after`
    is `checked`, it may still find mistakes of memory with them, and other results it cannot have. `wild` inputs are
    those of `random_inputs`."""
    for number in range(8 * trials):
        args = inputs if inputs is not None and not number else \
            random_inputs(before, rng, trials % 2 == 0, trials == 1 and (exact or wild), wild)
        wanted = None
        try:
            wanted = _run(before, args)
        except AssertFailed:
            continue
        except CheckError:
            if not checked:
                continue
        sizes = ", ".join(f"{p.name}: {list(a.shape) if isinstance(p.type, TensorType) else a}"
                          for p, a in zip(before.params, args, strict=True))
        try:
            got = _run_any(after, args)
            found = _compare(before, args, wanted, got, None if exact else rng) if wanted is not None else ""
        except Exception as error:  # whatever it raises, the function before did not
            found = f"{type(error).__name__}: {error}"
        if found:
            return f"{found} (inputs {sizes})"
        trials -= 1
        if not trials:
            break
    return ""


def _compare(fn: Function, args: list[Any], wanted: _Outcome, got: _Outcome, rng: np.random.Generator | None) -> str:
    """The first difference in the tensors, and in what was printed; `rng` disturbs the floats, None asks for bits."""
    types = {i: p.type.dtype for i, p in enumerate(fn.params) if isinstance(p.type, TensorType)}
    bad = {i: ~same_bits(wanted.tensors[i], got.tensors[i], dt) for i, dt in types.items()}
    if rng is not None:
        bad = beyond_rounding(bad, wanted.tensors, got.tensors, types, noise(fn, args, rng))
    for i, where in bad.items():
        if where.any():
            at, dt = tuple(int(x) for x in np.argwhere(where)[0]), types[i]
            return (f"%{fn.params[i].name}{list(at)} was {codec.decode(wanted.tensors[i], dt)[at]} and is "
                    f"{codec.decode(got.tensors[i], dt)[at]}; {int(where.sum())} of {where.size} elements differ")
    # How a rounded number is written is not compared, nor in which order the programs of a grid print.
    if len(wanted.lines) != len(got.lines) or (rng is None and wanted.lines != got.lines) or \
            not _rounds(fn) and sorted(wanted.lines) != sorted(got.lines):
        return f"it printed {wanted.lines} and prints {got.lines}"
    return ""


def same_bits(a: Any, b: Any, dt: DType) -> Any:
    """Which elements are equal to the bit, or both NaN."""
    same = np.asarray(codec.to_bits(a, dt) == codec.to_bits(b, dt))
    if dt.kind in ("float", "scale"):
        same = same | (np.isnan(codec.decode(a, dt)) & np.isnan(codec.decode(b, dt)))
    return same


def beyond_rounding(bad: Mapping[int, Any], wanted: Any, got: Any, types: Mapping[int, DType],
                    samples: Iterator[list[Any]], centre: Any = None) -> dict[int, Any]:
    """`bad`, the elements that differ by the number of their argument, without those that rounding explains. Samples
    are drawn while some are left: an element that happened not to move in a few of them may still move. The others,
    too, hold arguments by their number."""
    drawn: list[list[Any]] = []
    while True:
        bad = {i: where & ~explained(wanted[i], got[i], [s[i] for s in drawn], types[i],
                                     None if centre is None else centre[i]) for i, where in bad.items()}
        if not any(where.any() for where in bad.values()) or not (drawn := list(islice(samples, 1))):
            return bad


def explained(wanted: Any, got: Any, samples: list[Any], dt: DType, centre: Any = None) -> Any:
    """Which elements of `got` are no further from `wanted` than the disturbed samples are from the undisturbed
    result, `centre` (`wanted` itself where None). Without samples nothing is rounded, and zeros alone may differ."""
    w, g, c, *noisy = (codec.decode(x, dt).astype(np.float64)
                       for x in (wanted, got, wanted if centre is None else centre, *samples))
    with np.errstate(all="ignore"):
        moved = np.max([np.zeros(c.shape), *(np.where(s == c, 0.0, np.abs(s - c)) for s in noisy)], 0)
        near = (np.abs(w - g) <= moved) & (moved > 0)
        if dt.kind == "float" and noisy:
            near = np.abs(w - g) <= _SLACK * moved + 2.0 ** -dt.mantissa_bits * np.abs(w) + dt.smallest_subnormal
        near = np.where(np.isfinite(w) & np.isfinite(g), near, False) | (w == g)  # an infinity is near no other
        loose = np.any([np.zeros(c.shape, bool), *((np.isfinite(s) != np.isfinite(c)) | (np.isnan(s) != np.isnan(c))
                                                   for s in noisy)], 0)
    return near | loose
