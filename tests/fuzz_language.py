"""Random kernels as a user writes them, run as Python by NumPy, by the interpreter and as machine code: `python -m
tests.fuzz_language [SECONDS]`. Stops at the first difference or refusal, shrunk, and prints the program.

Numbers stay far below 2^31, where Python's and the kernel's are the same. Statements are those that
`tilelang.lang.statements` knows, nested; conditions are constant or not, as it comes."""
from __future__ import annotations

import builtins
import linecache
import sys
import types
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

import tilelang as tile
from tests.search import search

INDENT, WIDTH, PROGRAMS = "    ", 4, 2
HEAD = """\
import tilelang as tile
TABLE = (3, 1, 4, 1, 5)


def make(G, H):
"""


class Writer:
    """Writes one program. Values are scalars "s", tiles "t" of 4 numbers and truths "b"; all names in `scope` have a
    value, `fixed` are constants, and `loops` says whether a loop that runs in the kernel is around."""

    def __init__(self, random: Random) -> None:
        self.random, self.lines, self.count = random, [HEAD], 0
        self.functions: list[tuple[str, str, list[str]]] = []  # name, what it returns, what it takes
        self.scope: dict[str, str] = {}
        self.fixed: list[str] = []
        self.result, self.loops = "", False

    def text(self) -> str:
        for _ in range(self.random.randrange(3)):
            self.function()
        self.scope, self.fixed, self.result, self.loops = {"p": "s", "n": "s", "m": "s", "v": "t"}, \
            ["C", "G", "H"], "", False
        self.lines += [f"{INDENT}@tile.kernel\n", f"{INDENT}def kernel(x: tile.Tensor[tile.i32, 'N'], y: tile.InOut["
                       f"tile.i32, 'M'], n: tile.i32, m: tile.i32, C: tile.Const = 2):\n",
                       f"{INDENT * 2}p = tile.grid({PROGRAMS})\n", f"{INDENT * 2}v = tile.load(x, p * 3, {WIDTH})\n"]
        self.block(2, 4)
        for at, kind in enumerate("ts"):
            self.line(2, self.stored(at, self.expression(kind, 2)))
        return "".join(self.lines) + f"{INDENT}return kernel\n"

    def line(self, depth: int, text: str) -> None:
        self.lines.append(INDENT * depth + text + "\n")

    def pick(self, *choices: Any) -> Any:
        return choices[self.random.randrange(len(choices))]

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def stored(self, at: int, value: str) -> str:
        return f"tile.store(y, p * 16 + {at * WIDTH}, tile.full(({WIDTH},), 0, tile.i32) + {value})"

    # -- functions ----------------------------------------------------------------------------------------------------
    def function(self) -> None:
        name, kinds = self.fresh("f"), [self.pick("s", "t", "b") for _ in range(self.random.randrange(1, 4))]
        names = [self.fresh("a") for _ in kinds]
        given = [f"{a}={self.literal()}" if i == len(names) - 1 and k == "s" and i else a
                 for i, (a, k) in enumerate(zip(names, kinds, strict=True))]
        if len(given) > 1 and self.random.randrange(3) == 0:
            given.insert(-1, "*")
        self.scope, self.fixed, self.loops = dict(zip(names, kinds, strict=True)), ["G", "H"], False
        self.result = self.pick("s", "t", "st")
        self.lines += [f"{INDENT}@tile.function\n", f"{INDENT}def {name}({', '.join(given)}):\n"]
        self.block(2, 3)
        self.line(2, f"return {self.returned()}")
        self.functions.append((name, self.result, [f"{a}:{k}" for a, k in zip(names, kinds, strict=True)]))

    def returned(self) -> str:
        return ", ".join(self.expression(k, 2) for k in self.result)

    def call(self, kind: str, depth: int) -> str | None:
        able = [f for f in self.functions if kind in f[1]]
        if not able:
            return None
        name, result, taken = self.pick(*able)
        args = [f"{a}={self.expression(k, depth - 1)}" if i == len(taken) - 1 and i else self.expression(k, depth - 1)
                for i, (a, _, k) in enumerate(t.partition(":") for t in taken)]
        return f"{name}({', '.join(args)})" + (f"[{result.index(kind)}]" if len(result) > 1 else "")

    # -- statements ---------------------------------------------------------------------------------------------------
    def block(self, depth: int, size: int) -> None:
        """Statements, one at least."""
        self.line(depth, "pass")
        for _ in range(self.random.randrange(1, size + 1)):
            getattr(self, self.pick("assign", "assign", "augment", "several", "branch", "branch", "unroll", "loop",
                                    "while_", "leave", "check", "write"))(depth)

    def inner(self, depth: int, *numbers: str, loop: bool = False) -> None:
        """A block of its own: names that it binds first, as a loop does `numbers`, have no value behind it."""
        kept = self.scope, self.loops
        self.scope, self.loops = {**self.scope, **dict.fromkeys(numbers, "s")}, self.loops or loop
        if depth < 6:
            self.block(depth, 3)
        else:
            self.line(depth, "pass")
        self.scope, self.loops = kept

    def assign(self, depth: int) -> None:
        kind = self.pick("s", "s", "t", "b")
        known = [n for n, k in self.scope.items() if k == kind and n not in "pnm"]
        name = self.pick(*known) if known and self.random.randrange(2) else self.fresh(kind)
        value = self.expression(kind, 3)
        if kind == "s" and self.random.randrange(4) == 0:
            other = self.fresh("s")
            value = f"({other} := {value}) + {self.literal()}"
            self.scope[other] = "s"
        self.line(depth, f"{name} = {value}" if kind == "b" else f"{name} = ({value}) % 97 - 20")
        self.scope[name] = kind

    def augment(self, depth: int) -> None:
        known = [n for n, k in self.scope.items() if k in "st" and n not in "pnm"]
        if known:
            name = self.pick(*known)
            self.line(depth, f"{name} {self.pick('+', '-', '*')}= {self.expression('s', 1)}")
            self.line(depth, f"{name} %= 89")

    def several(self, depth: int) -> None:
        kinds = [self.pick("s", "t") for _ in range(2)]
        names = [self.fresh(k) for k in kinds]
        values = [f"({self.expression(k, 2)}) % 83" for k in kinds]
        form = self.pick("{0}, {1} = {2}, {3}", "({0}, *_), {1} = [{2}, 7, 8], {3}", "{1}, {0} = ({2}, {3})[::-1]",
                         "{0} = {2}; {1} = {3}; {0}, {1} = {0}, {1}")
        self.line(depth, form.format(*names, *values))
        self.scope.update(zip(names, kinds, strict=True))

    def branch(self, depth: int) -> None:
        self.line(depth, f"if {self.truth(2)}:")
        self.inner(depth + 1)
        for word in self.pick((), ("else:",), ("elif {}:", "else:"), ("elif {}:",)):
            self.line(depth, word.format(self.truth(1)))
            self.inner(depth + 1)

    def unroll(self, depth: int) -> None:
        name, other = self.fresh("c"), self.fresh("c")
        target, over = self.pick((name, "tile.static_range(3)"), (name, "(2, G, 5)"), (name, "TABLE[1:3]"),
                                 (f"{name}, {other}", "enumerate(TABLE[:2])"), (name, "tile.static_range(C)"
                                  if "C" in self.fixed else "(1,)"), (f"{name}, {other}", "zip((1, 2), [G, H])"))
        self.line(depth, f"for {target} in {over}:")
        kept, self.fixed = self.fixed, self.fixed + target.split(", ")
        self.inner(depth + 1)
        self.fixed = kept

    def loop(self, depth: int) -> None:
        name = self.fresh("i")
        over = self.pick("3", "n % 4", "1, 6, 2", "0, m % 5, 2") if "n" in self.scope else "2"
        self.line(depth, f"for {name} in tile.range({over}):")
        self.inner(depth + 1, name, loop=True)

    def while_(self, depth: int) -> None:
        name = self.fresh("w")  # in no scope: nothing else changes it
        if "n" not in self.scope:
            return
        self.line(depth, f"{name} = n * 0")
        self.line(depth, f"while {name} < {self.random.randrange(4)} and {self.truth(1)}:")
        self.line(depth + 1, f"{name} += 1")
        self.inner(depth + 1, loop=True)

    def leave(self, depth: int) -> None:
        if not self.loops:
            self.line(depth, f"if {self.truth(2)}:")
            self.line(depth + 1, f"return {self.returned()}".rstrip())

    def check(self, depth: int) -> None:
        self.line(depth, f"assert {self.truth(1)} or True, f'{{G:>{self.random.randrange(9)}}} {{TABLE!r}}'")

    def write(self, depth: int) -> None:
        if not self.result:
            self.line(depth, self.stored(self.random.randrange(2, 4), self.expression(self.pick("s", "t"), 2)))

    # -- expressions --------------------------------------------------------------------------------------------------
    def literal(self) -> str:
        return self.pick("0", "1", "2", "3", "7", "-1", "-5", *self.fixed, *self.fixed)

    def expression(self, kind: str, depth: int) -> str:
        if kind == "b":
            return self.truth(depth)
        names = [n for n, k in self.scope.items() if k == kind]
        if depth <= 0 or self.random.randrange(4) == 0:
            return self.pick(*names, *([self.literal()] if kind == "s" else [f"tile.arange({WIDTH})"]))
        if self.random.randrange(4) == 0 and (made := self.call(kind, depth)):
            return made
        a, b = self.expression(kind, depth - 1), self.expression("s", depth - 1)
        common = [f"({a} {self.pick('+', '-')} {b})", f"({a} % 31 * {self.literal()})", f"(-{a})", f"abs({a})",
                  f"({a} // {self.pick(2, 3, -3, 7)})", f"({a} % {self.pick(2, 5, -3)})", f"max({a}, {b})",
                  f"min({b}, {a})", f"({a} {self.pick('&', '|', '^')} {b})", f"({a} >> {self.pick(0, 1, 3)})",
                  f"({b} % 13 - {a})", f"(lambda q, r=1: q - r)({a})"]
        if kind == "t":
            other = self.expression("t", depth - 1)
            return self.pick(*common, f"tile.where({a} {self.order()} {b}, {other}, {b})",
                             f"tile.full(({WIDTH},), {b}, tile.i32)", f"[{a}, {b}][0]", f"sum([{a}, {b}, {b}])")
        c = self.expression("s", depth - 1)
        return self.pick(*common, f"({a} if {self.truth(depth - 1)} else {b})", f"({a} and {b})",
                         f"({a} or {b} or {c})", f"sum([{a} * q for q in (1, 2, 3) if q != {self.literal()}])",
                         f"({self.truth(1)} * {a})",
                         f"TABLE[{self.pick('0', '-1', *[f'{c} % 5' for c in self.fixed])}]", f"len([{a}, {b}, {c}])",
                         f"[{a}, {b}][{self.pick('0', '-1')}]", f"len(f'{{{self.literal()}:>4}}')", f"sum([{a}, {b}])")

    def order(self) -> str:
        return self.pick("<", "<=", ">", ">=", "==", "!=")

    def truth(self, depth: int) -> str:
        names = [n for n, k in self.scope.items() if k == "b"]
        if depth <= 0 or self.random.randrange(3) == 0:
            a, b, c = (self.expression("s", depth - 1) for _ in range(3))
            return self.pick(*names, f"({a} {self.order()} {b})", f"({a} {self.order()} {b} {self.order()} {c})",
                             f"({self.literal()} in (1, 2, G))", f"({self.pick(*self.fixed)} is not None)")
        a, b = self.truth(depth - 1), self.truth(depth - 1)
        return self.pick(f"({a} and {b})", f"({a} or {b})", f"(not {a})", f"({a} if {b} else {self.truth(0)})",
                         f"({a} == {b})")


