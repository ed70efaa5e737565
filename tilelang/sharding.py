"""What an operator's dimensions mean: which may be cut among devices or batched (for DTensor and vmap)."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


class Dims:
    """Groups of dimension names, one for each tensor argument and each result. Lower-case names and `...` may be cut,
    upper-case ones must be whole. An input of extent 1 in a dimension is broadcast along it. `of`: for each result the
    input of whose shape it is, as its gradient."""

    def __init__(self, inputs: list[list[str]], outputs: list[list[str]], of: list[int | None] | None = None) -> None:
        self.inputs, self.outputs, self.of = inputs, outputs, of or [None] * len(outputs)
        self._registered = False

    @classmethod
    def parse(cls, text: str, op: str, inputs: int, outputs: int) -> Dims:
        """From a line such as "... N, N -> ... N", einsum's notation. Raises ValueError for another number of groups
        than `op` has tensors and results."""
        sides = [[group.split() for group in side.split(",")] for side in text.split("->")]
        if [len(s) for s in sides] != [inputs, outputs]:
            raise ValueError(f"dims of `{op}` must describe {inputs} tensors and {outputs} results as in "
                             f"\"M K, K N -> M N\", got {text!r}")
        return cls(sides[0], sides[1])

    @property
    def leading(self) -> list[int] | None:
        """The inputs that take any leading dimensions, if all results have them too."""
        if not all("..." in names for names in self.outputs):
            return None
        return [i for i, names in enumerate(self.inputs) if "..." in names]

    def cuts(self, shapes: Sequence[Sequence[int] | None]
             ) -> list[tuple[list[int | None], list[int | str | None]]]:
        """Every way to cut the work: (for each input, for each output) the dimension that is cut, None where all have
        the whole, "sum" for an output to be summed. `shapes` are the inputs' (None where one is absent)."""
        ranks = [None if shape is None else len(shape) for shape in shapes]
        if any("..." not in names and r not in (None, len(names))
               for r, names in zip(ranks, self.inputs, strict=True)):
            return []  # memory of a packed tensor, say
        extra = max([r - len(names) + 1 for r, names in zip(ranks, self.inputs, strict=True)
                     if r is not None and "..." in names], default=0)
        # a cut is named by a dimension, or by a position among the leading ones
        every = [n for names in [*self.inputs, *self.outputs] for n in names if n == n.lower() and n != "..."]
        choices: list[str | int] = [*dict.fromkeys(every), *range(extra)]

        def position(names: list[str], choice: str | int) -> int | None:
            if isinstance(choice, int):
                return choice if "..." in names else None
            if choice not in names:
                return None
            at = names.index(choice)
            return at + extra - 1 if "..." in names[:at] else at
        out: list[tuple[list[int | None], list[int | str | None]]] = []
        for choice in choices:
            found = [None if shape is None else position(names, choice)
                     for shape, names in zip(shapes, self.inputs, strict=True)]
            found = [None if at is None or shape is None or shape[at] == 1 else at
                     for at, shape in zip(found, shapes, strict=True)]
            if any(f is not None for f in found):
                results = [position(names, choice) if of is None or shapes[of] is None else found[of]
                           for names, of in zip(self.outputs, self.of, strict=True)]
                out.append((found, ["sum" if r is None else r for r in results]))
        return out

    def register(self, op: Any) -> None:
        """Tells DTensor how `op` may be cut; once."""
        if self._registered:
            return
        self._registered = True
        from torch.distributed.tensor import Partial, Replicate, Shard
        from torch.distributed.tensor.experimental import register_sharding

        def rules(*args: Any) -> Any:
            schema = op._schema.arguments
            given = list(args) + [None] * (len(schema) - len(args))
            tensors = [i for i, a in enumerate(schema) if str(a.type) in ("Tensor", "Optional[Tensor]")]
            shapes = [None if given[i] is None else tuple(given[i].shape) for i in tensors]

            def inputs(found: list[int | None]) -> list[Any]:
                at = dict(zip(tensors, found, strict=True))
                return [None if i not in at or given[i] is None else Replicate() if at[i] is None else Shard(at[i])
                        for i in range(len(args))]
            whole = ([Replicate()] * len(self.outputs), inputs([None] * len(tensors)))
            return [whole, *(([Partial() if r == "sum" else Shard(r) for r in results], inputs(found))
                             for found, results in self.cuts(shapes))]
        register_sharding(op)(rules)


def is_distributed(x: Any) -> bool:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def on_one_mesh(args: Sequence[Any]) -> list[Any]:
    """The arguments, of which the plain tensors are made DTensors too if any other is one: autograd's zeros for the
    gradient of a result that nobody used have no mesh."""
    mesh = next((x.device_mesh for x in args if is_distributed(x)), None)
    if mesh is None:
        return list(args)
    import torch
    from torch.distributed.tensor import DTensor, Replicate
    return [DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim)
            if isinstance(x, torch.Tensor) and not isinstance(x, DTensor) else x for x in args]


def over_rows(fn: Any, x: Any, bias: Any, residual: Any) -> Any:
    """fn(x, bias, residual) of a DTensor x [..., K], each device with its rows, and all of what is cut along K."""
    from torch.distributed.tensor import Partial, Replicate
    from torch.distributed.tensor.experimental import local_map
    rows = [p if p.is_shard() and p.dim % x.ndim < x.ndim - 1 else Replicate() for p in x.placements]
    given = on_one_mesh([x, bias, residual])

    def where(*placements: list[Any]) -> tuple[Any, ...]:
        return tuple(None if t is None else p for t, p in zip(given, placements, strict=True))
    own = local_map(fn, out_placements=rows, in_placements=where(rows, [Replicate()] * len(rows), rows),
                    in_grad_placements=where(rows, [Partial() if p.is_shard() else p for p in rows], rows),
                    device_mesh=x.device_mesh, redistribute_inputs=True)
    return own(*given)
