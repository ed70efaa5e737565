"""Kernels as operators of PyTorch: `torch_op`. torch is imported when the first torch tensor comes.

What an operator needs besides its kernel follows from the kernel: the schema from the signature, the fake from running
the function on the target "shapes" (kernels allocate and do not run), the backward's arguments from its parameters'
names, vmap and DTensor's placements from one line about the dimensions (`tilelang.sharding`).
"""
from __future__ import annotations

import inspect
import sys
import typing
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from tilelang import locks
from tilelang.args import is_torch, wants_gradient
from tilelang.errors import ArgumentDType, ArgumentGradient, TileError
from tilelang.jit import ByName, Kernel, target
from tilelang.sharding import Dims, on_one_mesh
from tilelang.targets import SHAPES

_NUMBERS = {float: "float", int: "SymInt", bool: "bool", str: "str"}
_LIST = list[Any]
AUTOCAST = ("lower", "widest")


class _Signature:
    """A function's or kernel's parameters and results as a torch schema. `params` are the names in order, `tensors`
    those of tensors, `written` those the function writes."""

    def __init__(self, fn: Callable[..., Any], outputs: str | None, writes: str = "") -> None:
        self.written: list[str] = writes.split()
        self.tensors: list[str] = []
        self.defaults: dict[str, Any] = {}
        types, self.outputs = self._kernel(fn, outputs) if isinstance(fn, Kernel) else self._function(fn, outputs)
        self.params = list(types)
        self.required = [n for n in types if n not in self.defaults]
        parts = [f"{t} {n}" + (f"={_literal(self.defaults[n])}" if n in self.defaults else "")
                 for n, t in types.items()]
        results = ", ".join(["Tensor"] * len(self.outputs))
        self.schema = f"({', '.join(parts)}) -> {results if len(self.outputs) == 1 else f'({results})'}"

    def _kernel(self, kernel: Kernel, outputs: str | None) -> tuple[dict[str, str], list[str]]:
        types: dict[str, str] = {}
        known = {d for p in kernel.params if p.kind == "tensor" and p.tensor.mode != "out" for d in p.tensor.dims}
        for p in kernel.params:
            given = p.default is not inspect.Parameter.empty
            if p.kind == "tensor" and p.tensor.mode == "out":
                if missing := [d for d in p.tensor.dims if isinstance(d, str) and d not in known and not p.optional]:
                    raise TileError(f"output `{p.name}` of `{kernel.name}` cannot be allocated by an operator",
                                    loc=kernel.source.loc, needs=f"the extent of `{missing[0]}` from an input",
                                    got=f"inputs with {sorted(map(str, known))}",
                                    try_="put torch_op on a function that allocates it and calls the kernel")
                continue
            if p.kind == "tensor":
                self.tensors.append(p.name)
                if p.tensor.mode == "inout":
                    self.written.append(p.name)
                written = f"({chr(96 + len(self.written))}!)" if p.tensor.mode == "inout" else ""
                types[p.name] = f"Tensor{written}{'?' if p.optional else ''}"
            elif p.kind == "scalar":
                kind = getattr(p.spec, "kind", "")
                types[p.name] = "float" if kind == "float" else "bool" if kind == "bool" else "SymInt"
            elif not given or type(p.default) in _NUMBERS:
                types[p.name] = _NUMBERS[type(p.default)] if given else "SymInt"
            else:
                continue  # a dtype, tuple or function as a constant keeps its default
            if given:
                self.defaults[p.name] = p.default
        names = [p.name for p in kernel.params if p.kind == "tensor" and p.tensor.mode == "out" and not p.optional]
        if outputs is not None and outputs.split() != names:
            raise TileError(f"`{kernel.name}` names its outputs itself", loc=kernel.source.loc, needs=" ".join(names),
                            got=outputs, try_="drop outputs=...")
        required = {n: t for n, t in types.items() if n not in self.defaults}
        return {**required, **types}, names

    def _function(self, fn: Callable[..., Any], outputs: str | None) -> tuple[dict[str, str], list[str]]:
        hints = typing.get_type_hints(fn)
        types: dict[str, str] = {}
        for p in inspect.signature(fn).parameters.values():
            if p.name == "out":
                continue  # an operator allocates its results
            hint = hints.get(p.name)
            choices = [a for a in typing.get_args(hint) if a is not type(None)]
            optional = len(choices) < len(typing.get_args(hint))
            plain = choices[0] if optional and len(choices) == 1 else hint
            if plain in _NUMBERS:
                types[p.name] = _NUMBERS[plain] + ("?" if optional else "")
            elif hint is Any or getattr(plain, "__name__", "") == "Tensor":
                mark = f"({chr(97 + self.written.index(p.name))}!)" if p.name in self.written else ""
                types[p.name] = f"Tensor{mark}{'?' if p.default is None else ''}"
                self.tensors.append(p.name)
            elif hint == _LIST:
                types[p.name] = "Tensor[]"
            else:
                raise TypeError(f"parameter `{p.name}` of `{fn.__name__}` has an annotation no operator can take: "
                                f"needs Any or torch.Tensor for a tensor, list[Any] for several, else float, int, "
                                f"bool or str, or one of these or None; got {hint!r}")
            if p.default is not p.empty:
                self.defaults[p.name] = p.default
        names = (outputs or "out").split()
        if "return" in hints:
            result = hints["return"]
            count = len(typing.get_args(result)) if typing.get_origin(result) is tuple else \
                int(result is not type(None))
            names = names if count else []
            if len(names) != count:
                raise TypeError(f"`{fn.__name__}` returns {count} of the results {', '.join(names)}: "
                                f"needs -> tuple[{', '.join(['Any'] * len(names))}], or names of {count} by outputs= "
                                f"(of a backward by wrt=)")
        return types, names


