"""On which line of a TOML file each key stands: the standard library's parser gives values without places."""

from __future__ import annotations

import re

Key = tuple[str, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"[ \t]*\[\[?[ \t]*({_DOTTED})[ \t]*\]\]?")
_KEY = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'  # a text of several lines may end in quotation marks of its own
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*|[\[{]|[\]}]|\n|[^\"'#\[\]{}\n]+",
    re.DOTALL,
)


def find_lines(text: str) -> dict[Key, int]:
    """Find the line of every table and key of a TOML text.

    Keys inside of a value, as of an inline table, are not listed: their place is that of the value's own key.

    Args:
        text: valid TOML; of another text the places are not to be trusted.
    Returns:
        Full key, as its parts, to the number of its first line, from 1.
    """
    lines: dict[Key, int] = {}
    table: Key = ()
    position, line = 0, 1
    while position < len(text):
        if header := _HEADER.match(text, position):
            table = _parts(header[1])
            lines.setdefault(table, line)
            position = header.end()
        elif key := _KEY.match(text, position):
            lines.setdefault((*table, *_parts(key[1])), line)
            position = key.end()
        end = _end_of_value(text, position)
        line += text.count("\n", position, end)
        position = end
    return lines


def _end_of_value(text: str, position: int) -> int:
    """Where the next line begins that is not part of a list, a table or a text of several lines."""
    depth = 0
    while token := _TOKEN.match(text, position):
        position = token.end()
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
        elif token[0] == "\n" and depth <= 0:
            return position
    return len(text)


def _parts(dotted: str) -> Key:
    parts: list[str] = re.findall(_PART, dotted)
    return tuple(part[1:-1] if part[0] in "\"'" else part for part in parts)
