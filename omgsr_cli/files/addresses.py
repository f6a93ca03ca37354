"""Locations of files: a `Path` on this machine, or an `Address` on network storage."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(?<=\?)[^\s\"'<>]+")

# Schemes in which a question mark ends the name; the rest often contains a signature.
_WITH_QUERY = ("http", "https")


@dataclass(frozen=True, repr=False)
class Address:
    """A file or folder on storage that fsspec supports, such as s3://bucket/a.png, with an interface like `Path`.

    Its text is for messages and reports and does not contain a password or signature of the URL.

    Attributes:
        url: the complete URL, with secrets; not for messages.
    """

    url: str

    def __str__(self) -> str:
        return redact(self.url)

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    @property
    def scheme(self) -> str:
        """The kind of storage in lower case: s3, gs, hf, memory, ..."""
        return self.url.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part; empty for a whole bucket."""
        _, slash, name = self.place.rpartition("/")
        return name if slash else ""

    @property
    def suffix(self) -> str:
        """As of `Path`."""
        return PurePath(self.name).suffix

    @property
    def stem(self) -> str:
        """As of `Path`."""
        return PurePath(self.name).stem

    @property
    def parent(self) -> Address:
        """The folder that contains it; a bucket is its own parent."""
        folder, slash, _ = self.place.rpartition("/")
        return Address(f"{self._start}{folder}") if slash else self

    def __truediv__(self, below: str | PurePath) -> Address:
        text = below if isinstance(below, str) else below.as_posix()
        return self if text in ("", ".") else Address(f"{self._start}{self.place.rstrip('/')}/{text}")

    def with_name(self, name: str) -> Address:
        """As of `Path`."""
        return self.parent / name

    def is_relative_to(self, other: Address) -> bool:
        """Whether it is the other or below it."""
        return f"{self._start}{self.place}/".startswith(f"{other._start}{other.place.rstrip('/')}/")

    def relative_to(self, other: Address) -> PurePosixPath:
        """The path below a folder that contains it."""
        return PurePosixPath(self.place.removeprefix(f"{other.place.rstrip('/')}/"))

    @property
    def _start(self) -> str:
        return self.url[: self.url.index("://") + 3]

    @property
    def place(self) -> str:
        """Bucket and key, without the query of a web URL."""
        place = self.url[self.url.index("://") + 3 :]
        return place.partition("?")[0] if self.scheme in _WITH_QUERY else place


Location = Path | Address


def is_url(text: str) -> bool:
    """Whether a text is an address and not a path; drive names are shorter than schemes."""
    return _URL.match(text) is not None


def parse_address(text: str) -> Address:
    """Parse an address; a slash at its end is ignored."""
    start = text.index("://") + 3
    return Address(text[:start] + text[start:].rstrip("/"))


def redact(text: str) -> str:
    """A text without the secrets of its URLs: users and passwords, and the queries of web addresses."""
    text = _USER.sub("…@", text)
    return _QUERY.sub("…", text) if any(f"{scheme}://" in text.lower() for scheme in _WITH_QUERY) else text


def json_text(value: object) -> str:
    r"""JSON in valid UTF-8, for any names of files.

    A byte of a name that is not UTF-8 is written as the escape of Python's lone surrogate for it, such as "\udcff":
    `os.fsencode(json.loads(text))` returns the name. Numbers that are not finite become null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def name_hash(name: str) -> int:
    """A hash of a file name with 8 bytes: the chance that two of a million names collide is 1 in 37 million."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def shown(path: object) -> str:
    """A path for a one-line message, with line breaks and other control characters escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)