def no_gradient(what: str, *args: Any, **kwargs: Any) -> None:
    """Raises ArgumentGradient where a gradient is wanted of any argument: `what` gives none."""
    if wants_gradient(*args, *kwargs.values()):
        raise ArgumentGradient(f"{what} has no gradient: call it under torch.no_grad(), or pass detached tensors")


def no_tangent(name: str, values: Iterable[Any]) -> None:
    """Raises ArgumentGradient where torch's forward mode asks for a derivative: it takes those of custom operators to
    be 0."""
    from torch.autograd import forward_ad
    if forward_ad._current_level >= 0 and any(
            is_torch(x) and forward_ad.unpack_dual(x).tangent is not None for x in values):
        raise ArgumentGradient(f"`{name}` has no derivative in forward mode (torch.func.jvp, forward_ad)",
                               needs="tensors without tangents", got="a tensor with one",
                               try_="the backward mode: torch.autograd.grad")


def one_number(parameter: str, name: str, x: Any) -> None:
    """Raises ArgumentDType for a tensor of torch.func's that is not one number: vmap has one for each element."""
    import torch
    if isinstance(x, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x):
        try:
            x.item()
        except RuntimeError:
            raise ArgumentDType(f"parameter `{parameter}` of `{name}` is one number", needs="a number, the same for "
                                "the whole batch", got=f"a tensor {list(x.shape)} inside of torch.func.vmap",
                                try_=f"in_dims=None for {parameter}, or a loop over its values") from None


@cache
def _strange() -> int:
    """The keys of PyTorch's dispatcher that ordinary tensors lack. (Those of autocast they have at all times.)"""
    from torch._C import DispatchKey, DispatchKeySet
    keys = DispatchKeySet(DispatchKey.BackendSelect) | DispatchKeySet(DispatchKey.ADInplaceOrView)
    for device in ("CPU", "CUDA"):
        for kind in ("", "Autograd", "Autocast"):
            keys = keys | DispatchKeySet(getattr(DispatchKey, kind + device))
    return ~int(keys.raw_repr())


