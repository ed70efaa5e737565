"""What the parameters of a kernel are annotated with."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilelang.errors import UnsupportedSyntax
from tilelang.ir.core import Dim
from tilelang.ir.dtypes import DType


@dataclass(frozen=True)
class TensorSpec:
    """A tensor parameter: `dtype` is a DType or the name of a type variable, `dims` its dimension names or sizes."""

    dtype: DType | str
    dims: tuple[Dim, ...]
    mode: str

    def __repr__(self) -> str:
        name = {"in": "Tensor", "out": "Out", "inout": "InOut"}[self.mode]
        return f"{name}[{self.dtype!r}, \"{' '.join(map(str, self.dims))}\"]"


class ConstSpec:
    """A compile-time parameter: a number, string, dtype, tuple or tile function that the kernel is specialised for.
    One with the name of a dimension is its extent: a call need not give it, and raises DimMismatch where tensors
    disagree."""

    def __class_getitem__(cls, item: Any) -> type[ConstSpec]:
        return cls

    def __repr__(self) -> str:
        return "Const"


def _spec(mode: str, item: Any) -> TensorSpec:
    dtype, dims = item if isinstance(item, tuple) and len(item) == 2 else (item, "")
    if not isinstance(dtype, DType | str) or not isinstance(dims, str):
        raise UnsupportedSyntax("not the annotation of a tensor", needs="a dtype of tilelang, and dimensions",
                                got=repr(item), try_='tile.Tensor[tile.f32, "M N"]')
    names: list[Dim] = []
    for name in dims.split():
        if not (name.isidentifier() or name.isdigit()):
            raise UnsupportedSyntax(f"`{name}` is no dimension of a tensor", needs="names and numbers, with blanks "
                                    "between them", got=repr(dims), try_=repr(dims.replace(",", " ")) if "," in dims
                                    else "a name of its own, and a constant `NAME: tile.Const` that is its extent")
        names.append(int(name) if name.isdigit() else name)
    return TensorSpec(dtype, tuple(names), mode)


if TYPE_CHECKING:
    # To a type checker a parameter is whatever the body makes of it: Annotated ignores the dimension names.
    from typing import Annotated as InOut
    from typing import Annotated as Out
    from typing import Annotated as Tensor
    from typing import Any as Const
else:
    class Tensor:
        """`Tensor[dtype, "M K"]`: an input. Dimensions of one name have one extent across the arguments."""

        def __class_getitem__(cls, item):
            return _spec("in", item)

    class Out:
        """`Out[dtype, "M N"]`: an output, allocated by the call unless the caller passes one."""

        def __class_getitem__(cls, item):
            return _spec("out", item)

    class InOut:
        """`InOut[dtype, "N"]`: a tensor the kernel both reads and writes."""

        def __class_getitem__(cls, item):
            return _spec("inout", item)

    Const = ConstSpec

__all__ = ["Const", "ConstSpec", "InOut", "Out", "Tensor", "TensorSpec"]
