"""Arguments of a call: what NumPy, torch, DLPack and packed tensors are, seen by the compiler."""
from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from operator import methodcaller
from typing import Any

import numpy as np

from tilelang.errors import ArgumentCount, ArgumentDevice, ArgumentDType, ArgumentGradient, ArgumentLayout, Loc
from tilelang.ir import codec
from tilelang.ir.core import MAX_EXTENT, TensorType
from tilelang.ir.dtypes import DType, from_external
from tilelang.ir.packed import Packed


def masked_arrays() -> type | None:
    """NumPy's class of them, if somebody has imported it."""
    module = sys.modules.get("numpy.ma")
    return None if module is None else module.MaskedArray


@dataclass(frozen=True)
class Argument:
    """A tensor argument: `array` is the NumPy or torch object, strides count elements (bits where packed)."""

    name: str
    array: Any
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str  # numpy, torch, packed or cuda (an object with __cuda_array_interface__)
    device: str = "cpu"  # or "cuda:0"

    @property
    def unit(self) -> tuple[bool, ...]:
        """Which dimension's neighbours are adjacent: the last if it can be, else the first that is."""
        one = self.dtype.bits if self.kind == "packed" else 1
        flags = [n <= 1 or s == one for n, s in zip(self.shape, self.strides, strict=True)]
        if flags and flags[-1]:
            return (False,) * (len(flags) - 1) + (True,)
        exact = [n > 1 and s == one for n, s in zip(self.shape, self.strides, strict=True)]
        return tuple(e and not any(exact[:i]) for i, e in enumerate(exact))

    @property
    def align(self) -> int:
        """The largest of 16, 8, … 1 bytes that divides the address, the strides but the one of neighbours, and the
        extent of that dimension; 1, too, where these are no whole bytes."""
        if 0 in self.shape:
            return 1
        size = self.dtype.bits if self.kind == "packed" else 8 * self.dtype.storage.itemsize
        step = 1 if self.kind == "packed" else size
        numbers = [8 * self.address]
        for n, s, one in zip(self.shape, self.strides, self.unit, strict=True):
            numbers += [n * size] if one else [s * step] if n > 1 else []
        return max(math.gcd(8 * 16, *numbers) // 8, 1)

    @property
    def owner(self) -> Any:
        """The object that owns the memory: of a packed tensor its bytes."""
        return self.array.buffer if self.kind == "packed" else self.array

    @property
    def address(self) -> int:
        """Address of the first element."""
        return address(self.owner)

    def memory(self) -> Any:
        """The NumPy array over the argument's own memory: elements, or the bytes of a packed tensor."""
        if self.kind != "packed":
            return self.storage()
        buffer = self.array.buffer
        return buffer if isinstance(buffer, np.ndarray) else buffer.numpy()

    def span(self) -> tuple[int, int]:
        """First byte and end of the memory the elements lie in."""
        if 0 in self.shape:
            return 0, 0
        reach = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
        base = self.address
        if self.kind == "packed":
            return base + low // 8, base + (high + self.dtype.bits + 7) // 8
        size = self.dtype.storage.itemsize
        return base + low * size, base + (high + 1) * size

    def ffi(self) -> list[Any]:
        """What tvm-ffi is given."""
        if self.kind == "packed":
            return [self.array.buffer, *self.shape, *self.strides]
        if self.kind == "torch":
            import torch
            tensor = self.array.detach()
            native = self.dtype.native or self.dtype.name == "bf16"
            return [tensor if native else tensor.view(getattr(torch, f"uint{self.dtype.bits}"))]
        array = self.array
        if not array.flags.writeable:  # DLPack cannot export that; nobody writes to an input
            low, high = self.span()
            memory = memoryview((ctypes.c_char * (high - low)).from_address(low))
            array = np.ndarray(array.shape, array.dtype, memory, self.address - low if high else 0, array.strides)
        return [array.view(self.dtype.storage) if array.dtype != self.dtype.storage else array]

    def storage(self) -> Any:
        """The NumPy array the interpreter works on; shares memory except where packed."""
        if self.kind == "packed":
            return codec.from_bits(self.array.codes(), self.dtype)
        if self.kind == "numpy":
            return self.array.view(self.dtype.storage)
        import torch
        tensor = self.array.detach()
        if not (self.dtype.native):
            tensor = tensor.view(torch.uint16 if self.dtype.bits == 16 else torch.uint8)
        return tensor.numpy()


def address(array: Any) -> int:
    """Address of the first element of a NumPy array, torch tensor or array on a GPU."""
    if isinstance(array, np.ndarray):
        return int(array.ctypes.data)
    return int(array.data_ptr()) if is_torch(array) else int(array.__cuda_array_interface__["data"][0])


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def wants_gradient(*values: Any) -> bool:
    """Whether torch would record a call with these arguments for the backward pass."""
    torch = sys.modules.get("torch")
    return torch is not None and any([getattr(x, "requires_grad", False) for x in values]) and torch.is_grad_enabled()


def check_memory(arguments: Iterable[Argument], kernel: str, loc: Loc | None) -> None:
    """Raises ArgumentLayout for what stands for tensors in torch's transforms, and has no memory of its own."""
    for a in arguments:
        if is_torch(a.owner) and _is_stand_in(a.owner):
            raise ArgumentLayout(f"parameter `{a.name}` of `{kernel}` is not a tensor with memory of its own", loc=loc,
                                 needs="a plain tensor", got=f"{type(a.owner).__name__} in one of torch's transforms: "
                                 "vmap, grad, export, fake or distributed tensors",
                                 try_="make the kernel an operator: @tile.torch_op(\"mylib::name\") (docs/pytorch.md)")


def _is_stand_in(x: Any) -> bool:
    c = sys.modules["torch"]._C
    return type(x).__torch_dispatch__ is not c._disabled_torch_dispatch_impl or \
        bool(c._functorch.is_functorch_wrapped_tensor(x))


def check_gradient(named: Iterable[tuple[str, Any]], kernel: str, loc: Loc | None) -> None:
    """Raises ArgumentGradient where a gradient is wanted of a tensor: torch does not notice calls of bare kernels."""
    for name, x in named:
        if wants_gradient(x):
            raise ArgumentGradient(f"parameter `{name}` of `{kernel}` requires a gradient", loc=loc,
                                   needs="tensors without gradients, or an operator with a backward",
                                   got=f"{name}.requires_grad, and gradients are enabled",
                                   why="torch treats the results of a bare kernel as constants",
                                   try_="@tile.torch_op(\"mylib::name\", backward=...) above the kernel "
                                   f"(docs/pytorch.md); {name}.detach() or torch.no_grad() if none is meant")


def is_tensor(x: Any) -> bool:
    """Whether an argument can be a tensor at all."""
    return isinstance(x, np.ndarray | Packed) or is_torch(x) or hasattr(x, "__dlpack__")


def describe(name: str, x: Any, loc: Loc | None) -> Argument:
    """Looks at a tensor argument. Raises ArgumentDType, ArgumentDevice or ArgumentLayout."""
    if isinstance(x, Packed):
        where = _torch_device(name, x.buffer, loc) if is_torch(x.buffer) else "cpu"
        if not x.dtype.packed:
            return _whole_bytes(name, x, where, loc)
        return Argument(name, x, x.dtype, x.shape, x.strides, "packed", where)
    if is_torch(x):
        return _torch_tensor(name, x, loc)
    if isinstance(x, np.ndarray):
        return _numpy_array(name, x, loc)
    if hasattr(x, "__cuda_array_interface__"):
        return _cuda_array(name, x, loc)
    if not hasattr(x, "__dlpack__"):
        raise ArgumentDType(f"parameter `{name}` is not a tensor", loc=loc,
                            needs="a torch tensor, a NumPy array or an object with __dlpack__",
                            got=type(x).__name__, try_="np.asarray(...)")
    if x.__dlpack_device__()[0] != 1:
        raise ArgumentDevice(f"parameter `{name}` is on the wrong device", loc=loc, needs="memory on the CPU",
                             got=f"DLPack device {x.__dlpack_device__()}",
                             try_="copy it to the CPU, or torch.from_dlpack() an array on a GPU")
    return _numpy_array(name, np.from_dlpack(x), loc)


def _torch_tensor(name: str, x: Any, loc: Loc | None) -> Argument:
    where = _torch_device(name, x, loc)
    found, instead = "", ""
    if x.is_nested:
        found, instead = "a nested tensor", f"{name}.values() and {name}.offsets() as two arguments"
    elif x.layout is not sys.modules["torch"].strided:
        found, instead = str(x.layout), f"{name}.to_dense(), or its indices and values as arguments"
    elif x.is_conj() or x.is_neg():
        found = "a view that conjugates or negates what memory holds"
        instead = f"{name}.resolve_conj().resolve_neg()"
    if found:
        raise ArgumentLayout(f"parameter `{name}` is not a plain strided tensor", loc=loc,
                             needs="dense strided memory", got=found, try_=instead)
    return Argument(name, x, _dtype(name, x.dtype, loc), tuple(x.shape), tuple(x.stride()), "torch", where)


def _numpy_array(name: str, x: Any, loc: Loc | None) -> Argument:
    masked = masked_arrays()
    if masked is not None and isinstance(x, masked):
        raise ArgumentLayout(f"parameter `{name}` is a masked array", loc=loc, needs="an array without a mask",
                             got=type(x).__name__, why="a kernel reads the elements under the mask, too",
                             try_=f"{name}.filled(0), or {name}.data and the mask as an argument of its own")
    if not x.dtype.isnative or any(s % x.dtype.itemsize for s in x.strides):
        raise _unusable(name, loc, "native byte order and strides of whole elements",
                        f"{x.dtype.str}, strides {x.strides} bytes",
                        f"np.array({name}, {name}.dtype.newbyteorder('='))")
    return Argument(name, x, _dtype(name, x.dtype, loc), x.shape, tuple(s // x.dtype.itemsize for s in x.strides),
                    "numpy")


def _unusable(name: str, loc: Loc | None, needs: str, got: str, try_: str) -> ArgumentLayout:
    return ArgumentLayout(f"parameter `{name}` has memory that kernels cannot use", loc=loc, needs=needs, got=got,
                          try_=try_)


def _whole_bytes(name: str, x: Packed, device: str, loc: Loc | None) -> Argument:
    """A packed tensor whose elements are bytes is a plain one over the same memory."""
    if x.row_bits % x.dtype.bits:
        raise _unusable(name, loc, "rows of whole elements", f"rows of {x.row_bits} bits",
                        f"tile.Packed.from_codes({name}.codes(), dtype)")
    rows, columns = math.prod(x.shape[:-1]), x.row_bits // x.dtype.bits
    strides = tuple(s // x.dtype.bits for s in x.strides)
    data, kind = x.buffer, "torch" if is_torch(x.buffer) else "numpy"
    if kind == "numpy":
        data = np.asarray(data).view(x.dtype.storage)
    elif x.dtype.native or x.dtype.name == "bf16":
        data = data.view(torch_dtype(x.dtype))
    data = data[:rows * columns].reshape(*x.shape[:-1], columns)[..., :x.shape[-1]]
    return Argument(name, data, x.dtype, x.shape, strides, kind, device)


def _torch_device(name: str, x: Any, loc: Loc | None) -> str:
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise ArgumentDevice(f"parameter `{name}` is on the wrong device", loc=loc,
                             needs="a tensor on the CPU, or on an NVIDIA or AMD GPU", got=str(x.device),
                             try_=f"{name}.cpu()")
    return f"cuda:{x.get_device()}" if x.device.type == "cuda" else str(x.device.type)


def _cuda_array(name: str, x: Any, loc: Loc | None) -> Argument:
    """An array of CuPy, Numba and others: described as NumPy would, on the device that DLPack names."""
    info = x.__cuda_array_interface__
    dt, shape = np.dtype(info["typestr"]), tuple(info["shape"])
    strides = info.get("strides") or [dt.itemsize * math.prod(shape[i + 1:]) for i in range(len(shape))]
    if info.get("mask") is not None or any(s % dt.itemsize for s in strides):
        raise _unusable(name, loc, "strides of whole elements", f"strides {strides} bytes", "copy it")
    number = x.__dlpack_device__()[1] if hasattr(x, "__dlpack_device__") else 0
    return Argument(name, x, _dtype(name, dt, loc), shape, tuple(s // dt.itemsize for s in strides), "cuda",
                    f"cuda:{number}")


def common_device(arguments: Iterable[Argument], loc: Loc | None) -> str:
    """Where all tensors of a call are. Raises ArgumentDevice where that is not one place."""
    found = {a.device: a.name for a in reversed(list(arguments))}
    if len(found) > 1:
        raise ArgumentDevice("arguments are on different devices", loc=loc, needs="all tensors on one device",
                             got=", ".join(f"{name} on {device}" for device, name in reversed(found.items())),
                             try_=f".to({min(found, key=lambda d: d == 'cpu')!r})")
    return next(iter(found), "cpu")


def _dtype(name: str, external: Any, loc: Loc | None) -> DType:
    try:
        return from_external(external)
    except ValueError as error:
        raise ArgumentDType(f"parameter `{name}` has an unsupported dtype", loc=loc,
                            needs="a dtype of tilelang.ir.dtypes", got=str(external), try_="cast it first") from error


def check_layout(argument: Argument, t: TensorType, loc: Loc | None) -> None:
    """Raises ArgumentLayout for memory a kernel cannot use."""
    for extent, stride in zip(argument.shape, argument.strides, strict=True):
        if extent > MAX_EXTENT:
            raise ArgumentLayout(f"parameter `{argument.name}` is too long", loc=loc,
                                 needs=f"extents up to {MAX_EXTENT}", got=str(extent), why="indices are 32 bits",
                                 try_="split the tensor")
        if t.writable and extent > 1 and stride == 0 and 0 not in argument.shape:
            raise ArgumentLayout(f"output `{argument.name}` overlaps itself", loc=loc, needs="distinct elements",
                                 got=f"shape {argument.shape}, strides {argument.strides}",
                                 try_="pass a tensor that is not expanded")
    if t.writable and argument.kind == "numpy" and not argument.array.flags.writeable:
        raise ArgumentLayout(f"output `{argument.name}` is read-only", loc=loc, needs="a writable array",
                             got="a read-only array", try_=f"{argument.name}.copy()")


def empty_like(model: Any, shape: tuple[int, ...], dt: DType) -> Any:
    """A new output of the kind of an input, on its device: torch, NumPy, CuPy, or packed for sub-byte dtypes."""
    return allocator(model, shape, dt)(model)


def allocator(model: Any, shape: tuple[int, ...], dt: DType) -> Callable[[Any], Any]:
    """What makes such outputs of any input like `model`, which it does not keep: of that one's kind, where it is."""
    buffer = model.buffer if isinstance(model, Packed) else model
    if dt.packed:
        device = buffer.device if is_torch(buffer) and buffer.device.type != "cpu" else None
        return lambda _: _packed(shape, dt, device)
    if is_torch(model):  # half the time of torch.empty, which looks for more
        return methodcaller("new_empty", shape, dtype=torch_dtype(dt))
    if is_torch(buffer) and buffer.device.type != "cpu":
        return lambda like: like.buffer.new_empty(shape, dtype=torch_dtype(dt))
    if hasattr(model, "__cuda_array_interface__"):
        empty = getattr(sys.modules.get(type(model).__module__.partition(".")[0]), "empty", None)
        if empty is None:
            raise ArgumentCount("an output cannot be allocated like the first argument", needs="torch or CuPy arrays",
                                got=type(model).__name__, try_="pass the outputs")
        return lambda _: empty(shape, numpy_dtype(dt))
    storage = numpy_dtype(dt)
    return lambda _: np.empty(shape, storage)


def _packed(shape: tuple[int, ...], dt: DType, device: Any) -> Packed:
    packed = Packed.empty(shape, dt)
    if device is not None:
        torch = sys.modules["torch"]
        packed.buffer = torch.zeros(len(packed.buffer), dtype=torch.uint8, device=device)
    return packed


@cache
def torch_dtype(dt: DType) -> Any:
    """The torch dtype of a tensor of `dt`."""
    names = {"i1": "bool", "bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2",
             "f8e4m3fnuz": "float8_e4m3fnuz", "f8e5m2fnuz": "float8_e5m2fnuz", "e8m0": "float8_e8m0fnu"}
    name = names.get(dt.name) or {"i": "int", "u": "uint", "f": "float"}[dt.name[0]] + str(dt.bits)
    return getattr(sys.modules["torch"], name)


def numpy_dtype(dt: DType) -> Any:
    """The NumPy dtype of a tensor of `dt`, from the package ml_dtypes where NumPy has none. Raises ArgumentDType."""
    if dt.native:
        return dt.storage
    names = {"bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "e8m0": "float8_e8m0fnu",
             "f8e4m3fnuz": "float8_e4m3fnuz", "f8e5m2fnuz": "float8_e5m2fnuz"}
    try:
        import ml_dtypes
        return np.dtype(getattr(ml_dtypes, names[dt.name]))
    except (ImportError, KeyError):
        raise ArgumentDType(f"NumPy has no {dt}", needs="the package ml_dtypes, or torch tensors", got="neither",
                            try_="pip install ml_dtypes, or use tile.Packed") from None