@cache
def _looks(keys: int, excluded: int) -> bool:
    """Whether a key of tensors or of the thread, but for those that the thread excludes, is no ordinary one. Sets of
    keys come as their bits."""
    from torch._C import DispatchKeySet
    left = DispatchKeySet.from_raw_repr(keys) - DispatchKeySet.from_raw_repr(excluded)
    return bool(left.raw_repr() & _strange())


def nobody_looks(args: Iterable[Any]) -> bool:
    """Whether a call of an operator with these, of which no graph is being made, would do no more than call its
    function, so that the way through the dispatcher may be saved: ordinary tensors, no gradient, mode, transform,
    trace or profile."""
    torch = sys.modules["torch"]
    c, tensor, parameter, gradients = torch._C, torch.Tensor, torch.nn.Parameter, torch.is_grad_enabled()
    if torch.autograd.forward_ad._current_level >= 0 or c._autograd._profiler_enabled() or \
            c._len_torch_function_stack() or c._is_any_autocast_enabled():
        return False
    keys, left = c._dispatch_tls_local_include_set().raw_repr(), [x for x in args if x is not None]
    for x in left:
        kind = type(x)
        if kind is tensor or kind is parameter:
            if gradients and x.requires_grad:
                return False
            keys |= c._dispatch_keys(x).raw_repr()
        elif isinstance(x, tensor):
            return False
        elif isinstance(x, (list, tuple)):
            left += x
    return not keys & _strange() or not _looks(keys, c._dispatch_tls_local_exclude_set().raw_repr())


def _literal(default: Any) -> str:
    return f'"{default}"' if isinstance(default, str) else str(default)


