"""Writes docs/language.md, the reference of the language, from the functions' own docstrings and from what their
examples print, and the pictures of layouts: `python docs/generate.py`, which also runs the other generators beside it.
The tests compare the files with what these give."""
from __future__ import annotations

import contextlib
import inspect
import io
import linecache
import re
import runpy
import types
import zlib
from pathlib import Path

import numpy as np

import tilelang as tile
from tilelang.bound import Bound
from tilelang.errors import TargetError, TileError
from tilelang.ir.dtypes import dtype
from tilelang.lang import promote
from tilelang.lang.builtins import METHODS, PUBLIC
from tilelang.layouts import column_spatial, local, replicated, shared, spatial, svg

PAGE = Path(__file__).parent / "language.md"
PICTURES = Path(__file__).parent / "pictures"
LAYOUTS = {"mma": local(2, 1) * spatial(8, 4) * local(1, 2), "blocks": spatial(8, 4) * local(2, 2),
           "columns": column_spatial(2, 4), "strided": local(2, 2) * spatial(2, 4),
           "copies": replicated(2, rank=2) * spatial(2, 4),
           "rows": shared([8, 32]), "swizzled": shared([8, 32], swizzle=(5, 0, 5)), "padded": shared([8, 32], [33, 1])}
ARGUMENTS = {"X": np.array([-1.5, 0.5, 1, 4], np.float32), "I": np.array([3, 1, 2, 0], np.int32),
             "M": np.array([[1, 2, 3], [4, 5, 6]], np.float32), "Y": np.zeros(4, np.float32)}
