"""Who may import whom, and how long a file may be."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("layouts", "backends", "ops", "tilelang")
FILES = [p for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py")) if not any(q.is_symlink() for q in p.parents)]
SOURCES = [p for f in ("backends", "tests") for p in sorted((ROOT / f).rglob("*")) if p.suffix in (".c", ".cpp", ".h")]
ALLOWED = {  # package: what it may import of ours, besides itself
    "layouts": (),
    "tilelang.errors": (), "tilelang.version": (), "tilelang.locks": (), "tilelang.config": ("tilelang.errors",),
    "tilelang.ir": ("tilelang.layouts", "tilelang.errors"),
    "tilelang.passes": ("tilelang.ir", "tilelang.errors", "tilelang.config", "tilelang.layouts"),
    "tilelang.lang": ("tilelang.ir", "tilelang.errors", "tilelang.layouts"),
    "tilelang.quant": ("tilelang.ir", "tilelang.errors", "tilelang.args"),
    "backends": ("tilelang.ir", "tilelang.passes", "tilelang.errors", "tilelang.config", "tilelang.layouts",
                 "tilelang.cache", "tilelang.locks"),
    "ops": ("tilelang",),
}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> list[str]:
    out = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            out += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            out += [f"{node.module}.{a.name}" for a in node.names]
    return [name for name in out if name.split(".")[0] in FOLDERS]


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_imports_follow_the_arrows(path: Path) -> None:
    module = _module(path)
    for package, allowed in ALLOWED.items():
        if module == package or module.startswith(package + "."):
            own = package if package.startswith("tilelang") else f"tilelang.{package}"
            for name in _imports(path):
                assert any(name == a or name.startswith(a + ".") for a in (own, *allowed)), f"{module} imports {name}"
                if package == "ops":
                    assert not name.startswith("tilelang.backends"), f"{module} imports a backend"


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *SOURCES],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 500
    assert max(map(len, lines), default=0) < 120


@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_a_backend_says_what_each_module_is_for(backend: str) -> None:
    folder = ROOT / "backends" / backend
    named = set(re.findall(r"`(\w+)`", (folder / "__init__.py").read_text(encoding="utf-8")))
    assert named == {p.stem for p in folder.glob("[!_]*.py")}


def test_the_links_are_relative() -> None:
    for name in ("layouts", "backends", "ops"):
        assert (ROOT / "tilelang" / name).readlink() == Path("..") / name


def test_importing_is_light() -> None:
    """What takes long to import is imported by who needs it."""
    found = subprocess.run([sys.executable, "-c", "import sys, tilelang; print(*sys.modules)"], check=True, text=True,
                           capture_output=True).stdout.split()
    heavy = {"llvmlite", "lark", "torch", "tvm_ffi", "rich", "platformdirs", "sqlite3", "numpy.ma",
             "tilelang.backends", "tilelang.quant", "tilelang.torch_ops", "tilelang.tuning", "tilelang.explain"}
    assert heavy.isdisjoint(found) and "tilelang.jit" in found
