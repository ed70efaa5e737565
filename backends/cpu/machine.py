"""The host processor, and machine code for it: LLVM IR to object code to callable addresses."""
from __future__ import annotations

import itertools
import os
from collections.abc import Set
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from tilelang import locks
from tilelang.backends.cpu import dots
from tilelang.ir.core import Op, TensorType
from tilelang.ir.shape import Const

OPT_LEVEL = 3
LINE = 64
"""Bytes of a cache line."""
_USUAL_CACHE = 32 << 20
_SLOW_PAIRS = {"sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d"}
"""LLVM's names of processors whose `vdpbf16ps` multiplies half as much in a cycle as their products of f32 do."""


@dataclass(frozen=True)
class CpuTarget:
    """A processor to generate code for. `features` are the names `dots.ROWS` asks for."""

    name: str
    cpu: str
    attributes: str
    triple: str
    data_layout: str
    vector_bytes: int
    registers: int
    features: frozenset[str]
    cache_bytes: int
    native_casts: frozenset[tuple[str, str]] = frozenset()
    """See `tilelang.passes.expand_casts`."""

    def __str__(self) -> str:
        return self.name

    @property
    def register_table(self) -> int:
        """Entries of a table of f32 that AVX-512 looks up in registers."""
        return 64 if self.vector_bytes == 64 else 0

    @property
    def by_half(self) -> bool:
        """See `tilelang.passes.expand_casts`."""
        return ("f16", "f32") in self.native_casts

    def performs(self, op: Op) -> bool:
        """Whether an operation that `decompose` would expand is done as it is: bytes are looked up in registers, pairs
        of bf16 have an instruction, packed rows are expanded by permutations of registers where they are read from
        their beginning on, and `dot` packs its operands, which a product of few rows is not worth."""
        if op.name == "dot":
            return not dots.few_rows(op, self)
        if op.name == "expand_load":
            memory, axis = op.operands[0].type, op.attrs["axes"][-1]
            first = op.operands[1 + axis].owner
            along = isinstance(memory, TensorType) and memory.unit[axis:axis + 1] == (True,) \
                and memory.dtype.bits in (8, 16, 32)
            return "avx2" in self.features and along and isinstance(first, Const) and first.attrs["value"] >= 0
        return {"lookup4": "avx2", "dot2": "bf16"}.get(op.name) in self.features

    @property
    def fused(self) -> bool:
        """Whether a * b + c is one instruction."""
        return "avx2" in self.features or not self.triple.startswith("x86")

    @property
    def key(self) -> str:
        """Everything that can change the generated code."""
        parts = [sorted(x) if isinstance(x, frozenset) else x for x in (getattr(self, f.name) for f in fields(self))]
        return "|".join(map(str, [*parts, llvm.llvm_version_info, llvmlite.__version__]))


@lru_cache(maxsize=1)
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@cache
def host() -> CpuTarget:
    """The processor this process runs on."""
    _initialise()
    features = llvm.get_host_cpu_features()
    return processor(llvm.get_host_cpu_name(), features.flatten(), {name for name, on in features.items() if on})


def processor(cpu: str, attributes: str, have: Set[str]) -> CpuTarget:
    """One of this machine's architecture, by LLVM's names for it and for what it has."""
    machine = _machine(cpu, attributes)
    arm = machine.triple.startswith(("aarch64", "arm64"))
    names: set[str] = set()
    vector_bytes, registers = 16, 32 if arm else 16
    if {"avx2", "fma"} <= have:
        vector_bytes = 32
        names.add("avx2")
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= have:
        vector_bytes, registers = 64, 32
        names |= {name for name in ("vnni", "vbmi", "bf16") if f"avx512{name}" in have}
        if cpu in _SLOW_PAIRS:
            names -= {"bf16"}
    elif {"avx2", "fma", "avxvnni"} <= have:
        names.add("vnni")
    half = {("f16", "f32"), ("f32", "f16")} if "f16c" in have or arm else ()  # from f64 LLVM calls a library
    return CpuTarget("cpu", cpu, attributes, machine.triple, str(machine.target_data), vector_bytes, registers,
                     frozenset(names), _cache_bytes(), frozenset(half))


def _cache_bytes() -> int:
    """Size of the last-level cache; a common one where the system does not say."""
    try:
        return max(os.sysconf("SC_LEVEL3_CACHE_SIZE"), os.sysconf("SC_LEVEL2_CACHE_SIZE")) or _USUAL_CACHE
    except (AttributeError, OSError, ValueError):
        return _USUAL_CACHE


@cache
def _machine(cpu: str, attributes: str) -> Any:
    _initialise()
    # Wide vectors are what the code generator asks for; the processor's own preference is for scalar code.
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=attributes + (",-prefer-256-bit" if "+avx512f" in attributes else ""), opt=OPT_LEVEL,
        reloc="pic", codemodel="default", jit=False)


def optimise(text: str, target: CpuTarget) -> Any:
    """A parsed, verified and optimised module."""
    with locks.compiling:
        machine = _machine(target.cpu, target.attributes)
        module = llvm.parse_assembly(text)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=OPT_LEVEL)
        options.loop_vectorization = options.slp_vectorization = False  # the code is vectors already
        options.loop_unrolling = True
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        return module


def object_code(text: str, target: CpuTarget) -> bytes:
    """Relocatable object code of LLVM IR."""
    with locks.compiling:
        return bytes(_machine(target.cpu, target.attributes).emit_object(optimise(text, target)))


def assembly(text: str, target: CpuTarget) -> str:
    """Assembly of LLVM IR."""
    with locks.compiling:
        return str(_machine(target.cpu, target.attributes).emit_assembly(optimise(text, target)))


class Loaded:
    """Object code in memory; keeps it alive. `functions` are those that will be asked for.

    LLVM's JITLink puts code and constants into one block. MCJIT maps each section by itself, and ends the process
    where two come to lie 2 GB apart, with CUDA's libraries between them, say."""

    _count = itertools.count()

    def __init__(self, code: bytes, *functions: str) -> None:
        with locks.compiling:
            builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
            for name, address in _defined.items():
                if name not in functions:  # the pool's own, when Ctrl-C has kept its first start from its end
                    builder.import_symbol(name, address)
            for name in functions:
                builder.export_symbol(name)
            self._linked = builder.link(_linker(), f"tilelang-{next(self._count)}")

    def address(self, function: str) -> int:
        """Address of one of the `functions`."""
        return int(self._linked[function])


_defined: dict[str, int] = {}


def define(name: str, address: int) -> None:
    """Makes an address known to code that is loaded from now on."""
    _defined[name] = address


@cache
def _linker() -> Any:
    _initialise()
    return llvm.create_lljit_compiler(llvm.Target.from_default_triple().create_target_machine(jit=True),
                                      use_jit_link=True)
