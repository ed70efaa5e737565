"""What watches calls of kernels: hooks of the user's, ranges for the profilers of GPUs, and torch's profiler.

A call looks at two variables to learn that nobody does.
"""
from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tilelang import targets
from tilelang.config import config
from tilelang.errors import TargetError

_LIBRARIES = {"nvtx": "libnvToolsExt.so.1", "roctx": "libroctx64.so"}


class Launch(NamedTuple):
    """A call of a kernel: `target` as `tile.target` takes it, shapes of the tensors and values of the constants by
    parameter (of outputs that the call allocates, none)."""

    kernel: str
    target: str
    shapes: dict[str, tuple[int, ...]]
    consts: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(f'{n}: {list(s)}' for n, s in self.shapes.items())})"


class Hook:
    """Functions that are called around every launch of the process, until `remove`, or for the length of a `with`."""

    def __init__(self, before: Callable[[Launch], Any] | None, after: Callable[[Launch], Any] | None) -> None:
        self.before, self.after = before, after

    def remove(self) -> None:
        """Ends it; a second time does nothing."""
        if self in active:
            active.remove(self)

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


class _NoProfiler:
    _is_profiler_enabled = False


active: list[Hook] = []
profiler: Any = _NoProfiler
"""torch's module, as soon as it is imported and a kernel is called in a way that is new."""
_looked = False


def add(before: Callable[[Launch], Any] | None = None, after: Callable[[Launch], Any] | None = None) -> Hook:
    """Calls `before(launch)` before each call of a kernel, and `after(launch)` when the call comes back, with a result
    or an error; on a GPU the kernel may still run then. The first hook is the outermost. What a hook raises, the call
    raises."""
    hook = Hook(before, after)
    active.append(hook)
    return hook


def look() -> bool:
    """Whether somebody watches, once it is known whether torch is there and which ranges the environment asks for.
    Raises TargetError where those have no library."""
    global _looked, profiler
    if "torch" in sys.modules:
        profiler = sys.modules.get("torch.autograd.profiler", profiler)
    if not _looked:
        if config().ranges:
            push, pop = _ranges(config().ranges)
            add(lambda launch: push(str(launch)), lambda launch: pop())
        _looked = True
    return bool(active) or profiler._is_profiler_enabled


def _ranges(kind: str) -> tuple[Callable[[str], Any], Callable[[], Any]]:
    """What begins a range of that name in the timelines of profilers, and what ends the last one."""
    name = _LIBRARIES[kind]
    if kind == "nvtx":
        try:
            import nvtx
            return nvtx.push_range, nvtx.pop_range
        except ImportError:
            pass
        try:
            library: ctypes.CDLL | None = ctypes.CDLL(name)
        except OSError:
            library = None
    else:
        from tilelang.backends.hip import libraries
        found = libraries.load(name, f"{kind}RangePushA")
        library = found.library if found else None
    if library is None:
        raise TargetError(f"the library for TILELANG_RANGES={kind} was not found", needs=name,
                          got="none that can be loaded",
                          try_="pip install nvtx" if kind == "nvtx" else "install ROCm, or unset TILELANG_RANGES")
    push, pop = getattr(library, f"{kind}RangePushA"), getattr(library, f"{kind}RangePop")
    return lambda text: push(text.encode()), pop


def begin(kernel: Any, target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Watched | None:
    """The watch over a call on `target` ("" where the arguments decide); None where the call runs nothing."""
    given: dict[str, Any] = {p.name: p.default for p in kernel.params if p.kind == "const"}
    given.update(zip((p.name for p in kernel.params), args, strict=False), **kwargs)
    tensors: dict[str, Any] = {p.name: given[p.name] for p in kernel.params
                               if p.kind == "tensor" and hasattr(given.get(p.name), "shape")}
    device = next((str(getattr(x, "device", "cpu")) for x in tensors.values()), "cpu")
    if target == targets.SHAPES or device == "meta":
        return None
    launch = Launch(kernel.name, target or config().target or targets.of_device(device),
                    {n: tuple(x.shape) for n, x in tensors.items()},
                    {p.name: given[p.name] for p in kernel.params if p.kind == "const" and p.name in given})
    return Watched(launch, list(tensors.values()))


class Watched:
    """One call under watch, from its beginning to `end`."""

    def __init__(self, launch: Launch, tensors: Sequence[Any]) -> None:
        self._launch = launch
        self._told: list[Hook] = []
        self._range: Any = None
        try:
            for hook in list(active):
                if hook.before is not None:
                    hook.before(launch)
                self._told.append(hook)
            if profiler._is_profiler_enabled:
                torch = sys.modules["torch"]
                self._range = torch.autograd._record_function_with_args_enter(
                    f"tile::{launch.kernel}", *(x for x in tensors if isinstance(x, torch.Tensor)))
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Tells everybody whom the beginning was told, the last first."""
        if self._range is not None:
            sys.modules["torch"].autograd._record_function_with_args_exit(self._range)
            self._range = None
        while self._told:
            hook = self._told.pop()
            if hook.after is not None:
                hook.after(self._launch)