HEADER = """\
import tilelang as tile
from tilelang.layouts import local, spatial

@tile.function
def plus(a, b):
    return a + b

"""
KERNEL = """\
@tile.kernel
def {name}(X: tile.Tensor[tile.f32, "N"], I: tile.Tensor[tile.i32, "N"], M: tile.Tensor[tile.f32, "P Q"],
           Y: tile.InOut[tile.f32, "N"]):
    x, i, m = tile.load(X, 0, 4), tile.load(I, 0, 4), tile.load(M, (0, 0), (2, 3))
    {body}
"""
EXAMPLES: dict[str, dict[str, str]] = {
    "Elementwise": {
        "exp": "tile.print(tile.exp(x))",
        "exp2": "tile.print(x.exp2())",
        "log": "tile.print(tile.log(m))",
        "log2": "tile.print(tile.log2(i))",
        "sqrt": "tile.print(tile.sqrt(m))",
        "rsqrt": "tile.print(tile.rsqrt(m))",
        "sin": "tile.print(tile.sin(x))",
        "cos": "tile.print(tile.cos(x))",
        "tanh": "tile.print(tile.tanh(x))",
        "erf": "tile.print(tile.erf(x))",
        "sigmoid": "tile.print(tile.sigmoid(x))",
        "floor": "tile.print(tile.floor(x))",
        "ceil": "tile.print(tile.ceil(x))",
        "round": "tile.print(tile.round(x))",
        "trunc": "tile.print(tile.trunc(x))",
        "abs": "tile.print(tile.abs(x))",
        "fma": "tile.print(tile.fma(x, 2, 1))",
        "dot4": "tile.print(tile.dot4(i, 0x01010101, 10))  # sums of bytes, and 10",
        "dot2": "pair = tile.bitcast(tile.full((4,), 2, tile.bf16), tile.u16).to(tile.u32) * 0x10001\n"
                "tile.print(tile.dot2(pair, pair, x))  # twice 2 * 2, and x",
        "minimum": "tile.print(tile.minimum(x, 1))",
        "maximum": "tile.print(tile.maximum(x, 0))",
        "clamp": "tile.print(tile.clamp(x, 0, 1))",
        "where": "tile.print(tile.where(x > 0, x, i))",
        "popcount": "tile.print(tile.popcount(i))",
        "logical_not": "tile.print(not (x > 0))",
        "isnan": "tile.print(tile.isnan(tile.sqrt(x)))",
        "cast": "tile.print(tile.cast(x, tile.i32), x.to(tile.f8e4m3))",
        "bitcast": "tile.print(tile.bitcast(x, tile.u32))",
        "cdiv": "tile.print(tile.cdiv(7, 2), tile.cdiv(i, 2))",
        "derivative": "tile.print(tile.derivative(x * x, x))",
    },
    "Random numbers": {
        "philox": "a, b, c, d = tile.philox(7, i)\ntile.print(a)",
        "rand": "tile.print(tile.rand(7, i))",
        "randn": "tile.print(tile.randn(7, i))",
    },
    "Making tiles": {
        "arange": "tile.print(tile.arange(4), tile.arange(2, 5))",
        "full": "tile.print(tile.full((2, 2), 7, tile.i32))",
        "zeros": "tile.print(tile.zeros((2, 3)))",
        "ones": "tile.print(tile.ones(3, tile.f16))",
        "zeros_like": "tile.print(tile.zeros_like(i))",
        "full_like": "tile.print(tile.full_like(x, 2))",
        "constant": "tile.print(tile.constant([1, 2, 4], tile.u8))",
    },
    "Rearranging": {
        "reshape": "tile.print(m.reshape(3, -1))",
        "permute": "tile.print(m.permute(1, 0))",
        "transpose": "tile.print(tile.transpose(m), m.T.shape)",
        "broadcast_to": "tile.print(tile.broadcast_to(x, (2, 4)))",
        "expand_dims": "tile.print(tile.expand_dims(x, 1).shape, x[:, None].shape)",
        "squeeze": "tile.print(tile.squeeze(x[None, :], 0).shape)",
        "concatenate": "tile.print(tile.concatenate([x, m[0]]))",
        "stack": "tile.print(tile.stack([x, x * 2]))",
        "lookup": "tile.print(tile.lookup((10, 20, 30, 40), i))",
        "lookup4": "table = tile.arange(16).to(tile.u8) * 2\ntile.print(tile.lookup4(table, i.to(tile.u32)))",
        "view": "words = i[:2]  # two threads with one i32 each, seen as two i16 each\n"
                "tile.print(tile.view(words, tile.i16, spatial(2), spatial(2) * local(2)))",
        "pin": "tile.print(tile.pin(x, spatial(2) * local(2)))  # two threads with two neighbours each",
    },
    "Reductions, scans, sorting": {
        "sum": "tile.print(tile.sum(m), m.sum(1), m.sum(0, keepdims=True))",
        "prod": "tile.print(tile.prod(m, 1))",
        "max": "tile.print(m.max(1))",
        "min": "tile.print(m.min())",
        "any": "tile.print(tile.any(x > 3))",
        "all": "tile.print(tile.all(x > 3))",
        "argmax": "tile.print(tile.argmax(m))",
        "argmin": "tile.print(x.argmin())",
        "reduce": "tile.print(tile.reduce(m, 1, plus))  # `plus` is a @tile.function: a + b",
        "associative_scan": "tile.print(tile.associative_scan(x, 0, plus, reverse=True))",
        "cumsum": "tile.print(tile.cumsum(m))",
        "cumprod": "tile.print(m.cumprod(0))",
        "sort": "tile.print(tile.sort(x, descending=True))",
        "argsort": "tile.print(tile.argsort(i))",
        "topk": "values, positions = tile.topk(x, 2)\ntile.print(values, positions)",
    },
    "Products": {
        "dot": "tile.print(tile.dot(m, m.T), tile.dot(m.to(tile.f16), m.T.to(tile.i8)))",
        "dot_scaled": "a = tile.full((1, 32), 3, tile.f32).to(tile.f4e2m1)  # 32 neighbours share a scale\n"
                      "one, two = tile.ones((1, 1)).to(tile.e8m0), tile.full((1, 1), 2, tile.f32).to(tile.e8m0)\n"
                      "tile.print(tile.dot_scaled(a, two, a.T, one))",
        "dot_bits": "words = tile.full((2, 3), 0b1011, tile.u32)\ntile.print(tile.dot_bits(words, words.T))",
    },
    "Loops and the grid": {
        "range": "total = tile.zeros(4)\nfor k in tile.range(0, 10, 4):\n    total += k\ntile.print(total)",
        "static_range": "for k in tile.static_range(3):\n    x = x * 2\ntile.print(x)",
        "grid": "p, q = tile.grid(2, 2)\ntile.print(p, q)",
        "wait_previous": "weight = tile.load(X, 0, 4)  # which no kernel before this one writes\n"
                         "tile.wait_previous()\ntile.print(weight * tile.load(Y, 0, 4))",
        "start_next": "tile.start_next()\ntile.print(x)",
        "num_workers": "tile.print(tile.num_workers() >= 1)",
        "persistent": "for p, q in tile.persistent(2, 2):\n    tile.atomic_add(Y, p * 2 + q, 1)",
    },
    "Tensors": {
        "load": "tile.print(tile.load(X, 2, 4, fill=9))\ntile.print(tile.load(M, (1, 0), (2,)))  # of row 1\n"
                "tile.print(tile.load(M, (1, 2), ()))  # one number",
        "store": "tile.store(Y, 2, x)  # what lies past the end is dropped",
        "gather": "tile.print(tile.gather(X, i + 1, fill=9))",
        "expand_load": "tile.print(tile.expand_load(X, 0, tile.full((1,), 0b100110, tile.u32))[:6])",
        "scatter": "tile.scatter(Y, i, x, mask=x > 0)",
        "atomic_add": "tile.print(tile.atomic_add(Y, i, 1))",
        "atomic_max": "tile.atomic_max(Y, i, x)",
        "atomic_min": "tile.atomic_min(Y, i, x)",
        "atomic_cas": "tile.atomic_cas(Y, i, 0, x)",
    },
    "Shared memory and asynchronous copies": {
        "shared": "s = tile.shared(4, tile.f32)\ntile.store(s, 0, x)\ntile.barrier()\n"
                  "tile.print(tile.gather(s, 3 - tile.arange(4)))",
        "copy": "s = tile.shared(2, tile.f32)\ntile.copy(X, s, 1)\ntile.barrier()\ntile.print(tile.load(s, 0, 2))",
        "copy_async": "s = tile.shared((2, 2), tile.f32)\nfor k in tile.static_range(2):\n"
                      "    tile.copy_async(X, s[k], k * 2)\n    tile.commit()\n"
                      "tile.wait(1)  # the first has landed, the second may be under way\ntile.barrier()\n"
                      "tile.print(tile.load(s[0], 0, 2))\ntile.wait()",
        "commit": "s = tile.shared(4, tile.f32)\ntile.copy_async(X, s, 0)\ntile.commit()\ntile.wait()\n"
                  "tile.barrier()\ntile.print(tile.load(s, 0, 4))",
        "wait": "s = tile.shared(4, tile.f32)\ntile.copy_async(X, s, 2)\ntile.commit()\ntile.wait(0)\n"
                "tile.barrier()\ntile.print(tile.load(s, 0, 4))",
        "barrier": "s = tile.shared(4, tile.f32)\ntile.store(s, 0, x)\ntile.barrier()  # others may read it now\n"
                   "tile.print(tile.load(s, 1, 2))",
    },
    "Clusters of programs": {
        "peer": "p = tile.grid(2, cluster=(2,))\ns = tile.shared(2, tile.f32)\n"
                "tile.store(s, 0, tile.load(X, p * 2, 2))\nother = tile.peer(s, 1 - tile.cluster_rank())\n"
                "tile.cluster_barrier()  # it has been written\n"
                "tile.store(Y, p * 2, tile.load(other, 0, 2))\ntile.cluster_barrier()  # it has been read",
        "cluster_rank": "p, q = tile.grid(2, 2, cluster=(1, 2))\n"
                        "tile.store(Y, p * 2 + q, tile.full(1, 10, tile.f32) + tile.cluster_rank())",
        "cluster_barrier": "p = tile.grid(2, cluster=(2,))\ns = tile.shared(1, tile.f32)\n"
                           "tile.cluster_barrier()  # both have begun\n"
                           "tile.store(tile.peer(s, 1 - p), 0, tile.full(1, 7, tile.f32) + p)\n"
                           "tile.cluster_barrier()  # both have been written\ntile.store(Y, p, tile.load(s, 0, 1))",
    },
    "Debugging": {
        "print": 'tile.print("x is", x)',
        "assert_": 'tile.assert_(x < 5, "x is small")\nassert tile.all(i >= 0)  # the same as a statement\n'
                   'tile.print("all is well")',
    },
}
INTEGERS = ("i4", "i32", "i64", "u8", "u32")
OTHERS = {"i1": "i1", "f16": "f16", "bf16": "bf16", "f32": "f32", "f64": "f64",
          "f8e4m3": "types without arithmetic such as f8e4m3"}
