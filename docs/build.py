"""Adds pages that are made when the site is built (a hook of MkDocs): what they show changes with the compiler, and
with each measurement."""
from __future__ import annotations

from typing import Any

import build_benchmarks
import build_passes


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages to those in the folder."""
    from mkdocs.structure.files import File
    for name, text in {**build_passes.pages(), **build_benchmarks.pages()}.items():
        files.append(File.generated(config, name, content=text))
    return files
