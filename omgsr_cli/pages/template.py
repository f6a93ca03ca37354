"""HTML reports in a single file: fill templates and escape untrusted text."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable


def fill_page(folder: Traversable, template: str, **parts: str) -> str:
    """Fill a page's template in one pass, so that placeholders within a part stay unchanged.

    Args:
        folder: folder of the template and its files.
        template: name of the template. `{{name}}` is the placeholder of a part; `{{head.html}}`, `{{common.css}}`,
            `{{theme.js}}`, `{{viewer.css}}` and `{{viewer.js}}` insert the common files, and `{{NAME.css}}` and
            `{{NAME.js}}` insert files beside the template.
        parts: HTML by placeholder name.
    """

    def part(place: re.Match[str]) -> str:
        name = place[1]
        if name in _COMMON:
            return (resources.files("omgsr_cli") / "pages" / _COMMON[name]).read_text("utf-8")
        return (folder / name).read_text("utf-8") if name.endswith((".css", ".js")) else parts[name]

    return re.sub(r"\{\{([\w.]+)\}\}", part, (folder / template).read_text("utf-8"))


def escape(text: object) -> str:
    """Escape a text for HTML elements and attributes."""
    return html.escape(printable(text))


def printable(text: object) -> str:
    """Return a text as valid UTF-8, with undecodable bytes and control characters escaped."""
    whole = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in whole)


def data_address(kind: str, content: bytes) -> str:
    """Return the data URL of a file's content; `kind` is a MIME type such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def definitions(pairs: Iterable[tuple[object, object]]) -> str:
    """Return names and values as the content of a `<dl>`."""
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)


_COMMON = {"common.css": "style.css"} | {name: name for name in ("head.html", "theme.js", "viewer.css", "viewer.js")}