class TorchOp(ByName):
    """What `torch_op` makes: calls with torch tensors go through the operator, others straight to the function."""

    def __init__(self, fn: Callable[..., Any], name: str, backward: Any, outputs: str | None, wrt: str | None,
                 dims: str | None, autocast: str | None, writes: str = "", fake: Callable[..., Any] | None = None
                 ) -> None:
        self.fn, self.name, self.fake = fn, name, fake
        self.__name__, self.__doc__, self.__wrapped__ = fn.__name__, fn.__doc__, fn
        self.__module__, self.__qualname__ = fn.__module__, fn.__qualname__
        self.signature = _Signature(fn, outputs, writes)
        self.dims = Dims.parse(dims, name, len(self.signature.tensors), len(self.signature.outputs)) if dims else None
        self.autocast, *cast = (autocast or "none").split()
        if strange := [n for n in cast if n not in self.signature.tensors]:
            raise ValueError(f"autocast of `{name}` names `{strange[0]}`: needs some of its tensors, "
                             f"{', '.join(self.signature.tensors)}")
        self.cast = cast or self.signature.tensors
        self.backward: TorchOp | None = None
        if backward is not None:
            self.wrt, self.backward = self._backward(backward, wrt)
        parameters = list(inspect.signature(fn).parameters) if not isinstance(fn, Kernel) else []
        self._out = parameters.index("out") if "out" in parameters else None
        self._op: Any = None

    def _backward(self, backward: Any, wrt: str | None) -> tuple[dict[str, str], TorchOp]:
        """(for inputs the one whose gradient is theirs, the backward as an operator). Dimensions of gradients are
        those of what they are gradients of."""
        op = backward
        if not isinstance(op, TorchOp):
            grads = " ".join(f"d{n.partition('+')[0]}" for n in (wrt.split() if wrt else self.signature.tensors))
            op = TorchOp(backward, f"{self.name}_backward", None, None if isinstance(backward, Kernel) else grads,
                         None, None, None)
            if self.dims is not None:
                own = self.signature
                groups = dict(zip(own.tensors + own.outputs, self.dims.inputs + self.dims.outputs, strict=True))
                groups |= {f"d{n}": names for n, names in groups.items()}
                op.dims = Dims([groups.get(n, []) for n in op.signature.tensors],
                                  [groups.get(n, []) for n in op.signature.outputs],
                                  [op.signature.tensors.index(n[1:]) if n[1:] in op.signature.tensors else None
                                   for n in op.signature.outputs])
        names = {n.removeprefix("d"): n.removeprefix("d") for n in op.signature.outputs}
        names |= {n: group.partition("+")[0] for group in (wrt or "").split() for n in group.split("+")}
        known = {*self.signature.params, *self.signature.outputs, *(f"d{o}" for o in self.signature.outputs)}
        for what, found, allowed in (("parameter", op.signature.params, known),
                                     ("gradient", op.signature.outputs, {f"d{n}" for n in self.signature.tensors})):
            if strange := [n for n in found if n not in allowed and n not in op.signature.defaults]:
                raise TypeError(f"the backward of `{self.name}` has a {what} `{strange[0]}`: needs one of "
                                f"{', '.join(sorted(allowed))}")
        return names, op

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._ready():
            return self.fn(*args, **kwargs)
        import torch
        if not any([isinstance(x, torch.Tensor) for x in args]) and \
                not any([isinstance(x, torch.Tensor) for x in kwargs.values()]):
            return self.fn(*args, **kwargs)
        if self._out is not None:  # results written where the caller says: no operator, no gradient
            if len(args) > self._out or kwargs.get("out") is not None:
                no_gradient(f"`{self.name}` with `out`", *args, **kwargs)
                return self.fn(*args, **kwargs)
            kwargs = {name: x for name, x in kwargs.items() if name != "out"}
        own = self.signature
        if kwargs or not len(own.required) <= len(args) <= len(own.params):
            self._check(args, kwargs)
        if not torch.compiler.is_compiling():
            given = dict(zip(own.params, args, strict=False), **kwargs)
            tensors = [given.get(n) for n in own.tensors]
            if not own.written and all([x is None or isinstance(x, torch.Tensor) for x in tensors]) and \
                    nobody_looks(given.values()):
                return self.fn(**given)
            no_tangent(self.name, given.values())
            for n in given.keys() - set(own.tensors):  # of a tensor the dispatcher takes the number, and no more
                no_gradient(f"`{n}` of `{self.name}`, a number,", given[n])
                one_number(n, self.name, given[n])
        return self._op(*args, **kwargs)

    def _check(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raises TypeError, as a call of Python does, for arguments that are not those of the operator."""
        own = self.signature
        given = own.params[:len(args)]
        what = ""
        if len(args) > len(own.params):
            what = f"takes at most {len(own.params)} arguments, got {len(args)}"
        for n in kwargs:
            if n not in own.params:
                what = f"got an unexpected keyword argument {n!r}"
            elif n in given:
                what = f"got multiple values for argument {n!r}"
        for n in own.required:
            if n not in given and n not in kwargs:
                what = what or f"missing a required argument: {n!r}"
        if what:
            raise TypeError(f"{self.__name__}() {what}; its parameters are {', '.join(own.params)}")

    def __getattr__(self, name: str) -> Any:
        if name == "fn":
            raise AttributeError(name)
        return getattr(self.fn, name)

    def __repr__(self) -> str:
        return f"<torch operator {self.name}{self.signature.schema}>"

    def _ready(self) -> bool:
        """Whether there is a torch, to which the operator is made known at the first use."""
        if "torch" not in sys.modules:
            return False
        if self._op is not None and (self.dims is None or "torch.distributed.tensor" not in sys.modules):
            return True
        with locks.registering:
            if self._op is None:
                self._op = self._register()
            if self.dims is not None and "torch.distributed.tensor" in sys.modules:
                self.dims.register(self._op)
                if self.backward is not None:  # made with this operator, perhaps before there were DTensors
                    self.backward._ready()
        return True

    # torch.compile calls it, once, instead of looking into it
    _ready._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _register(self) -> Any:
        import torch
        fn, names = self.fn, self.signature.params

        def real(*args: Any) -> Any:  # the dispatcher leaves out last arguments that equal their defaults
            return fn(**dict(zip(names, args, strict=False)))

        def fake(*args: Any) -> Any:
            with target(SHAPES):
                return real(*args) if self.fake is None else self.fake(**dict(zip(names, args, strict=False)))

        definition = torch.library.custom_op(self.name, real, mutates_args=self.signature.written,
                                             schema=self.signature.schema)
        definition.register_fake(fake)
        definition.register_vmap(self._vmap)
        namespace, bare = self.name.split("::")
        op = getattr(getattr(torch.ops, namespace), bare).default
        if self.backward is not None:
            self._register_autograd(definition, self.backward)
        if self.autocast in AUTOCAST:
            self._library = torch.library.Library(namespace, "FRAGMENT")
            for device in ("CPU", "CUDA"):
                self._library.impl(bare, self._autocast(op, device), f"Autocast{device}")
        return op

    def _register_autograd(self, definition: Any, backward: TorchOp) -> None:
        import torch
        backward._ready()
        inputs, outputs, wanted, wrt = (self.signature.params, self.signature.outputs, backward.signature.params,
                                        self.wrt)
        results = backward.signature.outputs

        def setup_context(ctx: Any, inputs: Any, output: Any, names: Sequence[str] = tuple(inputs)) -> None:
            known = {**dict(zip(names, inputs, strict=True)),
                     **dict(zip(outputs, output if isinstance(output, tuple) else (output,), strict=True))}
            ctx.names = [n for n in wanted if isinstance(known.get(n), torch.Tensor)]
            ctx.save_for_backward(*[known[n] for n in ctx.names])
            ctx.rest = {n: known[n] for n in wanted if n in known and n not in ctx.names}
            ctx.lists = {n: len(x) for n, x in known.items() if isinstance(x, list)}

        def back(ctx: Any, *grads: Any) -> Any:
            known = {**dict(zip(ctx.names, ctx.saved_tensors, strict=True)), **ctx.rest,
                     **{f"d{o}": g for o, g in zip(outputs, grads, strict=True)},
                     **{f"needs_{n}": need for n, need in zip(inputs, ctx.needs_input_grad, strict=False)}}
            out = backward._op(*on_one_mesh([known[n] if n in known else backward.signature.defaults[n]
                                             for n in wanted]))
            found = dict(zip(results, out if isinstance(out, tuple) else (out,), strict=True))
            return tuple([None] * ctx.lists[n] if n in ctx.lists else
                         found[f"d{wrt[n]}"] if n in wrt and need else None
                         for n, need in zip(inputs, ctx.needs_input_grad, strict=False))

        definition.register_autograd(back, setup_context=setup_context)

    def _vmap(self, info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
        """One call where the batch is one more leading dimension of everything that has them; else one for each
        element."""
        import torch
        batched = {n for n, d, x in zip(self.signature.params, in_dims, args, strict=False)
                   if (any(i is not None for i in d) if isinstance(x, list) else d is not None)}
        if lists := [n for n, x in zip(self.signature.params, args, strict=False) if n in batched and type(x) is list]:
            raise ValueError(f"`{self.name}` cannot be batched over `{lists[0]}`: needs one for the whole batch")
        leading = self.dims.leading if self.dims is not None and not isinstance(self.fn, Kernel) else None
        if leading is not None and batched <= {self.signature.tensors[i] for i in leading}:
            moved = [x if not isinstance(x, torch.Tensor) or n not in {self.signature.tensors[i] for i in leading} else
                     x.movedim(d, 0) if d is not None else x.expand(info.batch_size, *x.shape)
                     for n, d, x in zip(self.signature.params, in_dims, args, strict=False)]
            out = self._op(*moved)
            return out, (0,) * len(out) if isinstance(out, tuple) else 0
        count = info.batch_size
        outs = [self._op(*[x if n not in batched else x.select(d, i) if count else
                           x.new_zeros(x.movedim(d, 0).shape[1:]) for n, d, x in
                           zip(self.signature.params, in_dims, args, strict=False)])
                for i in range(max(count, 1))]  # of an empty batch one of zeros, for the shapes of its results
        if not isinstance(outs[0], tuple):
            return torch.stack(outs)[:count], 0
        return tuple(torch.stack(o)[:count] for o in zip(*outs, strict=True)), (0,) * len(outs[0])

    def _autocast(self, op: Any, device: str) -> Callable[..., Any]:
        """The operator with floats among the tensors `cast` in autocast's dtype, or else in the widest that comes."""
        import torch
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))
        places = [i for i, n in enumerate(self.signature.params) if n in self.cast]

        def cast(*args: Any) -> Any:
            given = list(args)
            floats = [i for i in places if i < len(given) and isinstance(given[i], torch.Tensor)
                      and given[i].is_floating_point()]
            wide = torch.get_autocast_dtype(device.lower()) if self.autocast == "lower" else \
                max((given[i].dtype for i in floats), key=lambda d: d.itemsize)
            for i in floats:
                if given[i].dtype is not torch.float64:
                    given[i] = given[i].to(wide)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*given)
        return cast


