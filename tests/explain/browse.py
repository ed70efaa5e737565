"""Opens a page in headless Chromium (PyQt6-WebEngine), uses it, and prints what it then looks like; with a third
argument it also saves a picture: `python tests/explain/browse.py PAGE.html WIDTH [PICTURE.png]`."""
from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu")

from PyQt6.QtCore import QTimer, QUrl  # type: ignore[import-not-found]
from PyQt6.QtWebEngineWidgets import QWebEngineView  # type: ignore[import-not-found]
from PyQt6.QtWidgets import QApplication  # type: ignore[import-not-found]

USE = """
const tabs = document.querySelectorAll("#tabs button");
tabs[tabs.length - 1].click();
const lines = [...document.querySelectorAll("#source [data-p]")];
lines.find((line) => line.textContent.includes("tile.dot")).click();
document.querySelectorAll("details[data-picture]").forEach((node) => { node.open = true; });
"""
LOOK = """JSON.stringify({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  tabs: document.querySelectorAll("#tabs button").length,
  marked: document.querySelectorAll(".on").length,
  drawn: document.querySelectorAll("canvas").length})"""


def main(page: str, width: int, picture: str | None) -> None:
    app = QApplication(sys.argv[:1])
    view = QWebEngineView()
    view.resize(width, 1600)
    view.show()

    def looked(found: str) -> None:
        if picture is not None:
            view.grab().save(picture)
        print(found, flush=True)
        app.quit()

    def loaded(good: bool) -> None:
        view.page().runJavaScript(USE)
        QTimer.singleShot(1500, lambda: view.page().runJavaScript(LOOK, looked))
    view.loadFinished.connect(loaded)
    view.load(QUrl.fromLocalFile(str(Path(page).resolve())))
    app.exec()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
