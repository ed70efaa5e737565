"""Lines of the user's source in LLVM IR, for who reads what becomes of them: the code itself stays the same."""
from __future__ import annotations

from pathlib import PurePath
from typing import Any

from llvmlite import ir

from tilelang.errors import Loc


class Lines:
    """The debug information of one function of a module."""

    def __init__(self, module: ir.Module, function: ir.Function, loc: Loc) -> None:
        self.module = module
        self._files: dict[str, Any] = {}
        file = self._file(loc.file)
        unit = module.add_debug_info("DICompileUnit", {
            "language": ir.DIToken("DW_LANG_Python"), "file": file, "producer": "tilelang", "isOptimized": True,
            "runtimeVersion": 0, "emissionKind": ir.DIToken("LineTablesOnly")}, is_distinct=True)
        self._program = module.add_debug_info("DISubprogram", {
            "name": function.name, "file": file, "line": loc.line, "unit": unit,
            "type": module.add_debug_info("DISubroutineType", {"types": module.add_metadata([None])}),
            "spFlags": ir.DIToken("DISPFlagDefinition")}, is_distinct=True)
        function.set_metadata("dbg", self._program)
        module.add_named_metadata("llvm.dbg.cu", unit)
        flag = [ir.IntType(32)(2), "Debug Info Version", ir.IntType(32)(3)]
        module.add_named_metadata("llvm.module.flags", module.add_metadata(flag))

    def _file(self, name: str) -> Any:
        path = PurePath(name)
        return self._files.setdefault(name, self.module.add_debug_info(
            "DIFile", {"filename": path.name, "directory": str(path.parent)}))

    def at(self, loc: Loc) -> Any:
        """What an instruction of this line carries."""
        scope = self.module.add_debug_info("DILexicalBlockFile", {
            "scope": self._program, "file": self._file(loc.file), "discriminator": 0})
        return self.module.add_debug_info("DILocation", {"line": loc.line, "column": 1, "scope": scope})
