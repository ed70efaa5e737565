"""Opens a page in headless Chromium (PyQt6-WebEngine) at some widths, uses it by pointer and keyboard, and prints a
line of JSON about each; `--pictures` also saves what it looks like:
`python tests/explain/browse.py PAGE.html WIDTH… [--pictures FOLDER]`."""
from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu")

from PyQt6.QtCore import QEventLoop, QTimer, QUrl  # type: ignore[import-not-found]
from PyQt6.QtWebEngineCore import QWebEnginePage  # type: ignore[import-not-found]
from PyQt6.QtWebEngineWidgets import QWebEngineView  # type: ignore[import-not-found]
from PyQt6.QtWidgets import QApplication  # type: ignore[import-not-found]

USE = """(() => {
const marked = () => document.querySelectorAll(".on").length;
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const out = {}, lines = [...document.querySelectorAll("#source [data-p]")];
const dot = lines.find((line) => line.textContent.includes("tile.dot"));
dot.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
out.hovered = marked();
document.querySelectorAll("#tabs button")[4].click();
dot.click();
out.clicked = marked();
document.getElementById("source").focus();
press("ArrowDown");
out.line = document.activeElement.textContent;
out.marked = document.activeElement.classList.contains("on");
dot.focus();
press("ArrowUp");
press("ArrowDown");
document.querySelectorAll("#tabs button")[4].focus();
press("ArrowRight");
out.level = document.activeElement.textContent;
out.kept = marked() > 1;
document.querySelectorAll("details").forEach((node) => { node.open = node.dataset.picture < 3; });
return JSON.stringify(out); })()"""
LOOK = """JSON.stringify({
  width: document.documentElement.clientWidth,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  height: document.documentElement.scrollHeight,
  tabs: document.querySelectorAll("#tabs button").length,
  banks: document.querySelectorAll(".banks").length,
  drawn: document.querySelectorAll("canvas").length})"""


class Page(QWebEnginePage):  # type: ignore[misc]
    """A page that keeps what its scripts complain of."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def javaScriptConsoleMessage(self, level: object, message: str, line: int, source: str) -> None:
        self.errors.append(f"{line}: {message}")


def wait(milliseconds: int) -> None:
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def ask(page: Page, script: str) -> dict[str, object]:
    loop, found = QEventLoop(), list[str]()
    page.runJavaScript(script, lambda text: (found.append(text), loop.quit()))
    loop.exec()
    return dict(json.loads(found[0]))


def main(file: Path, widths: list[int], pictures: Path | None) -> None:
    app = QApplication(["browse"])
    view = QWebEngineView()
    page = Page()
    view.setPage(page)
    page.settings().setAttribute(page.settings().WebAttribute.ShowScrollBars, False)
    view.show()
    for width in widths:
        view.resize(width, 900)
        loop = QEventLoop()
        view.loadFinished.connect(loop.quit)
        view.load(QUrl.fromLocalFile(str(file.resolve())))
        loop.exec()
        seen = ask(page, USE)
        wait(300)
        seen |= ask(page, LOOK)
        if pictures is not None:
            view.resize(width, min(int(str(seen["height"])), 9000))
            wait(2000)
            view.grab().save(str(pictures / f"{file.stem}-{width}.png"))
        print(json.dumps({**seen, "errors": page.errors}), flush=True)
    view.setPage(None)
    app.quit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("widths", type=int, nargs="+")
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    main(given.file, given.widths, given.pictures)
