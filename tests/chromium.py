"""Drive headless Chromium over its debugging pipe, without other packages."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "microsoft-edge")
BROWSER = os.environ.get("OMGSR_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)
needs_browser = pytest.mark.skipif(
    not BROWSER, reason="no browser: install chromium, or set OMGSR_BROWSER to the program"
)
TOO_WIDE = (
    "[...document.querySelectorAll('body *')].filter((each) => !each.closest('.viewer, [role=listbox], dl')"
    " && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 80))"
)
"""The elements beyond the right edge of the window."""

_PATIENCE_S = 60
_CODES = {" ": "Space", "Escape": "Escape", "?": "Slash", "+": "Equal", "-": "Minus"}


class Chromium:
    """One tab of a headless browser.

    Attributes:
        requests: URLs that pages asked for.
        messages: texts of the console, exceptions and failed loads.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        theirs_in, self._in = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in os.pipe())
        self._out, theirs_out = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in os.pipe())

        def give_pipes() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += [f"--user-data-dir={folder / 'profile'}", "--disable-background-networking", "--mute-audio"]
        # `preexec_fn` runs before the other files are closed.
        self._program = subprocess.Popen(
            [str(BROWSER), *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=give_pipes,
            pass_fds=(3, 4),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._held, self._session = 0, b"", ""
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._session = ""
        try:
            # Its other processes end too.
            self.call("Browser.close")
        except (AssertionError, OSError):
            self._program.terminate()
        self._program.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def open(self, page: Path) -> None:
        """Load a page of this machine, and wait until it has loaded."""
        self._loaded = False
        self.call("Page.navigate", url=page.resolve().as_uri())
        until = time.monotonic() + _PATIENCE_S
        while not self._loaded and time.monotonic() < until:
            self._receive()
        self.settle()

    def show(self, width: int, height: int, theme: str = "light") -> None:
        """Set the size of the window and the colour scheme of the system."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.settle()

    def ask(self, script: str) -> Any:
        """Return the value of an expression, after its promise if it is one."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until images are decoded and the page is painted."""
        self.ask(
            "(async () => {"
            " const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
            " await frame(); await frame();"
            " while (document.querySelector('[aria-busy]')) await frame();"
            " await Promise.allSettled([...document.images].filter((i) => i.src).map((i) => i.decode()));"
            " await frame(); })()"
        )

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys such as "n", "+" or "ArrowLeft", one after the other."""
        for key in keys:
            code = (
                f"Digit{key}"
                if key.isdigit()
                else _CODES.get(key) or (f"Key{key.upper()}" if key.isalpha() and len(key) == 1 else key)
            )
            common = {"key": key, "code": code, "modifiers": 8 if shift else 0}
            common |= {"windowsVirtualKeyCode": 27} if key == "Escape" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float], *, ctrl: bool = False) -> None:
        """Press the mouse at a point, move it, and release it."""
        common = {"button": "left", "clickCount": 1, "modifiers": 2 if ctrl else 0}
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, buttons=1, **common)
        self.settle()

    def screenshot(self, path: Path) -> Path:
        """Write the visible part of the page as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            assert select.select([self._out], [], [], _PATIENCE_S)[0], "the browser does not answer"
            part = os.read(self._out, 1 << 16)
            assert part, "the browser has ended"
            self._held += part
        text, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.messages.append(str([each.get("value") for each in params["args"]]))
            case "Runtime.exceptionThrown":
                self.messages.append(str(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.messages.append(params["entry"]["text"] + params["entry"].get("url", ""))
        return message
