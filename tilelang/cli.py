"""The command line: `python -m tilelang {check,compile,explain,cache,tuning,reduce,doctor}`."""
from __future__ import annotations

import argparse
import importlib.util
import io
import linecache
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from tilelang.errors import TileError

if TYPE_CHECKING:
    from tilelang.ir.dtypes import DType
    from tilelang.jit import Kernel

LEVELS = {"tile": "tile", "placed": "placed", "thread": "thread", "source": "source", "assembly": "assembly",
          "report": "report", "llvm": "source", "asm": "assembly"}
_WIDE = 60
"""Columns of a line of the source in a table."""


class _Given(NamedTuple):
    """A kernel and what `--set` says of it: constants, dtypes of type variables, extents of dimensions."""

    kernel: Kernel
    consts: dict[str, Any]
    dtypes: dict[str, DType]
    extents: dict[str, int]


def _given(options: argparse.Namespace) -> _Given:
    from tilelang.jit import Kernel
    from tilelang.tuning.tuned import Tuned
    file, _, name = options.kernel.partition(":")
    module = _load(file)
    kernel = getattr(module, name, None)
    if isinstance(kernel, Tuned):  # its constants are those of the kernel, or the first it would choose among
        lacking = {p.name for p in kernel.kernel.params if p.kind == "const" and p.required}
        kernel = kernel.kernel.bind(**{k: v for k, v in kernel.configs[0].items() if k in lacking})
    if not isinstance(kernel, Kernel):
        known = ", ".join(f"{file}:{n}" for n, v in vars(module).items() if isinstance(v, Kernel | Tuned))
        raise SystemExit(_fail(f"{options.kernel} is not a kernel",
                               known or "FILE:KERNEL with a function marked @tile.kernel"))
    for item in options.set:
        if "=" not in item:
            raise SystemExit(_fail(f"--set {item} gives no value", "--set NAME=VALUE"))
    texts: dict[str, str] = dict(item.partition("=")[::2] for item in options.set)
    given = _Given(kernel, {}, {}, {})
    for p in kernel.params:
        if p.kind == "const":
            if p.name not in texts and p.required:
                raise SystemExit(_fail(f"`{p.name}` has no default", f"--set {p.name}=VALUE"))
            given.consts[p.name] = _value(p.name, texts.pop(p.name)) if p.name in texts else p.default
    for p in kernel.params:
        if p.kind == "tensor":
            given.extents.update({d: _extent(d, texts[d]) for d in p.tensor.dims
                                  if isinstance(d, str) and d in texts})
            if isinstance(v := p.tensor.dtype, str):
                given.dtypes[v] = _dtype(v, texts.get(v, "f32"))
    given.extents.update(kernel.sized(given.consts))
    if unknown := texts.keys() - given.dtypes.keys() - given.extents.keys():
        raise SystemExit(_fail(f"`{name}` has nothing named {min(unknown)}",
                               ", ".join([*given.consts, *given.dtypes]) or "a kernel with constants"))
    return given


def compile_command(options: argparse.Namespace) -> int:
    """Prints a kernel at one level."""
    from tilelang import targets
    kernel, consts, dtypes, _ = _given(options)
    unit = {p.name: (False,) * (len(p.tensor.dims) - 1) + (True,) for p in kernel.params if p.kind == "tensor"}
    name = targets.check(options.target, runs=False).removeprefix(targets.EMULATE)
    align = 1 if name == "cpu" else options.align
    lowered = targets.lowered(kernel.trace(kernel.types(dtypes, unit, align), consts), name)
    out = getattr(lowered, LEVELS[options.emit])
    print("\n".join(f"{k}: {v}" for k, v in out.items()) if isinstance(out, dict) else out)
    return 0


def check_command(options: argparse.Namespace) -> int:
    """Runs a kernel under the emulator's checks and prints what they find, or what its lines cost."""
    from tilelang import targets
    from tilelang.checking import check
    kernel, consts, dtypes, extents = _given(options)
    if not targets.on_device(targets.check(options.target, runs=False).removeprefix(targets.EMULATE)):
        return _fail(f"{options.target} has no text that the emulator runs", "cuda:sm_80, hip:gfx942 or another GPU")
    done = check(kernel, options.target, consts, dtypes, extents)
    for found in done.found:
        print("\n".join([*found.render(), ""]))
    print(f"{len(done.found) or 'no'} finding{'s' * (len(done.found) > 1)} in `{kernel.name}` for {options.target}, "
          "run with\n" + "\n".join(f"  {case}" for case in dict.fromkeys(done.cases)))
    if done.found:
        print(f"what shows it again was written to {done.file}")
        return 1
    print(_table(done.counters, done.cases[0]))
    return 0


