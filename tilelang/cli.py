"""The command line: `python -m tilelang {compile,cache}`."""
from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEVELS = {"tile": "tile", "placed": "placed", "thread": "thread", "llvm": "source", "asm": "assembly"}


def compile_command(options: argparse.Namespace) -> int:
    """Prints a kernel at one level."""
    from tilelang.backends.cpu.compile import Lowered
    from tilelang.backends.cpu.machine import host
    from tilelang.ir.dtypes import dtype
    from tilelang.jit import Kernel
    file, _, name = options.kernel.partition(":")
    kernel = _load(file, name)
    if not isinstance(kernel, Kernel):
        return _fail(f"{options.kernel} is no kernel", "FILE:KERNEL with a function marked @tile.kernel")
    given: dict[str, str] = dict(item.partition("=")[::2] for item in options.set)
    consts, dtypes = {}, {}
    for p in kernel.params:
        if p.kind == "const":
            if p.name not in given and p.required:
                return _fail(f"`{p.name}` has no default", f"--set {p.name}=VALUE")
            consts[p.name] = _value(given[p.name]) if p.name in given else p.default
        elif p.kind == "tensor" and isinstance(p.tensor.dtype, str):
            dtypes[p.tensor.dtype] = dtype(given.get(p.tensor.dtype, "f32"))
    unit = {p.name: (False,) * (len(p.tensor.dims) - 1) + (True,) for p in kernel.params if p.kind == "tensor"}
    lowered = Lowered(kernel.trace(kernel.types(dtypes, unit), consts), host())
    print(getattr(lowered, LEVELS[options.emit]))
    return 0


def _value(text: str) -> Any:
    import ast

    from tilelang.ir.dtypes import dtype
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return dtype(text)


def _load(file: str, name: str) -> Any:
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(_fail(f"{file} cannot be read", "a Python file"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name, None)


def _fail(got: str, needs: str) -> int:
    print(f"tilelang: {got}\n  needs: {needs}", file=sys.stderr)
    return 2


def cache_command(options: argparse.Namespace) -> int:
    """Shows or cleans the compile cache."""
    from tilelang import cache
    from tilelang.config import config
    store = cache.default()
    entries = sorted(store.entries(), key=lambda e: -e.used)
    if options.action == "list":
        for e in entries:
            print(f"{e.size:>9}  {e.path.name}")
    elif options.action == "verify":
        damaged = store.verify()
        print(f"{len(entries)} entries, {len(damaged)} damaged and removed")
        return 1 if damaged else 0
    elif options.action in ("prune", "clear"):
        dropped = store.prune(config().cache_bytes if options.action == "prune" else 0)
        print(f"{dropped} entries removed")
    else:
        print(store.directory if options.action == "path" else
              f"{sum(e.size for e in entries)} bytes in {len(entries)} entries")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; gives the exit status."""
    parser = argparse.ArgumentParser(prog="tilelang", description="Tile kernels and their compiler.")
    commands = parser.add_subparsers(required=True)
    compile_ = commands.add_parser("compile", help="print a kernel at one level of the compiler")
    compile_.add_argument("kernel", metavar="FILE:KERNEL")
    compile_.add_argument("--emit", choices=LEVELS, default="tile")
    compile_.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                          help="a constant, or the dtype of a type variable (f32 unless given)")
    compile_.set_defaults(run=compile_command)
    cache = commands.add_parser("cache", help="look after the compile cache")
    cache.add_argument("action", choices=["list", "size", "verify", "prune", "clear", "path"])
    cache.set_defaults(run=cache_command)
    options = parser.parse_args(argv)
    return int(options.run(options))
