"""What differs on AMD's GPUs from tests/backends/simt/test_launch.py: the compiler on the spot, and names."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.backends.cuda.test_launch import big_fn
from tests.backends.simt.fake import REGISTERS, FakeDriver, on_device
from tests.backends.simt.test_launch import scale_fn
from tilelang import errors
from tilelang.backends.hip import clang, code_object, driver, hiprtc, libraries, products
from tilelang.jit import Kernel

TEXT = "TL_KERNEL(k, 64)() {}"
ONES = np.ones((4, 4), np.float32)


def test_a_call_compiles_with_the_options_of_clang(amd: FakeDriver) -> None:
    with tile.target("hip"):
        Kernel(scale_fn)(ONES, by=2.0, add=1)
    options = amd.library.fake_options().decode().split()
    assert "--offload-arch=gfx942" in options and set(clang.MEANING) <= set(options)
    assert f"-I{clang.INCLUDE}" in options and amd.launches[0].text.startswith("// scale_fn for hip:gfx942")


def test_code_objects_are_cached_by_all_they_depend_on(amd: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(text: str = TEXT, arch: str = "gfx942") -> int:
        code, uses = products.product(text, "k", arch)
        assert code[:4] == b"\x7fELF" and uses["registers"] == REGISTERS and uses["scalar_registers"] == 20
        return amd.library.fake_compiled()
    other = "TL_KERNEL(k, 128)() {}"
    assert [make(), make(), make(arch="gfx90a"), make(arch="gfx90a"), make(other)] == [1, 1, 2, 2, 3]
    for version in ("of another version", "of yet another"):
        monkeypatch.setattr(hiprtc, "version", lambda version=version: version)
        before = amd.library.fake_compiled()
        assert [make(), make()] == [before + 1] * 2


def test_a_refused_text_shows_what_the_compiler_says(amd: FakeDriver) -> None:
    with pytest.raises(errors.TargetError, match=r"hiprtc refused .* gfx942(.|\n)*unknown type name 'nonsense'"):
        hiprtc.compile("\nnonsense", "gfx942")
    amd.fail("hiprtcCreateProgram", 2)
    with pytest.raises(errors.TargetError, match="hiprtcCreateProgram failed(.|\n)*what the compiler says"):
        hiprtc.compile("", "gfx942")


def test_processors_that_hiprtc_does_not_know_go_to_clang(amd: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hiprtc, "architectures", lambda: frozenset({"gfx90a", "gfx942"}))
    monkeypatch.setattr(clang, "version", lambda: None)
    products.product("TL_KERNEL(k, 64)() {}", "k", "gfx942")
    with pytest.raises(errors.TargetError, match="a ROCm that knows the processor(.|\n)*pip install ziglang"):
        products.product("TL_KERNEL(k, 64)() {}", "k", "gfx950")


def test_shared_memory_belongs_to_the_code(amd: FakeDriver) -> None:
    x = np.arange(256, dtype=np.float32)
    with tile.target("hip"):
        np.testing.assert_array_equal(Kernel(big_fn)(x), x[::-1])
    (launch,) = amd.launches
    assert launch.shared == 0 and "TL_SHARED(smem, 65536)" in launch.text


@pytest.mark.parametrize(("function", "code", "texts"), [
    ("hipModuleLaunchKernel", 700, ["hipModuleLaunchKernel failed", "hipErrorIllegalAddress: what the driver says"]),
    ("hipModuleLoadData", 209, ["hipModuleLoadData failed", "error 209", "TILELANG_TARGET=hip"]),
    ("hipMalloc", 2, ["hipMalloc failed", "free memory"]),
    ("hipInit", 100, ["hipInit failed", "AMD GPU"]),
])
def test_error_codes_are_said_in_words(amd: FakeDriver, function: str, code: int, texts: list[str]) -> None:
    amd.fail(function, code)
    with pytest.raises(errors.TargetError) as caught, tile.target("hip"):
        Kernel(scale_fn)(ONES, by=2.0, add=1)
    assert all(text in str(caught.value) for text in texts)


@pytest.mark.parametrize(("arch", "runs", "not_runs"), [
    ("gfx942:sramecc+:xnack-", ["hip", "hip:gfx942"], ["hip:gfx90a", "hip:gfx950"]),
    ("gfx90a", ["hip", "hip:gfx90a"], ["hip:gfx942"]), ("gfx1100", [], ["hip", "hip:gfx942"]),
    ("", [], ["hip", "hip:gfx942"])])
def test_a_device_runs_its_own_processor(amd: FakeDriver, arch: str, runs: list[str], not_runs: list[str]) -> None:
    amd.library.fake_device(0, 0, arch.encode())
    for name in runs:
        with tile.target(name):
            Kernel(scale_fn)(ONES, by=2.0, add=1)
    assert len(amd.launches) == len(runs)
    for name in not_runs:
        with pytest.raises(errors.TargetError, match="cannot run|not supported"), tile.target(name):
            pass


def test_a_device_that_is_not_there_is_named(amd: FakeDriver) -> None:
    with pytest.raises(errors.TargetError, match="hipGetDevicePropertiesR0600 failed"):
        Kernel(scale_fn)(on_device(torch.zeros(4, 4), 2), on_device(torch.zeros(4, 4), 2), 1.0, 0)


def test_no_runtime_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "candidates", lambda name: [f"no-such-{name}"])
    driver.driver.cache_clear()
    for name in ("hip", "hip:gfx942"):
        with pytest.raises(errors.TargetError, match="HIP runtime") as caught, tile.target(name):
            pass
        assert "emulate:hip:gfx942" in str(caught.value)


def test_libraries_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rocm, torch_lib = tmp_path / "rocm" / "lib", tmp_path / "torch" / "lib"
    for folder, names in ((rocm, ["libx.so", "libx.so.6", "libx.so.7", "libxy.so"]), (torch_lib, ["libx.so"])):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    monkeypatch.setattr(libraries, "mapped", lambda name: ["/mapped/libx.so.6.4"])
    monkeypatch.setenv("ROCM_PATH", str(rocm.parent))
    places = list(libraries.folders())
    assert places[-2:] == [rocm, Path("/opt/rocm/lib")] and all(p.name == "lib" for p in places)
    monkeypatch.setattr(libraries, "folders", lambda: [torch_lib, rocm])
    assert list(libraries.candidates("libx.so")) == [
        "/mapped/libx.so.6.4", str(torch_lib / "libx.so"), str(rocm / "libx.so"), str(rocm / "libx.so.7"),
        str(rocm / "libx.so.6"), *(f"libx.so{v}" for v in libraries.VERSIONS)]
    assert libraries.load("libx.so", "f") is None  # empty files are no libraries


def test_a_mapped_library_is_found_under_its_own_path() -> None:
    paths = libraries.mapped("libc.so")
    assert len(paths) == 1 and Path(paths[0]).name.startswith("libc.so")
    found = libraries.load("libc.so", "strlen")
    assert found is not None and found.path == paths[0] and found.identity.startswith(found.path + " ")
    assert libraries.load("libc.so", "no_such_function") is None


@pytest.mark.parametrize("code", [b"", b"\x7fELF", b"__CLANG_OFFLOAD_BUNDLE__".ljust(200, b"\0"),
                                  b"\x7fELF\x02\x01".ljust(200, b"\0")])
def test_bytes_that_are_no_code_object_are_refused(code: bytes) -> None:
    with pytest.raises(errors.TargetError, match="no code object"):
        code_object.uses(code)


REAL = """
import sys
import numpy as np
from tests.backends.hip import test_clang
from tilelang.backends.hip import code_object, hiprtc
if hiprtc.find() is None:
    sys.exit("no hiprtc was found")
if not hiprtc.supports("gfx90a"):
    sys.exit("hiprtc does not know gfx90a")
text = test_clang.every_wrapper("gfx90a")
assert len(code_object.uses(hiprtc.compile(text, "gfx90a"))) == text.count("TL_KERNEL")
lowered = test_clang.matmul("gfx90a")
report = lowered.report
assert lowered.code_object[:4] == b"\\x7fELF" and b"gfx90a" in lowered.code_object
assert report["shared_bytes"] == lowered.rendered.shared_bytes > 0 and report["registers"] > 32
hiprtc.find.cache_clear()
hiprtc.compile = None
assert test_clang.matmul("gfx90a").report == report  # from the cache
try:
    hiprtc.supports("gfx000") and sys.exit("hiprtc claims to know gfx000")
finally:
    print("compiled by", hiprtc.version())
"""


def test_the_real_compiler_where_there_is_one(tmp_path: Path) -> None:
    """In a process of its own: versions of LLVM in one process may collide."""
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True,
                          env={**os.environ, "TILELANG_CACHE_DIR": str(tmp_path)})
    if done.returncode == 1 and done.stderr.startswith(("no hiprtc", "hiprtc does not know")):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0 and "compiled by hiprtc" in done.stdout, done.stderr