"""The types that `taken` tries, and what the page calls them."""
TYPES = ("i1 i2 i8 i32 i64 u1 u4 u8 u32 s1 s2 ternary f4e2m1 f6e3m2 f6e2m3 f8e4m3 f8e5m2 f8e4m3fnuz e8m0 f16 bf16 f32 "
         "f64").split()
TARGETS = "cpu", "cuda:sm_75", "cuda:sm_80", "cuda:sm_90a", "hip:gfx90a", "hip:gfx950"
"""The targets that every example is compiled for; the page names those that refuse one."""
INTRODUCTION = '''\
# The language

<!-- Written by docs/generate.py from the functions themselves. -->

A kernel is a Python function marked `@tile.kernel`. It is called with arrays or tensors; its body computes with
*tiles*, whose shapes are known when it is compiled.

| parameter | what it is |
|---|---|
| `x: tile.Tensor[tile.f16, "M K"]` | an input; dimensions of one name have one extent, and a number is an extent |
| `y: tile.Out[tile.f32, "M"]` | an output: allocated and returned by the call unless the caller passes it |
| `z: tile.InOut[tile.f32, "M"]` | a tensor that is read and written |
| `s: tile.f32` | a number |
| `b: tile.Tensor[tile.f32, "N"] = None` | may be left out: the kernel asks `if b is not None:` when it is compiled |
| `r: tile.Out[tile.f32, "N"] = None` | an output only of calls that pass it; those that each call makes stand before |
| `B: tile.Const = 64` | a constant: the kernel is compiled for each value; one named like a dimension is its extent |
| `tile.Tensor[tile.T, "N"]` | any dtype; in a call, one capital letter stands for one dtype |

**Statements** are assignments, `for` over `tile.range` or `tile.persistent` (loops that run in the kernel) or over
`tile.static_range` and tuples of constants (unrolled), `while`, `if`, `continue`, `assert`, `return`, and calls.
`range` is `tile.range`. An `if` on constants is decided when the kernel is compiled, one on a scalar when it runs;
tiles have `tile.where` instead. What is assigned in a loop or a branch keeps its shape and dtype. Functions marked
`@tile.function` are inlined where they are called. Names from outside the kernel are constants, on which functions of
Python, ufuncs of NumPy and functions of your own may be called. Comprehensions, lambdas and unpacking work as in
Python. Anything else is refused, with the line and what to write instead.

**Operators** are Python's: `+ - * / // % ** & | ^ ~ << >>`, comparisons, `and or not`. Shapes broadcast as in NumPy.
Both sides of `and`, `or` and `a if c else b` are computed where the condition is known only when the kernel runs.
Powers are `x ** n`, where n is a constant integer from -8 to 8 but not 0, or 0.5 or -0.5, and `2 ** x`.
`x[:, None]`, `x[0]` and `x[2:4]` index with constants; `x.T`, `x.shape`, `x.dtype`, `x.ndim`, `x.to(dtype)`,
`x.reshape(…)` and `x.permute(…)` are methods, and so are the functions marked with a dot below: `x.exp()` is
`tile.exp(x)`.

**Memory.** Offsets count elements; there is one for each dimension of the tensor. A block may reach past the edges:
reads there give `fill`, and writes there are dropped. `t[i]` fixes the first index of a tensor.
'''


