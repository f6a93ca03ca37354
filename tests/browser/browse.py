"""Open a page in headless Chromium (QtWebEngine), press its keys, take images of it: `browse.py PAGE FOLDER`.

Prints one JSON object of answers. It runs in a Python that has PySide6, which need not be that of the tests.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu")
os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")

from PySide6.QtCore import QEventLoop, QTimer, QUrl
from PySide6.QtWebEngineCore import QWebEnginePage
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

PRESS = "document.dispatchEvent(new KeyboardEvent('keydown', {key: %r, code: %r, shiftKey: %s, bubbles: true}))"
CHOSEN = "document.getElementById(%r).value"
COUNT = "document.querySelectorAll('#strip img%s').length"
WIDER = (
    "JSON.stringify([...document.querySelectorAll('main *')].filter((each) => each.id !== 'sheet'"
    " && !each.closest('#sheet, #strip, dl') && each.getBoundingClientRect().right > innerWidth + 1)"
    ".map((each) => each.outerHTML.slice(0, 80)))"
)
BOX = (
    "(() => { const box = document.getElementById('sheet').getBoundingClientRect();"
    " return JSON.stringify([box.x, box.y, box.width, box.height]); })()"
)


class Page(QWebEnginePage):
    """A page that keeps its console messages."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:  # noqa: N802 - Qt's
        self.said.append(f"{line}: {message}")


def wait(milliseconds: int) -> None:
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def ask(page: Page, script: str) -> Any:
    loop, answers = QEventLoop(), []

    def take(answer: Any) -> None:
        answers.append(answer)
        loop.quit()

    page.runJavaScript(script, 0, take)
    QTimer.singleShot(10_000, loop.quit)
    loop.exec()
    return answers[0] if answers else None


def press(page: Page, key: str, code: str = "", shift: bool = False) -> None:
    ask(page, PRESS % (key, code, "true" if shift else "false"))
    wait(300)


def main() -> None:
    source, folder = sys.argv[1:3]
    application = QApplication([])
    view, page, loaded = QWebEngineView(), Page(), []
    view.setPage(page)
    view.resize(1200, 1800)
    loop = QEventLoop()
    page.loadFinished.connect(lambda ok: (loaded.append(ok), loop.quit()))
    page.load(QUrl.fromLocalFile(os.path.abspath(source)))
    view.show()
    QTimer.singleShot(60_000, loop.quit)
    loop.exec()
    wait(1500)
    answers: dict[str, Any] = {"loaded": loaded == [True], "box": json.loads(ask(page, BOX))}
    answers["thumbnails"], answers["thumbnails with an image"] = ask(page, COUNT % ""), ask(page, COUNT % "[src]")
    view.grab().save(os.path.join(folder, "middle.png"))
    press(page, "End")
    view.grab().save(os.path.join(folder, "full.png"))
    press(page, "Home")
    for name, key, code, shift, element in (
        ("after n", "n", "", False, "image"),
        ("after 3", "3", "Digit3", False, "left"),
        ("after shift 4", "4", "Digit4", True, "right"),
        ("after s", "s", "", False, "left"),
    ):
        press(page, key, code, shift)
        answers[name] = ask(page, CHOSEN % element)
    for name, key in (("after +", "+"), ("after 0", "0")):
        press(page, key)
        answers[name] = ask(page, "document.getElementById('zoom').textContent")
    press(page, "ArrowRight")
    answers["after →"] = ask(page, "document.getElementById('boundary').textContent")
    view.resize(500, 900)
    wait(500)
    answers["wider than 500 px"] = ask(page, WIDER)
    view.grab().save(os.path.join(folder, "narrow.png"))
    ask(page, "document.getElementById('theme').click()")
    wait(500)
    view.grab().save(os.path.join(folder, "other.png"))
    answers["console"] = page.said
    print(json.dumps(answers), flush=True)
    del view
    application.quit()


if __name__ == "__main__":
    main()
