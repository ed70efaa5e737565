"""Registers that an emitted text reads before it writes them.

A run does not show them: to a C++ compiler `x = x` and the value of a variable without one are any value, often the
right one. So the text is checked for definite assignment (Java Language Specification, chapter 16): on every way to a
read stands a write. Of a vector each element counts, where the text says by constants which are written.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import reduce

_TOKEN = re.compile(r"""//[^\n]*|^[ ]*\#[^\n]*|"(?:\\.|[^"\\])*"|'[^']*'|(?P<token>[A-Za-z_]\w*(?:::\w+)*|\d[\w.]*"""
                    r"""|[-+*/%&|^<>=!]=|[^\s\w])""", re.MULTILINE)
_OPEN, _CLOSE = "([{", ")]}"
_WRITTEN_BY_CALLS = {"tl::ldmatrix"}
"""Functions that write the registers they are given first."""

_Counted = tuple[str, range]
"""The variable of a loop, and its values."""
Unset = dict[str, frozenset[int]]
"""Registers that may be without a value, and which of their elements."""


@dataclass(frozen=True)
class Unwritten:
    """A read of a register without a value; the number of the first operation from there on, -1 without one."""

    name: str
    op: int


def unwritten(text: str) -> dict[str, list[Unwritten]]:
    """Of each kernel in a text, the first such read of each register."""
    tokens, out = [m["token"] for m in _TOKEN.finditer(text) if m["token"]], {}
    for at, token in enumerate(tokens):
        if token == "TL_KERNEL":  # TL_KERNEL(name, threads)(parameters) { … }
            walk = _Walk(tokens)
            walk.statement(walk.after(walk.after(at + 1)), {})
            out[tokens[at + 2]] = walk.found
    return out


def _either(a: Unset, b: Unset) -> Unset:
    return {name: a.get(name, frozenset()) | b.get(name, frozenset()) for name in {**a, **b}}


