"""Calling a kernel: specialise on the arguments, compile or take from the cache, run."""
from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any, Self

from tilelang import device, hooks, locks, native, targets
from tilelang.args import check_gradient
from tilelang.bound import Bound
from tilelang.config import config
from tilelang.errors import ArgumentCount
from tilelang.ir import codec
from tilelang.ir.control import assertion_failed
from tilelang.ir.core import Function
from tilelang.ir.interpreter import count_programs, grid_extents, run
from tilelang.lang.emitter import any_changed
from tilelang.lang.kernel import KernelDef, Param
from tilelang.native import Failed
from tilelang.plan import PLAIN, Mismatch, Plan, direct, identity, is_constant

_target: ContextVar[str] = ContextVar("target", default="")
MAX_PLANS = 8
"""How many kinds of arguments a kernel remembers for each pattern of a call."""


@contextmanager
def target(name: str) -> Iterator[None]:
    """Runs the calls inside on a target: "cpu", "reference" for the NumPy interpreter, "cuda" or "hip" for
    the GPU, "shapes" to allocate outputs only, or for example "emulate:cuda:sm_80" for CUDA text on the CPU under
    checks. Raises TargetError."""
    token = _target.set(targets.check(name))
    try:
        yield
    finally:
        _target.reset(token)


def current_target() -> str:
    """The name given to `target` around the caller, else by TILELANG_TARGET; "" where there is none."""
    return _target.get() or config().target


def target_of(bound: Bound) -> str:
    """The target of a call. Raises TargetError."""
    if stated := config().target:
        return _target.get() or targets.check(stated, origin=" in the environment variable TILELANG_TARGET")
    return _target.get() or targets.check(targets.of_device(bound.device))


def only_allocates() -> bool:
    """Whether kernels do no more than to allocate their outputs (`targets.SHAPES`). Extents may be symbols then, by
    which no wrapper should choose anything."""
    return current_target() == targets.SHAPES


def on_gpu(*tensors: Any) -> bool:
    """Whether a call with these tensors runs on a GPU, or in the emulator of one: what a wrapper chooses blocks by."""
    name = current_target()
    if name and not only_allocates():
        return targets.on_device(name.removeprefix(targets.EMULATE))
    for t in tensors:
        if not getattr(t, "is_cpu", False) and str(getattr(t, "device", "cpu")).startswith(targets.GPUS):
            return True
    return False


def architecture(*tensors: Any) -> str:
    """The target of a call with these tensors on a GPU or in the emulator of one, with its architecture. Raises
    TargetError."""
    name = current_target()
    if not name:
        device = next(str(t.device) for t in tensors if str(getattr(t, "device", "cpu")) != "cpu")
        index = device.partition(":")[2]
        return targets.machine(targets.of_device(device), int(index or 0))
    return targets.machine(name) if name in targets.GPUS else name.removeprefix(targets.EMULATE)


