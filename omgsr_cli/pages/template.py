"""Pages of one file that open from the disk: templates, and texts of other people's that are harmless in them."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable


def fill_page(folder: Traversable, template: str, **parts: str) -> str:
    """Put parts into a page's template, in one pass, so that what a part holds is never taken for a place.

    Args:
        folder: of the template and its files.
        template: name of the file. `{{name}}` is the place of a part; `{{head.html}}`, `{{common.css}}` and
            `{{theme.js}}` those of what all pages have, `{{NAME.css}}` and `{{NAME.js}}` those of files beside the
            template.
        parts: HTML by the name of its place.
    """

    def part(place: re.Match[str]) -> str:
        name = place[1]
        if name in _COMMON:
            return (resources.files("omgsr_cli") / "pages" / _COMMON[name]).read_text("utf-8")
        return (folder / name).read_text("utf-8") if name.endswith((".css", ".js")) else parts[name]

    return re.sub(r"\{\{([\w.]+)\}\}", part, (folder / template).read_text("utf-8"))


def escape(text: object) -> str:
    """A text as it can stand in a page, in an element and in an attribute."""
    return html.escape(printable(text))


def printable(text: object) -> str:
    """A text as it can stand in UTF-8: bytes that are no text, and control characters, are escaped."""
    whole = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in whole)


def data_address(kind: str, content: bytes) -> str:
    """The address that holds a file's content in itself; `kind` is such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def definitions(pairs: Iterable[tuple[object, object]]) -> str:
    """Names and what they stand for, for a `<dl>`."""
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)


_COMMON = {"head.html": "head.html", "common.css": "style.css", "theme.js": "theme.js"}