@dataclass
class _Walk:
    tokens: list[str]
    found: list[Unwritten] = field(default_factory=list)
    breaks: list[list[Unset]] = field(default_factory=list)  # what is unset where each loop around is left

    def after(self, at: int) -> int:
        """The place after the bracket that closes the one at `at`."""
        depth = 0
        while True:
            depth += (self.tokens[at] in _OPEN) - (self.tokens[at] in _CLOSE)
            at += 1
            if not depth:
                return at

    def end(self, at: int) -> int:
        """The place of the semicolon that ends the simple statement at `at`, or of the bracket around it."""
        while self.tokens[at] != ";" and self.tokens[at] not in _CLOSE:
            at = self.after(at)
        return at

    def statement(self, at: int, unset: Unset, loop: _Counted | None = None) -> int:
        """Walks the statement at `at`, changes `unset` to what holds after it, and gives the place of the next.
        `loop` is what the loop around it counts, where constants say so."""
        match self.tokens[at]:
            case "{":
                at += 1
                while self.tokens[at] != "}":
                    at = self.statement(at, unset)
                return at + 1
            case "if":
                return self.branches(at, unset)
            case "for" | "while":
                return self.loop(at, unset)
            case "TL_UNROLL":
                return self.statement(at + 1, unset)
            case "break":
                self.breaks[-1].append(dict(unset))
                unset.clear()  # nothing is read from here on
                return at + 2
        stop = self.end(at)
        self.simple(at, stop, unset, loop)
        return stop + 1

    def branches(self, at: int, unset: Unset) -> int:
        body = self.after(at + 1)
        self.reads(at + 1, body, unset)
        other = dict(unset)
        at = self.statement(body, unset)
        if self.tokens[at] == "else":
            at = self.statement(at + 1, other)
        _become(unset, _either(unset, other))
        return at

    def loop(self, at: int, unset: Unset) -> int:
        tokens, body = self.tokens, self.after(at + 1)
        self.breaks.append([])
        counted: _Counted | None = None
        if tokens[at] == "for":
            start = self.end(at + 2)
            self.simple(at + 2, start, unset, None)
            self.reads(start + 1, body, unset)
            name = tokens[at + 3]
            if tokens[at + 4:at + 9] == ["=", "0", ";", name, "<"] and tokens[at + 9].isdigit():
                counted = name, range(int(tokens[at + 9]))  # for (int name = 0; name < n; …
        else:
            self.reads(at + 1, body, unset)
        before = dict(unset)
        end = self.statement(body, unset, counted)
        left = self.breaks.pop()
        if tokens[at:at + 4] != ["while", "(", "true", ")"] and not (counted and counted[1]):
            left.append(before)  # the body may not run at all
        elif counted and counted[1]:
            left.append(dict(unset))
        _become(unset, reduce(_either, left, {}))
        return end

    def simple(self, at: int, stop: int, unset: Unset, loop: _Counted | None) -> None:
        """A declaration, an assignment or a call in [at, stop)."""
        tokens = self.tokens
        start = at + (tokens[at] == "const")
        name = self.after_type(start)
        if name is not None:
            elements = int(tokens[name - 2]) if tokens[name - 1] == ">" and tokens[name - 2].isdigit() else 1
            self.declaration(name, stop, frozenset(range(elements)), unset)
            return
        if tokens[at] in unset and tokens[at + 1] == "=":
            self.reads(at + 2, stop, unset)
            unset.pop(tokens[at], None)
        elif tokens[at] in unset and tokens[at + 1] == "[" and tokens[self.after(at + 1)] == "=":
            self.reads(at + 2, stop, unset)
            index = tokens[at + 2:self.after(at + 1) - 1]
            written = frozenset(loop[1] if loop and index == [loop[0]] else [int(index[0])] if index[0].isdigit()
                                else unset[tokens[at]])
            _become(unset, {**unset, tokens[at]: unset[tokens[at]] - written})
        elif tokens[at] in _WRITTEN_BY_CALLS:
            opened = tokens.index("(", at)
            self.reads(opened + 2, stop, unset)
            unset.pop(tokens[opened + 1], None)
        else:
            self.reads(at, stop, unset)

    def after_type(self, at: int) -> int | None:
        """The place of the name that a declaration at `at` declares; None for other statements."""
        if not self.tokens[at].replace("::", "").isidentifier():
            return None
        at += 1
        if self.tokens[at] == "<":
            depth = 0
            while True:
                depth += (self.tokens[at] == "<") - (self.tokens[at] == ">")
                at += 1
                if not depth:
                    break
        return at if self.declares(at) else None

    def declares(self, at: int) -> bool:
        """Whether the token at `at`, after a type or a comma, is a name that is declared."""
        return self.tokens[at].isidentifier() and self.tokens[at + 1] in "=,;{["

    def declaration(self, at: int, stop: int, elements: frozenset[int], unset: Unset) -> None:
        """Names of registers from `at` on, each with a value or without."""
        while at < stop:
            name = self.tokens[at]
            unset[name] = elements
            end = at + 1
            while end < stop and not (self.tokens[end] == "," and self.declares(end + 1)):
                end = self.after(end)
            if end > at + 1:
                self.reads(at + 1, end, unset)
                unset.pop(name, None)
            at = end + 1

    def reads(self, at: int, stop: int, unset: Unset) -> None:
        """Reports what is read in [at, stop) without a value, unless it was before: what the body of a loop read is
        still without one behind it, where the loop may not run at all."""
        for i in range(at, stop):
            name = self.tokens[i]
            if name in unset and self.tokens[i - 1] != ".":
                number = next((int(self.tokens[j + 2]) for j in range(at, len(self.tokens) - 2)
                               if self.tokens[j] == "tl::op"), -1)
                if all(earlier.name != name for earlier in self.found):
                    self.found.append(Unwritten(name, number))
                del unset[name]


def _become(unset: Unset, now: Unset) -> None:
    unset.clear()
    unset.update({name: elements for name, elements in now.items() if elements})