def torch_op(name: Any = None, *, backward: Any = None, outputs: str | None = None, wrt: str | None = None,
             dims: str | None = None, autocast: str | None = None, writes: str = "",
             fake: Callable[..., Any] | None = None) -> Any:
    """Makes a kernel, or a function that calls kernels, an operator of PyTorch (`torch.library.custom_op`) that works
    under autograd, torch.compile, export, vmap and autocast, and with DTensors. Calls with other arrays stay what they
    were.

        @tile.torch_op("mylib::scale", backward=scale_backward)
        @tile.kernel
        def scale(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], by: tile.f32): ...

    `name`: "namespace::name"; the module's and the function's unless given. A function's parameters are tensors where
    annotated `Any` or `torch.Tensor` (optional ones default to None), several of them where `list[Any]` (these are not
    differentiated, cut or batched), else float, int, bool, str, or one of these or None; a parameter `out` stays
    outside the operator. A kernel's constants have the type of their default; those without one are integers, those
    that are no number or string keep their default.

    `backward`: a kernel or function (or operator, for second derivatives) whose parameters are chosen by name among
    the forward's inputs, its outputs, and "d" + an output's name, that output's gradient. A kernel's outputs are named
    "d" + the input whose gradient they are; a function gives those of `wrt`, names of inputs (all tensors unless
    given; "a+b" where a and b have the same). A parameter "needs_" + an input's name with a default tells whether its
    gradient is wanted; where it is not, any new tensor may stand for it (torch lets no operator return an input).
    `outputs`: names of a function's results ("out" unless given).

    `dims`: what the dimensions of tensors mean, as in "... N, N -> ... N": names as in einsum; lower-case ones and
    `...` may be cut or batched, upper-case ones must be whole. An input that lacks a lower-case dimension is the same
    for all of it; an output that lacks one is a sum over it. vmap and DTensor work from it (vmap without it, one call
    for each element).

    `writes`: names of the tensors that a function changes. `fake`: allocates the results of a function, of the same
    parameters, where the function itself cannot on the target `shapes`, because it reads its arguments.

    `autocast`: "lower" casts float inputs to autocast's dtype, "widest" to the widest of them; None leaves them. Names
    after it are the inputs that this is about, as in "lower q k v"; all unless given.

    Raises TypeError and TileError for signatures that are no operator's."""
    if autocast is not None and autocast.partition(" ")[0] not in AUTOCAST:
        raise ValueError(f"autocast must be None, {' or '.join(map(repr, AUTOCAST))}, got {autocast!r}")
    if name is not None and not isinstance(name, str):
        return torch_op()(name)

    def mark(fn: Callable[..., Any]) -> TorchOp:
        module = (fn.fn if isinstance(fn, Kernel) else fn).__module__
        op = TorchOp(fn, name or f"{module.strip('_').replace('.', '_')}::{fn.__name__}", backward, outputs, wrt,
                     dims, autocast, writes, fake)
        _marked.add(op)
        op._ready()
        return op
    return mark


_marked: weakref.WeakSet[TorchOp] = weakref.WeakSet()


def register() -> None:
    """Makes the operators known to torch that were defined before torch was imported, as the first call of each does.
    Programs of `torch.export` and AOTInductor need that where they are loaded."""
    for op in list(_marked):
        op._ready()
