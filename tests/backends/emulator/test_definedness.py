"""Reads of registers without a value: random programs against all ways through them, and slips in emitted text."""
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.simt import kernels
from tilelang.backends.emulator.definedness import unwritten

NAMES = "xyz"
Program = list[tuple[Any, ...]]


def programs(depth: int = 2) -> st.SearchStrategy[Program]:
    name = st.sampled_from(NAMES)
    simple = st.tuples(st.just("set"), name, st.sets(name, max_size=2)) | st.tuples(st.just("use"), name)
    if not depth:
        return st.lists(simple, max_size=3)
    inner = programs(depth - 1)
    return st.lists(simple | st.tuples(st.just("if"), inner, inner) | st.tuples(st.just("for"), inner)
                    | st.tuples(st.just("while"), inner, inner), max_size=4)


def text(program: Program) -> str:
    """As the renderer writes it."""
    out = []
    for kind, *parts in program:
        match kind:
            case "set":
                out.append(f"{parts[0]} = tl::add(0, {' + '.join(['1', *sorted(parts[1])])});")
            case "use":
                out.append(f"tl::check({parts[0]} < 3, tl::op(1));")
            case "if":
                out.append(f"if (c) {{ {text(parts[0])} }} else {{ {text(parts[1])} }}")
            case "for":
                out.append(f"for (tl::i32 n = 0; n < c; n += 1) {{ {text(parts[0])} }}")
            case "while":
                out.append(f"while (true) {{ {text(parts[0])} if (!c) break; {text(parts[1])} }}")
    return "\n".join(out)


def ways(program: Program, known: frozenset[str], read: set[str]) -> Iterator[frozenset[str]]:
    """What is known after each way through the program, and into `read` what was read without a value."""
    if not program:
        yield known
        return
    (kind, *parts), rest = program[0], program[1:]

    def then(first: Program, after: frozenset[str]) -> Iterator[frozenset[str]]:
        for now in ways(first, after, read):
            yield from ways(rest, now, read)
    match kind:
        case "set":
            read |= parts[1] - known
            yield from ways(rest, known | {parts[0]}, read)
        case "use":
            read |= {parts[0]} - known
            yield from ways(rest, known, read)
        case "if":
            yield from then(parts[0], known)
            yield from then(parts[1], known)
        case "for":
            yield from ways(rest, known, read)
            yield from then(parts[0], known)
        case "while":
            yield from then(parts[0], known)
            for once in ways([*parts[0]], known, read):
                yield from then([*parts[1], *parts[0]], once)


@settings(max_examples=60, deadline=None)
@given(programs())
def test_a_read_is_found_where_a_way_leads_to_it(program: Program) -> None:
    read: set[str] = set()
    for _ in ways(program, frozenset(), read):
        pass
    found = unwritten(f"TL_KERNEL(k, 32)(int c) {{ int x, y, z; {text(program)} }}")["k"]
    assert {r.name for r in found} == read and len(found) == len(read)


@pytest.fixture(scope="module")
def attention() -> str:
    half = np.zeros((72, 32), np.float16)
    return str(kernels.attention.lower(half, half, half, target="cuda:sm_80").source)


def test_slips_in_emitted_text(attention: str) -> None:
    """Every tenth definition that is used names itself, or loses its value."""
    assert unwritten(attention) == {"attention_kernel": []}
    lines, slips = attention.splitlines(), 0
    for at, line in list(enumerate(lines))[::10]:
        declared = re.match(r"( *)(const )?([\w:]+(?:<.*>)?) (\w+) = .*;$", line)
        if declared is None or len(re.findall(rf"\b{declared[4]}\b", attention)) < 2:
            continue
        indent, const, kind, name = declared.groups()
        changed = [*lines[:at], f"{indent}{kind} {name}" + (f" = {name};" if const else ";"), *lines[at + 1:]]
        assert [r.name for r in unwritten("\n".join(changed))["attention_kernel"]] == [name]
        slips += 1
    assert slips > 25
