"""Kernels ahead of time: a library, a C header and a manifest, to be used without this package.

The library is called through the C ABI of tvm-ffi (`apache-tvm-ffi`): by Python with `tvm_ffi.load_module`, by C and
C++ through the header.
"""
from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelang import targets
from tilelang.errors import ArgumentCount, TargetError
from tilelang.ir.core import TensorType, TileType, Value
from tilelang.version import __version__

if TYPE_CHECKING:
    from tilelang.backends.cpu.launch import Failures

_OWN = set("DLTensor TVMFFIAny int32_t int64_t uint64_t main memset".split())
"""Names that headers use, and the one that every program has."""


def export(kernel: Any, directory: str | Path, *args: Any, name: str | None = None, target: str = "cpu",
           **kwargs: Any) -> Path:
    """Writes `NAME.so`, `NAME.h` and `NAME.json` for a kernel specialised for the dtypes, the order in memory and the
    constants of this call; extents stay open. For a GPU also its machine code (`NAME.cubin`, `NAME.hsaco`), which the
    library holds, too; there extents and strides of rows must be multiples of the bytes (at most 16) that those of
    this call are multiples of. Gives the path of the library.

    It runs on Linux: for "cpu" on processors that have what this one has, for GPUs on those of the architecture (no
    device is needed here). Raises TargetError for other targets, for kernels that print on the CPU, and where there is
    no C++ compiler or none for the GPU; ArgumentCount for a name that C does not allow; and what compiling raises."""
    from tilelang.backends.cpu.launch import Failures
    machine = targets.check(target, runs=False)
    if machine != "cpu" and not targets.on_device(machine):
        raise TargetError(f"kernels are exported for the CPU and GPUs, not for {target}",
                          needs="cpu, cuda, hip, cuda:sm_… or hip:gfx…", got=target, try_='target="cpu"')
    name = kernel.name if name is None else name
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in _taken():
        raise ArgumentCount(f"{name!r} is not a valid name of a C function", got=repr(name), try_='name="kernel"',
                            needs="a letter, then letters, digits and _; no keyword or name of C's own")
    lowered = kernel.lower(*args, target=target, **kwargs)
    params = lowered.tile.params
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    wants = "; ".join([*map(_wanted, params), "what is written shares no memory with another argument"])
    failures = Failures(("ValueError", f"{name}: the arguments are not what it was compiled for: {wants}"),
                        ("RuntimeError", (*_assertions(lowered, name), f"{name}: there is no memory")))
    where = "on the CPU" if machine == "cpu" else "on one GPU: the call is put on the stream of TVMFFIEnvSetStream"
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=directory) as folder:
        library = Path(folder) / f"{name}.so"
        about = (_on_cpu if machine == "cpu" else _on_gpu)(lowered, name, failures, library)
        library.with_suffix(".h").write_text(_header(name, params, where), encoding="utf-8")
        manifest = library.with_suffix(".json")
        manifest.write_text(json.dumps({
            "name": name, "symbol": f"__tvm_ffi_{name}", "library": library.name, "target": lowered.target.name,
            **about, "tilelang": __version__, "parameters": [_entry(p) for p in params]}, indent=1) + "\n",
                            encoding="utf-8")
        # Whole files take the place of older ones, which a program may have loaded; the one that names others is last.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == manifest):
            file.replace(directory / file.name)
    return directory / library.name


def _assertions(lowered: Any, name: str) -> Iterator[str]:
    """What the library says for each assertion of a kernel, in the order of their numbers."""
    for op in lowered.thread.walk():
        if op.name == "assert":
            what = str(op.attrs["message"] or "assertion failed").split("\0")[0]
            yield f"{name}: {what}" + (f" (line {op.loc.line} of {Path(op.loc.file).name})" if op.loc else "")


def _on_cpu(lowered: Any, name: str, failures: Failures, library: Path) -> dict[str, Any]:
    """Writes the library; gives what the manifest says of it."""
    from tilelang.backends.cpu.export import link
    link(lowered, name, failures, library)
    features = lowered.target.attributes.split(",")
    return {"processor": lowered.target.cpu, "features": sorted(f[1:] for f in features if f.startswith("+"))}


def _on_gpu(lowered: Any, name: str, failures: Failures, library: Path) -> dict[str, Any]:
    """The same, and files of machine code: others than the first are for tensors that it does not reach, or cannot
    map, and for grids that are not made of whole clusters."""
    from tilelang.backends.simt.export import link
    from tilelang.backends.simt.start import codes
    link(lowered, name, failures, library)
    files = []
    for which, code in codes(lowered).items():
        file = library.with_name(f"{name}{which and '.'}{which}{lowered.exported.suffix}")
        file.write_bytes(code.product[0])
        files.append({"file": file.name, "kernel": code.rendered.name, "threads": code.rendered.threads,
                      "cluster": code.rendered.cluster, "dynamic_shared_bytes": code.dynamic_shared,
                      "report": code.report})
        if which and _takes(code) != _takes(lowered):
            files[-1]["takes"] = _takes(code)
    return {"code": files, "takes": _takes(lowered)}