def kernels(bodies: dict[str, str]) -> dict[str, tile.Kernel]:
    """A kernel for each body, by name. The source they are read from is kept by `linecache`, as for notebooks."""
    text = HEADER + "\n\n".join(KERNEL.format(name=f"_{name}", body=body.replace("\n", "\n    "))
                                for name, body in bodies.items())
    module, file = types.ModuleType("language"), f"<examples {zlib.crc32(text.encode()):x}>"
    linecache.cache[file] = len(text), None, text.splitlines(True), file
    exec(compile(text, file, "exec"), vars(module))
    return {name: vars(module)[f"_{name}"] for name in bodies}


def printed(kernel: tile.Kernel, target: str) -> str:
    """What a call prints on a target, and what becomes of Y where it is written."""
    arguments = {name: array.copy() for name, array in ARGUMENTS.items()}
    out = io.StringIO()
    with (tile.target(target), contextlib.redirect_stdout(out), np.errstate(all="ignore"),
          np.printoptions(precision=3, suppress=True, linewidth=90)):
        kernel(**arguments)
        if arguments["Y"].any():
            print("Y is", arguments["Y"])
    return out.getvalue()


def taken(examples: dict[str, str]) -> dict[str, str]:
    """Which dtypes the tile that stands first in a function's example may have: those it compiles with."""
    probes = {}
    for name, body in examples.items():
        if found := re.search(rf"tile\.{name}\(([xim])[,)]|\b([xim])\.{name}\(", body):
            first = found[1] or found[2]
            probes |= {(name, dt): f"{first} = {first}.to(tile.{dt})\n{body}" for dt in (*INTEGERS, *OTHERS)}
    made = kernels({"_".join(key): body for key, body in probes.items()})
    accepted: dict[str, list[str]] = {name: [] for name, _ in probes}
    for name, dt in probes:
        bound = Bound(made[f"{name}_{dt}"], (), ARGUMENTS)
        with contextlib.suppress(TileError):
            bound.kernel.trace(bound.types(), {})
            accepted[name].append(dt)
    return {name: _joined(dts) for name, dts in accepted.items()}