def explain_command(options: argparse.Namespace) -> int:
    """Writes or prints what the compiler made of a kernel, for arguments drawn from its signature."""
    import numpy as np

    from tilelang import targets
    from tilelang.checking import drawn, shapes_of
    from tilelang.explain import Explanation
    from tilelang.explain.facts import gather
    kernel, consts, dtypes, extents = _given(options)
    name = targets.check(options.target, runs=False).removeprefix(targets.EMULATE)
    shape = next(shapes_of(kernel, consts, dtypes, extents))
    bound, _ = drawn(kernel, np.random.default_rng(0), shape, dtypes, consts)
    lowered = targets.lowered(bound.kernel.trace(bound.types(aligned=name != "cpu"), bound.consts), name)
    explanation = Explanation(gather(lowered, name, bound, options.count))
    if options.output is not None:
        print(f"written to {explanation.save(options.output)}")
    if options.text or options.output is None:
        print(explanation, end="")
    return 0


def _table(counters: dict[tuple[str, int], Any], case: str) -> str:
    """What the lines of the source cost, beside the least that their accesses could."""
    rows = [("line", "global sectors/ideal", "shared wavefronts/ideal", "MMA", "instructions")]
    for (file, line), c in sorted(counters.items()):
        text = f"{Path(file).name}:{line}  {linecache.getline(file, line).strip()}" if file else "(the compiler's own)"
        rows.append((text if len(text) <= _WIDE else text[:_WIDE - 1] + "…", f"{c.sectors}/{c.ideal_sectors}",
                     f"{c.wavefronts}/{c.ideal_wavefronts}", str(c.mma), str(sum(c.instructions.values()))))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join([f"whole warps' work by line, for {case}", *(
        "  ".join([text.ljust(first), *(x.rjust(n) for x, n in zip(numbers, others, strict=True))])
        for text, *numbers in rows)])


def _value(name: str, text: str) -> Any:
    import ast
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _dtype(name, text)


def _dtype(name: str, text: str) -> DType:
    from tilelang.ir.dtypes import dtype
    try:
        return dtype(text)
    except ValueError as error:
        raise SystemExit(_fail(f"--set {name}={text}: {error}", "a number, a text in quotes or a dtype")) from None


def _extent(name: str, text: str) -> int:
    if not text.isdigit():
        raise SystemExit(_fail(f"--set {name}={text}", "an extent: an integer of at least 0"))
    return int(text)


