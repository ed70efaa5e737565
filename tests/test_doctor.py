"""`doctor` tries what it talks of: what is missing or broken comes with what to do."""
from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from types import SimpleNamespace

import pytest

from tilelang import doctor
from tilelang.backends import host
from tilelang.backends.cuda import nvrtc, products
from tilelang.backends.hip import clang, hiprtc
from tilelang.backends.hip.libraries import Library
from tilelang.cli import main
from tilelang.errors import TargetError


def states() -> dict[str, doctor.Finding]:
    return {f.name: f for f in doctor.examine()}


def test_what_works_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    found = states()
    for name in ("package", "CPU kernels", "compile cache", "results of tuning", "PyTorch", "emulator"):
        assert found[name].state == "ok" and not found[name].fix, found[name]
    assert "bit vectors" in found["CPU kernels"].detail
    if nvrtc.find() is not None:
        assert found["compiling for CUDA"].detail.endswith("registers)")
    assert main(["doctor"]) == 0
    assert "ok       CPU kernels: " in capsys.readouterr().out


def test_what_is_missing_comes_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise TargetError("a C++ compiler is needed and none was found")
    monkeypatch.setattr(nvrtc, "_nvrtc", none)
    monkeypatch.setattr(products, "cached", lambda key, make: make())
    monkeypatch.setattr(products, "nvdisasm", lambda: None)
    monkeypatch.setattr(clang, "version", lambda: None)
    monkeypatch.setattr(hiprtc, "supports", lambda arch: False)
    monkeypatch.setattr(host, "compiler", none)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = states()
    for name, fix in (("compiling for CUDA", "[cuda]"), ("reading CUDA machine code", "[cuda]"),
                      ("PyTorch", "[torch]"), ("compiling for HIP", "[hip]"), ("reading HIP machine code", "[hip]"),
                      ("emulator", "g++")):
        assert found[name].state == "missing" and fix in found[name].fix, found[name]
    assert found["CPU kernels"].state == "ok"


def test_what_compiles_for_each_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clang, "version", lambda: "0.17")
    monkeypatch.setattr(hiprtc, "supports", lambda arch: arch != "gfx950")
    monkeypatch.setattr(hiprtc, "find", lambda: Library(ctypes.CDLL(None), "/rocm/libhiprtc.so"))
    compiled: list[str] = []

    def lowered(target: str) -> SimpleNamespace:
        compiled.append(target)
        return SimpleNamespace(report={}, assembly="")
    monkeypatch.setattr(doctor, "_lowered", lowered)
    assert doctor._hip() == "gfx90a, gfx942 by hiprtc of /rocm/libhiprtc.so; gfx950 by clang of ziglang 0.17"
    assert compiled == ["hip:gfx90a", "hip:gfx942", "hip:gfx950"]


def test_what_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_TEXT", doctor._TEXT.replace("add %block, %block", "sub %block, %block"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "broken   CPU kernels: RuntimeError: a small kernel computes something wrong" in out
    assert "broken   package: RuntimeError: another package, tilelang 0.1, has the same import name" in out