def _takes(code: Any) -> list[dict[str, Any]]:
    """The parameters of machine code."""
    maps, params = code.rendered.maps, code.tile.params
    return [{"kind": p.kind, "parameter": params[maps[p.index].index if p.kind == "map" else p.index].name
             if p.kind != "workers" else None, "axis": p.axis,
             **({**asdict(maps[p.index]), "index": p.index} if p.kind == "map" else {})}
            for p in code.rendered.parameters]


def _wanted(p: Value) -> str:
    t = p.type
    if not isinstance(t, TensorType):
        return f"{p.name} {t.dtype}"
    unit = next((i for i, u in enumerate(t.unit) if u), None)
    near = "" if unit is None else f", neighbours along dimension {unit}"
    align = "" if t.align == 1 else f", address, rows and strides multiples of {t.align} bytes"
    return f"{p.name} {t.dtype}[{', '.join(map(str, t.dims))}]{near}{align}"


def _entry(p: Value) -> dict[str, Any]:
    if isinstance(p.type, TileType):
        return {"name": p.name, "kind": "scalar", "dtype": p.type.dtype.name}
    assert isinstance(p.type, TensorType)
    return {"name": p.name, "kind": "packed" if p.type.dtype.packed else "tensor", "dtype": p.type.dtype.name,
            "dims": list(p.type.dims), "mode": p.type.mode, "unit_stride": list(p.type.unit), "align": p.type.align}


def _header(name: str, params: Sequence[Value], where: str) -> str:
    declared, filled = _arguments(params)
    about = "".join(f" *   {_wanted(p)}{_note(p)}\n" for p in params)
    return f"""/* {name}, made by tilelang {__version__}. Link with {name}.so and libtvm_ffi.so.
 *
{about} *
 * Every DLTensor has strides and lies {where}.
 * Gives 0, or -1 after an error; TVMFFIErrorMoveFromRaised tells which.
 */
#ifndef TILELANG_{name}_H
#define TILELANG_{name}_H
#include <string.h>
#include <tvm/ffi/c_api.h>
#ifdef __cplusplus
extern "C" {{
#endif
int __tvm_ffi_{name}(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result);

static inline int {name}({', '.join(declared)}) {{
  TVMFFIAny tl_args[{max(len(filled), 1)}], tl_result;
  memset(tl_args, 0, sizeof tl_args);
  memset(&tl_result, 0, sizeof tl_result);
{chr(10).join(filled)}
  return __tvm_ffi_{name}(0, tl_args, {len(filled)}, &tl_result);
}}
#ifdef __cplusplus
}}
#endif
#endif
"""


def _arguments(params: Sequence[Value]) -> tuple[list[str], list[str]]:
    """How the function for C declares its parameters, and the statements that make arguments of tvm-ffi's of them."""
    from tilelang.backends.clike.rendered import c_name
    declared, filled, taken = list[str](), list[str](), _taken()

    def put(kind: str, field: str, value: str, there: str = "") -> None:
        at, null = f"tl_args[{len(filled)}]", there and " : kTVMFFINone"
        filled.append(f"  {at}.type_index = {there}{kind}{null};\n  {at}.{field} = {there}{value}{there and ' : 0'};")
    for p in params:
        packed = isinstance(p.type, TensorType) and p.type.dtype.packed
        arrays = ("_shape", "_strides") if packed else ()
        known = c_name(p.name)
        while known.startswith(("tl_", "_", "kTVMFFI")) or taken & {known + array for array in ("", *arrays)}:
            known = f"p{known}" if known.startswith(("tl_", "_", "kTVMFFI")) else f"{known}_"
        taken |= {known + array for array in ("", *arrays)}
        if isinstance(p.type, TileType):
            c_type, kind, field = ("double", "kTVMFFIFloat", "v_float64") if p.type.dtype.kind == "float" else \
                ("uint64_t", "kTVMFFIOpaquePtr", "v_uint64") if p.type.dtype.name == "u64" else \
                ("int64_t", "kTVMFFIInt", "v_int64")
            declared.append(f"{c_type} {known}")
            put(kind, field, known)
            continue
        declared.append(f"DLTensor* {known}")
        put("kTVMFFIDLTensorPtr", "v_ptr", known)
        for array in arrays:
            declared.append(f"const int64_t* {known}{array}")
            for axis in range(p.type.rank):
                put("kTVMFFIInt", "v_int64", f"{known}{array}[{axis}]", f"{known}{array} ? ")
    return declared, filled


def _taken() -> set[str]:
    """Names that no function or parameter of a header can have."""
    from tilelang.backends.clike.expressions import RESERVED
    return RESERVED | _OWN


def _note(p: Value) -> str:
    if not isinstance(p.type, TensorType):
        return ""
    packed = ": its bytes (u8, one dimension), extents, and strides in bits" if p.type.dtype.packed else ""
    return packed + {"in": "", "out": " (written)", "inout": " (read and written)"}[p.type.mode]