def _load(file: str) -> ModuleType:
    """A Python file as a module, which runs as it would where it is imported from its own folder."""
    path = Path(file)
    stem = path.stem if path.stem not in sys.modules else f"{path.stem} of tilelang"
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(_fail(f"{file} cannot be read", "a Python file"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except TileError:
        raise
    except Exception as error:  # a mistake in the file: its own lines are all that there is to show
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != spec.origin:
            trace = trace.tb_next
        print("".join(traceback.format_exception(type(error), error, trace)), file=sys.stderr, end="")
        raise SystemExit(_fail(f"{file} cannot be imported", "a Python file without mistakes")) from None
    return module


def _fail(got: str, needs: str) -> int:
    print(f"tilelang: {got}\n  needs: {needs}", file=sys.stderr)
    return 2


def cache_command(options: argparse.Namespace) -> int:
    """Shows or cleans the compile cache."""
    from tilelang import cache
    from tilelang.config import config
    store = cache.default()
    if options.action != "path" and not store.usable():
        return _fail(f"the cache {store.directory} cannot be used", "a directory of your own: TILELANG_CACHE_DIR")
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


def tuning_command(options: argparse.Namespace) -> int:
    """Shows, exports or removes results of tuning."""
    from tilelang.tuning.store import default
    store = default()
    if options.action == "path":
        print(store.path)
    elif why := store.problem(writing=options.action == "clear"):
        return _fail(f"{store.path} cannot be used: {why}", "a file of results, or none yet: TILELANG_TUNING_FILE")
    elif options.action == "export":
        if options.file is None:
            return _fail("`tuning export` without a file", "python -m tilelang tuning export FILE")
        print(f"{store.export(Path(options.file))} results written to {options.file}")
    elif options.action == "clear":
        print(f"{store.clear()} results removed")
    else:
        for row in store.results():
            where = ", ".join(f"{d}<={n}" for d, n in row["bucket"])
            chosen = ", ".join(f"{k}={v}" for k, v in row["config"].items())
            print(f"{row['kernel']}  {row['target']} ({row['device']})  {where}: {chosen}  {row['ms']:.4g} ms")
    return 0


def reduce_command(options: argparse.Namespace) -> int:
    """Makes a reproducer smaller."""
    from tilelang.reproduce import load, reduce_file
    try:
        load(options.file)
    except ValueError as error:
        return _fail(str(error), "a reproducer, which an error of the compiler names")
    return reduce_file(Path(options.file))


def doctor_command(options: argparse.Namespace) -> int:
    """Prints what works here, and what would bring the rest; status 1 where something is broken."""
    from tilelang.doctor import examine
    broken = 0
    for found in examine():
        print(f"{found.state:<8} {found.name}: {found.detail}" + (f"\n         try: {found.fix}" if found.fix else ""))
        broken += found.state == "broken"
    return 1 if broken else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; gives the exit status: 0, 1 where a check found something, 2 for a mistake in the request."""
    parser = argparse.ArgumentParser(prog="tilelang", description="Tile kernels and their compiler.")
    commands = parser.add_subparsers(required=True)
    compile_ = commands.add_parser("compile", help="print a kernel at one level of the compiler")
    compile_.add_argument("--emit", choices=LEVELS, default="tile")
    compile_.add_argument("--target", default="cpu", help="cpu, cuda:sm_80, hip:gfx942 … (default: cpu)")
    compile_.add_argument("--align", type=int, default=16, metavar="BYTES", choices=(1, 2, 4, 8, 16),
                          help="what addresses and rows are multiples of on a GPU (default: 16)")
    compile_.set_defaults(run=compile_command)
    check = commands.add_parser("check", help="run a kernel under the emulator's checks; status 1 where they find "
                                "something")
    check.add_argument("--target", default="cuda:sm_80", help="default: cuda:sm_80")
    check.set_defaults(run=check_command)
    explain = commands.add_parser("explain", help="show what the compiler made of a kernel: a page, or text")
    explain.add_argument("--target", default="cpu", help="cpu, cuda:sm_80, hip:gfx942 … (default: cpu)")
    explain.add_argument("-o", "--output", metavar="PAGE.html", help="write one self-contained page")
    explain.add_argument("--text", action="store_true", help="print it (the default without -o)")
    explain.add_argument("--run", action="store_true", dest="count",
                         help="count what each line costs, in the emulator: keep the extents small")
    explain.set_defaults(run=explain_command)
    for command in (compile_, check, explain):
        command.add_argument("kernel", metavar="FILE:KERNEL")
        command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a constant, the dtype "
                             "of a type variable (f32 unless given), or, but for `compile`, the extent of a dimension")
    cache = commands.add_parser("cache", help="look after the compile cache")
    cache.add_argument("action", choices=["list", "size", "verify", "prune", "clear", "path"])
    cache.set_defaults(run=cache_command)
    tuning = commands.add_parser("tuning", help="look after the results of @tile.autotune")
    tuning.add_argument("action", choices=["list", "export", "clear", "path"])
    tuning.add_argument("file", nargs="?", help="where `export` writes: a file that a package can ship")
    tuning.set_defaults(run=tuning_command)
    reduce_ = commands.add_parser("reduce", help="make a reproducer of a mistake of the compiler's smaller, in place")
    reduce_.add_argument("file")
    reduce_.set_defaults(run=reduce_command)
    doctor = commands.add_parser("doctor", help="find out what works on this machine, and what is missing")
    doctor.set_defaults(run=doctor_command)
    options = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # terminals that have not all letters
    try:
        return int(options.run(options))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except (TileError, OSError, MemoryError) as error:  # of the kernel, of files, or of extents beyond this machine
        print(f"tilelang: {error}", file=sys.stderr)
        return 2