def refused(examples: dict[str, tile.Kernel]) -> dict[str, list[str]]:
    """The targets that an example is not compiled for."""
    out: dict[str, list[str]] = {}
    for name, kernel in examples.items():
        for target in TARGETS:
            try:
                kernel.lower(**{key: array.copy() for key, array in ARGUMENTS.items()}, target=target).source
            except TargetError:
                out.setdefault(name, []).append(target)
    return out


def _joined(dts: list[str]) -> str:
    if len(dts) == len(INTEGERS) + len(OTHERS):
        return "any dtype"
    integers = ["integers"] if set(INTEGERS) <= set(dts) else [d for d in dts if d in INTEGERS]
    return ", ".join([*integers, *(OTHERS[d] for d in dts if d in OTHERS)])


def signature(name: str) -> str:
    """How a function is called, without annotations."""
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in
                  inspect.signature(PUBLIC[name]).parameters.values()]
    return f"{name}{inspect.Signature(parameters)}"


def page() -> str:
    """The whole of docs/language.md."""
    examples = {name: text for section in EXAMPLES.values() for name, text in section.items()}
    made, dtypes = kernels(examples), taken(examples)
    without = refused(made)
    out = [INTRODUCTION, "## Mixed dtypes\n", str(promote.__doc__).partition("\n\n")[2],
           "## Number types\n\nA selection; `tile.codebook(bits, values)` makes one from a table. Those without "
           "arithmetic must be converted first, by `x.to`.\n", "| dtype | bits | least | greatest | arithmetic |",
           "|---|---|---|---|---|"]
    out += [f"| `{d}` | {d.bits} | {d.min:.6g} | {d.max:.6g} | {'yes' if d.arithmetic else ''} |"
            for d in map(dtype, TYPES)]
    out += ["\n## The functions\n\nAll compile for every target unless stated otherwise (tried here: "
            f"{', '.join(map('`{}`'.format, TARGETS))}; see [Targets](targets.md)). AMD GPUs cannot print.\n\n"
            "The examples are statements of a kernel with these arguments, followed by what they print or leave in "
            "`Y`:\n\n```python\nimport numpy as np", "import tilelang as tile\n",
            *(f"{name} = np.array({array.tolist()}, np.{array.dtype})" for name, array in ARGUMENTS.items()), "",
            KERNEL.format(name="example", body="tile.print(x + 1)"), "example(X, I, M, Y)\n```\n",
            f"```text\n{printed(kernels({'plus_one': 'tile.print(x + 1)'})['plus_one'], 'cpu')}```\n"]
    for title, section in EXAMPLES.items():
        out.append(f"### {title}\n")
        for name, example in section.items():
            result = "".join(f"# {line}\n" for line in printed(made[name], "reference").splitlines())
            first = f" Takes {dtypes[name]}." if name in dtypes else ""
            if name in without:
                first += f" Not for {', '.join(without[name])}."
            out.append(f"#### {name}\n\n`tile.{signature(name)}`{' ·' if name in METHODS else ''}\n\n"
                       f"{inspect.cleandoc(str(PUBLIC[name].__doc__))}{first}\n\n```\n{example}\n{result}```\n")
    return "\n".join(out)


if __name__ == "__main__":
    PAGE.write_text(page())
    PICTURES.mkdir(exist_ok=True)
    for name, layout in LAYOUTS.items():
        (PICTURES / f"{name}.svg").write_text(svg(layout))
    for other in Path(__file__).parent.glob("generate_*.py"):
        runpy.run_path(str(other), run_name="__main__")