class ByName:
    """Copied and pickled as functions are: as the name they have in their module."""

    __qualname__: str

    def __reduce__(self) -> str:
        return self.__qualname__

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class Kernel(ByName, KernelDef):
    """A function marked `@tile.kernel`. Call it with tensors; see also `lower`, `reference` and `trace`.

    `kernel(a, b)` allocates and gives the outputs; `kernel(a, b, c=out)` writes into `out`. Arguments are torch
    tensors, NumPy or CuPy arrays, objects with DLPack, or `tilelang.Packed`; those on a GPU run there. Inputs that
    overlap an output are read from a copy. Raises ArgumentCount, ArgumentDType, ArgumentRank, ArgumentDevice,
    ArgumentLayout, DimMismatch, AssertFailed, TargetError for a grid of more than 2**47 programs, and at the first
    call of a specialisation whatever the compiler finds.

    Names from around the kernel are constants of it. Where one has another value than when the kernel was compiled, or
    a captured list, dict, set, array of up to 64 KiB, or attribute has changed, the call compiles anew. What plain
    Python functions that the kernel calls read is not looked at, but whether they have been defined again.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(fn)
        self.__name__, self.__doc__, self.__wrapped__ = fn.__name__, fn.__doc__, fn
        self.__module__, self.__qualname__ = fn.__module__, fn.__qualname__
        self._variants: dict[tuple[str, ...], Kernel] = {}
        self._reduced: Any = None  # how a kernel without a name of its own is pickled
        self._prepare()

    def _prepare(self) -> None:
        self._optional = {p.name: i for i, p in enumerate(self.params) if p.optional}
        self._calls: dict[Any, tuple[list[int], list[str], dict[Any, Kernel]]] = {}
        """For a number of positions and names of a call: optional tensors among them, and the kernel by which of
        these are there."""
        self._compiled: dict[Any, Any] = {}
        self._runtime = [p for p in self.params if p.kind != "const"]
        self._consts = frozenset(p.name for p in self.params if p.kind == "const")
        self._leading = next((i for i, p in enumerate(self.params) if p.kind == "const"), len(self.params))
        self._plans: dict[Any, list[Plan]] = {}
        self.captured = {}

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Kernel, Sequence[Any], Mapping[str, Any]]:
        """The kernel and the arguments of a call without the optional tensors that are None or not given: those are
        constants of that kernel, so that what only they need is not compiled."""
        if len(args) > len(self.params):
            raise ArgumentCount(f"`{self.name}` got too many arguments", loc=self.source.loc,
                                needs=f"at most {len(self.params)}: {', '.join(p.name for p in self.params)}",
                                got=str(len(args)), try_="pass constants by name")
        if not self._optional:
            return self, args, kwargs
        call = len(args), *kwargs
        if call not in self._calls:
            self._calls[call] = ([i for i in self._optional.values() if i < len(args)],
                                 [n for n in kwargs if n in self._optional], {})
        places, names, variants = self._calls[call]
        there = (*[args[i] is not None for i in places], *[kwargs[n] is not None for n in names])
        if there not in variants:
            variants[there] = self._without(tuple([
                n for n, i in self._optional.items()
                if (i >= len(args) or args[i] is None) and kwargs.get(n) is None]))
        if not all(there):
            args = tuple([x for i, x in enumerate(args) if x is not None or i not in places])
            kwargs = {n: x for n, x in kwargs.items() if x is not None or n not in names}
        return variants[there], args, kwargs

    def _without(self, absent: tuple[str, ...]) -> Kernel:
        """This kernel where these optional tensors are constants."""
        if absent not in self._variants:
            self._variants[absent] = self._with(
                [*(p if p.name not in self._optional else replace(p, default=inspect.Parameter.empty)
                   for p in self.params if p.name not in absent),
                 *(Param(p.name, "const", None, None) for p in self.params if p.name in absent)])
        return self._variants[absent]

    def _with(self, params: list[Param]) -> Kernel:
        variant = object.__new__(type(self))
        variant.__dict__.update(self.__dict__, params=params, _variants={})
        variant._prepare()
        return variant

    def bind(self, **consts: Any) -> Kernel:
        """This kernel where these constants have other defaults. Raises ArgumentCount for what is no constant."""
        if unknown := consts.keys() - self._consts:
            raise ArgumentCount(f"`{self.name}` has no constant {min(unknown)!r}", loc=self.source.loc,
                                needs=", ".join(sorted(self._consts)) or "a kernel with constants",
                                got=min(unknown), try_="check the spelling")
        bound = self._with([replace(p, default=consts[p.name]) if p.name in consts else p for p in self.params])
        bound._reduced = partial(self.bind, **consts), ()
        return bound

    def taking(self, *names: str) -> Kernel:
        """This kernel where, of the optional tensors, these are given and the others are not: its calls need not find
        that out. Raises ArgumentCount for what is no optional tensor."""
        if unknown := set(names) - self._optional.keys():
            raise ArgumentCount(f"`{self.name}` has no optional tensor {min(unknown)!r}", loc=self.source.loc,
                                needs=", ".join(self._optional) or "a kernel with optional tensors",
                                got=min(unknown), try_="check the spelling")
        made = self._without(tuple([n for n in self._optional if n not in names]))
        made._reduced = partial(self.taking, *names), ()
        return made

    def __reduce__(self) -> Any:
        return self._reduced or super().__reduce__()

    def is_out(self, name: str) -> bool:
        """Whether a parameter is an output the call may allocate."""
        return any(p.name == name and p.kind == "tensor" and p.tensor.mode == "out" for p in self.params)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._optional:
            kernel, args, kwargs = self.given(args, kwargs)  # type: ignore[assignment]
            return kernel(*args, **kwargs)
        watched = None
        if hooks.active or hooks.profiler._is_profiler_enabled:
            watched = hooks.begin(self, _target.get(), args, kwargs)
        try:
            if self.captured and any_changed(self.captured.values()):
                self._renew()
            known, target = self._plans, _target.get()
            pattern = self._pattern(args, kwargs) if kwargs or len(args) > self._leading else len(args)
            plans: Sequence[Plan] = known.get(pattern, ())
            for plan in plans:
                if plan.target == target:  # the common case: native code checks arguments
                    try:
                        values = plan.values(args, kwargs)
                        if plan.fn(*values) is not None:
                            continue
                    except Failed as error:
                        raise (plan.failure(error.code) if plan.failure is not None else
                               self._failure(error, Bound(self, args, kwargs))) from None
                    except (Mismatch, AttributeError, IndexError, TypeError, ValueError, BufferError, RuntimeError):
                        continue  # an argument that cannot be exported: nothing has run, `_call` finds out why
                    if plan is not plans[0]:
                        known[pattern] = [plan, *(p for p in plans if p is not plan)]
                    outs = plan.outs
                    return values[outs[0]] if len(outs) == 1 else tuple(values[i] for i in outs) if outs else None
            if watched is None and hooks.look():
                watched = hooks.begin(self, _target.get(), args, kwargs)
            return self._call(args, kwargs)
        finally:
            if watched is not None:
                watched.end()

    # torch.compile breaks the graph at a call, as at functions marked torch.compiler.disable; see also `_untraced`.
    vars(__call__).update(_torchdynamo_disable=True, _torchdynamo_disable_msg="a kernel is a node of the graph as an "
                          "operator: @tile.torch_op (docs/pytorch.md)")

    def _pattern(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What calls of one plan share: the number of positions, the names in use and the constants."""
        places: Any = len(args)
        if places > self._leading:
            places = places, *[identity(x) for p, x in zip(self.params, args, strict=False) if p.kind == "const"]
        if not kwargs:
            return places
        consts = self._consts
        return places, tuple([name if name not in consts else (name, type(x), x) if type(x) in PLAIN else
                              (name, identity(x)) for name, x in kwargs.items()])

    def _call(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if only_allocates():
            return Bound(self, args, kwargs, shapes=True).outputs()
        known = self._plans  # other ones once a captured value has changed: this call's is not for those
        bound = Bound(self, args, kwargs)
        check_gradient(((a.name, a.owner) for a in bound.tensors.values()), self.name, self.source.loc)
        if bound.device == "meta":
            return bound.outputs()
        name = target_of(bound)
        device.check_device(name, bound)
        if name == "reference":
            self._interpret(bound)
            return bound.outputs()
        if name.startswith(targets.EMULATE):
            self._emulate(bound, name.removeprefix(targets.EMULATE))
            return bound.outputs()
        fn, failure = None, None
        if targets.on_device(name):
            launch = device.run(bound, self._launch(bound, name))
            fn, failure = launch.entry, launch.failure
        else:
            fn, tile = self._specialise(bound)
            try:
                refused = fn(*bound.ffi()) is not None
            except Failed as error:
                raise self._failure(error, bound) from None
            if refused:  # `bound` has checked all else that native code checks
                arrays, shapes, _ = bound.memory(on_host=False)
                count_programs(tile, grid_extents(tile, arrays, shapes, get_num_threads()))
                raise AssertionError(f"`{self.name}` refuses what it was compiled for")
        if (direct(bound.tensors.values(), targets.on_device(name))
                and all(is_constant(x) for p, x in zip(self.params, args, strict=False) if p.kind == "const")
                and all(is_constant(x) for name, x in kwargs.items() if name in self._consts)):
            plan = Plan(fn, self.params, len(args), bound, _target.get(), failure)
            pattern = self._pattern(args, kwargs)
            others = [p for p in known.get(pattern, ()) if p.key != plan.key]
            known[pattern] = [plan, *others[:MAX_PLANS - 1]]
        return bound.outputs()

    def _renew(self) -> None:
        """Forgets what was compiled where a captured value is another one today."""
        with locks.compiling:  # what a thread has been compiling is forgotten, too
            if self.captured and any_changed(self.captured.values()):
                self._prepare()

    def _launch(self, bound: Bound, name: str) -> Any:
        """The launch for these types, constants and device."""
        types = bound.types(aligned=True)
        key = (name, bound.device, tuple(types.values()), tuple(map(identity, bound.consts.values())))
        with locks.compiling:
            self._renew()
            if key not in self._compiled:
                self._compiled[key] = device.load(bound, name)
            return self._compiled[key]

    def _specialise(self, bound: Bound) -> tuple[Any, Function]:
        """The native function for these types and constants."""
        types = bound.types()
        key = (tuple(types.values()), tuple(map(identity, bound.consts.values())))
        found = self._compiled.get(key)
        if found is None or self.captured and any_changed(self.captured.values()):
            with locks.compiling:
                self._renew()
                found = self._compiled.get(key)
                if found is None:
                    tile = self.trace(types, bound.consts)
                    found = self._compiled[key] = native.load(tile), tile
        return found

    def _failure(self, error: Failed, bound: Bound) -> Exception:
        code = error.code
        if code >= 1 << 15:
            return MemoryError(f"`{self.name}` could not allocate its scratch memory")
        lowered = targets.lowered(self._specialise(bound)[1], "cpu")
        asserts = [op for op in lowered.thread.walk() if op.name == "assert"]
        return assertion_failed(asserts[code - 1])

    def lower(self, *args: Any, target: str = "cpu", **kwargs: Any) -> Any:
        """The kernel for these arguments at every level: `.tile`, `.placed`, `.thread`, `.source` (LLVM IR, CUDA or
        HIP C++), `.assembly`; and `.report`, what it uses. Nothing is run, and no device is needed."""
        bound = Bound(self, args, kwargs)
        name = targets.check(target, runs=False).removeprefix(targets.EMULATE)
        return targets.lowered(bound.kernel.trace(bound.types(aligned=name != "cpu"), bound.consts), name)

    def explain(self, *args: Any, target: str = "cpu", run: bool = False, **kwargs: Any) -> Any:
        """What the compiler makes of the kernel for these arguments: see `tilelang.explain.explain`."""
        from tilelang.explain import explain
        return explain(self, *args, target=target, run=run, **kwargs)

    def export(self, directory: str | Path, *args: Any, **kwargs: Any) -> Path:
        """The kernel for these arguments as a library that needs no Python: see `tilelang.export.export`."""
        from tilelang.export import export
        return export(self, directory, *args, **kwargs)

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """The same call by the NumPy interpreter: slow, and the definition of what the kernel means."""
        bound = Bound(self, args, kwargs)
        check_gradient(((a.name, a.owner) for a in bound.tensors.values()), self.name, self.source.loc)
        bound.kernel._interpret(bound)
        return bound.outputs()

    def _emulate(self, bound: Bound, machine: str) -> None:
        types = bound.types(aligned=True)
        key = (machine, tuple(types.values()), tuple(map(identity, bound.consts.values())))
        with locks.compiling:
            self._renew()
            if key not in self._compiled:
                self._compiled[key] = targets.lowered(self.trace(types, bound.consts), machine)
            code = self._compiled[key]
        targets.emulate(code, *bound.memory())

    def _interpret(self, bound: Bound) -> None:
        arrays: list[Any] = []
        for p in self._runtime:
            if p.kind == "tensor":
                arrays.append(bound.tensors[p.name].storage())
            else:
                arrays.append(bound.scalar(p))
        run(self.trace(bound.types(), bound.consts), arrays)
        for p, array in zip(self._runtime, arrays, strict=True):
            if p.kind == "tensor" and p.tensor.mode != "in" and bound.tensors[p.name].kind == "packed":
                a = bound.tensors[p.name]
                a.array.write(codec.to_bits(array, a.dtype))

    def __repr__(self) -> str:
        return f"<tile kernel {self.name} at {self.source.file}:{self.source.first_line}>"


def kernel(fn: Callable[..., Any]) -> Kernel:
    """Marks a function as a tile kernel."""
    _untraced(Kernel.__call__.__code__)
    return Kernel(fn)


def _untraced(code: CodeType) -> None:
    """Keeps torch.compile from compiling the frames below a function, thousands of ours in a first call. That is what
    torch.compiler.disable does, but without importing torch's compiler."""
    frames: Any = getattr(getattr(sys.modules.get("torch._C"), "_dynamo", None), "eval_frame", None)
    if hasattr(frames, "set_code_exec_strategy") and hasattr(frames, "_FrameExecStrategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(code, frames._FrameExecStrategy(skip, skip))


def set_num_threads(n: int) -> None:
    """Lets `n` CPU threads run the programs of a grid."""
    from tilelang.backends.cpu.pool import pool
    pool().resize(n)


def get_num_threads() -> int:
    """How many CPU threads run the programs of a grid."""
    from tilelang.backends.cpu.pool import pool
    return pool().workers