# -- as Python --------------------------------------------------------------------------------------------------------
class Numbers(np.ndarray[Any, Any]):
    """A tile: `x += 1` makes another, as it does in the language."""

    __iadd__, __isub__, __imul__, __imod__ = np.ndarray.__add__, np.ndarray.__sub__, np.ndarray.__mul__, \
        np.ndarray.__mod__


def _pairwise(ufunc: Any, plain: Any) -> Any:
    return lambda a, b: ufunc(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else plain(a, b)


def as_python(program: int) -> types.SimpleNamespace:
    """What stands for `tile` where the text runs as Python, as one program of the grid."""
    def numbers(make: Any) -> Any:
        return lambda *args: make(*args).view(Numbers)

    def load(x: Any, at: int, count: int) -> Any:
        return np.pad(x, (0, count))[at:at + count].astype(np.int64)

    def store(y: Any, at: int, value: Any) -> None:
        y[at:at + WIDTH] = value

    def same(x: Any) -> Any:
        return x

    return types.SimpleNamespace(
        Tensor={(tile.i32, "N"): 0}, InOut={(tile.i32, "M"): 0}, i32=tile.i32, Const=int, kernel=same, function=same,
        grid=lambda count: program, load=numbers(load), store=store, range=range, static_range=range,
        arange=numbers(np.arange), full=numbers(lambda shape, value, dtype: np.full(shape, value)),
        where=numbers(np.where))


def run_as_python(text: str, x: Any, n: int, m: int) -> Any:
    y = np.zeros(16 * PROGRAMS, np.int64)
    body = text.partition("\n")[2]
    for program in range(PROGRAMS):
        space: dict[str, Any] = {"tile": as_python(program), "max": _pairwise(np.maximum, builtins.max),
                                 "min": _pairwise(np.minimum, builtins.min)}
        exec(compile(body, "<program>", "exec"), space)
        space["make"](4, -6)(x, y, n, m)
    return y


_count = 0


def kernel_of(text: str) -> Any:
    """The kernel of a text, whose lines `inspect` finds."""
    global _count
    _count += 1
    name = f"<random kernel {_count}>"
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    space: dict[str, Any] = {"__name__": "random_kernel"}
    exec(compile(text, name, "exec"), space)
    return space["make"](4, -6)


def check(text: str) -> str:
    """What is wrong with the kernel of a text; empty if nothing is."""
    x = np.arange(-4, 5, dtype=np.int32) ** 3 % 50
    kernel = kernel_of(text)
    for n, m in ((0, 3), (2, -7), (5, 1)):
        want = run_as_python(text, x, n, m)
        for name, run in (("interpreter", kernel.reference), ("machine code", kernel)):
            y = np.zeros(16 * PROGRAMS, np.int32)
            run(x, y, n, m)
            if not np.array_equal(y, want):
                return f"{name} for n={n}, m={m}:\n{y}\nPython:\n{want}"
    return ""


def main(seconds: float) -> int:
    """Runs random programs for about `seconds`; 1 if one of them failed."""
    def examine(text: str) -> tuple[str, str] | None:
        try:
            found = check(text)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        return (found, text) if found else None
    count, failed = search(
        seconds, st.randoms(use_true_random=False).map(lambda random: Writer(random).text()), examine)
    if failed:
        print(f"after {count} programs: {failed[0]}\n\n{failed[1]}")
        return 1
    print(f"{count} random programs, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
