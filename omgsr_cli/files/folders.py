"""Walk folders of images, with an order and cost that do not depend on links and loops."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from omgsr_cli.files.addresses import Address, Location

#: Suffixes of camera raw files.
RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)

#: The format of an image by its suffix.
FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".png", ".apng"), "png"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "jpg"),
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".bmp", ".dib"), "bmp"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "jp2"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "ppm"),
    **{".webp": "webp", ".avif": "avif", ".gif": "gif"},
    **dict.fromkeys((".heic", ".heif", ".hif"), "heic"),
    ".jxl": "jxl",
    **dict.fromkeys(RAW_SUFFIXES, "raw"),
}

#: Formats that need an optional library: the extra of this package, and the module that it installs.
EXTRA_OF_FORMAT = {
    "heic": ("heif", "pillow_heif"),
    "jxl": ("jxl", "pillow_jxl"),
    "raw": ("raw", "rawpy"),
    "codecs": ("codecs", "imagecodecs"),
}

#: A file with this name marks a folder of thumbnails and previews, which are never inputs unless the folder is named.
THUMBNAILS_MARK = ".omgsr-thumbnails"

#: Number of bytes that are read to recognise the format of a file.
_HEADER_BYTES = 4096

#: The brands of HEIC files.
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

#: The first bytes of formats with a signature at the start.
_STARTS = {
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpg": (b"\xff\xd8\xff",),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "gif": (b"GIF87a", b"GIF89a"),
    "jxl": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "ppm": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"),
    "bmp": (b"BM",),
}

# Suffixes of other images, which are not supported.
_UNREAD_SUFFIXES = frozenset(
    (".ai", ".dds", ".eps", ".exr", ".hdr", ".ico", ".pcx", ".pdf", ".psb", ".psd", ".svg", ".tga", ".xcf")
)

_DIGITS = re.compile(r"([0-9]+)")

# Systems where names that differ only in case or Unicode form are the same file.
_NAMES_FOLD = sys.platform in ("darwin", "win32")

# Number of folder entries that are read and sorted at a time.
_PART = 10_000

# Number of entries that are examined to find subfolders with images.
_MOST_LOOKS = 10_000

NaturalName = tuple[tuple[str | tuple[int, str], ...], str]


class EntryKeys:
    """Gives different spellings of a path the same key; links to folders are resolved, links to files are not.

    Two names of the same file are thus two entries, because users who link images into a folder expect that.
    """

    def __init__(self) -> None:
        self._real_parents: dict[str, str] = {}

    def __call__(self, path: Location) -> str:
        """The key of a path, which need not exist."""
        if isinstance(path, Address):
            return path.url
        # Text, because comparing paths takes ten times as long, and there may be millions.
        parent, name = os.path.split(path)
        if parent not in self._real_parents:
            self._real_parents[parent] = os.path.realpath(parent or ".")
        place = os.path.join(self._real_parents[parent], name)
        return unicodedata.normalize("NFC", place).casefold() if _NAMES_FOLD else place


def natural_key(path: Path) -> tuple[tuple[NaturalName, ...], NaturalName]:
    """Sort key in natural order: img2 before img10, a folder's own files before those of its subfolders."""
    return tuple(_natural_name(part) for part in path.parent.parts), _natural_name(path.name)


def _natural_name(name: str) -> NaturalName:
    # Text and digits alternate, so equal kinds are compared. Without leading zeros, a longer number is larger; int()
    # would refuse thousands of digits.
    key: list[str | tuple[int, str]] = []
    for index, chunk in enumerate(_DIGITS.split(name)):
        digits = chunk.lstrip("0")
        key.append((len(digits), digits) if index % 2 else chunk.casefold())
    return tuple(key), name


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Size, modification time in ns and inode, which change with a file; None if this is not a file."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return (state.st_size, state.st_mtime_ns, state.st_ino) if stat.S_ISREG(state.st_mode) else None


def is_image_name(path: Path) -> bool:
    """Whether a file has the suffix of an image that can be read here."""
    kind = FORMAT_OF_SUFFIX.get(path.suffix.lower())
    return kind is not None and has_reader(kind)


def format_of_content(path: Path) -> str | None:
    """The format of an image file by its first bytes, independent of its name.

    None if they are ambiguous, as for camera raw files, which begin as TIFF, and for pipes and devices, which would
    lose these bytes.
    """
    if FORMAT_OF_SUFFIX.get(path.suffix.lower()) == "raw" or not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError:
        return None
    found = format_of_start(start[:32])
    # Of more than 8 bits a result in AVIF would keep 8: it is written as PNG.
    return "deep avif" if found == "avif" and has_reader("codecs") and av1_depth(start) > 8 else found


def av1_depth(header: bytes) -> int:
    """Bits per sample, from the first `av1C` box (AV1 in ISOBMFF, 2.3) of an AVIF file: two bits of its third byte."""
    place = header.find(b"av1C")
    bits = header[place + 6] if 0 <= place < len(header) - 6 else 0
    return 12 if bits & 0x20 else 10 if bits & 0x40 else 8


def format_of_start(start: bytes) -> str | None:
    """The format of a file that starts with these 32 bytes, or None."""
    if start[4:8] == b"ftyp":
        # An AVIF can have a general brand first, and its own among the compatible brands.
        is_avif = any(brand in start[8:] for brand in (b"avif", b"avis"))
        return "avif" if is_avif else "heic" if start[8:12] in HEIF_BRANDS else None
    return next((kind for kind, starts in _STARTS.items() if start.startswith(starts)), None) or (
        "webp" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None
    )


@cache
def has_reader(kind: str) -> bool:
    """Whether the reader of a format is installed."""
    return kind not in EXTRA_OF_FORMAT or find_spec(EXTRA_OF_FORMAT[kind][1]) is not None


def install_hint(kinds: Iterable[str]) -> str:
    """The command that installs the readers of these formats."""
    # Imported late, because few runs need it.
    from omgsr_cli.packages import install_command

    return install_command(*sorted({EXTRA_OF_FORMAT[kind][0] for kind in kinds}))


def describe_unread(unread: Mapping[str, int]) -> tuple[str, str | None] | None:
    """Describe images that cannot be read here.

    Args:
        unread: number of images by suffix, see `unread_suffix`.
    Returns:
        A text such as "3 .heic, 1 .psd", and an install command if that helps; None if there are no such images.
    """
    if not unread:
        return None
    kinds = {FORMAT_OF_SUFFIX[suffix] for suffix in unread if suffix in FORMAT_OF_SUFFIX}
    counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
    return counts, install_hint(kinds) if kinds else None


def unread_suffix(path: Path) -> str | None:
    """The suffix of an image that cannot be read here; None for all other files."""
    suffix = path.suffix.lower()
    is_unread = suffix in _UNREAD_SUFFIXES or (suffix in FORMAT_OF_SUFFIX and not is_image_name(path))
    return suffix if is_unread else None


class FolderSearch:
    """Finds files in a folder and its subfolders.

    Args:
        root: the start of the search.
        skipped: a folder that is not searched because results are written there, unless `root` is this folder or inside
            it.
        on_error: called with each folder that cannot be read; the search continues.
    """

    def __init__(self, root: Path, skipped: Path | None, on_error: Callable[[Path, OSError], None]) -> None:
        self._root = root
        self._on_error = on_error
        asked_for = skipped is not None and Path(os.path.realpath(root)).is_relative_to(skipped)
        self._skipped = None if skipped is None or asked_for else str(skipped)
        self._below: list[Path] = []

    def walk(self, *, recursive: bool) -> Iterator[list[Path]]:
        """The files of the root and of each real subfolder, once; hidden files and thumbnails are skipped.

        They are in natural order. Very large folders are returned in parts, each in natural order. Linked folders
        follow all others, so an image is found under its own name first.

        Args:
            recursive: walk subfolders too.
        """
        return (files for _, files in self._walk(self._root, recursive))

    def left_out(self) -> Iterator[Path | None]:
        """The subfolders with images that a non-recursive walk skipped.

        Each is read up to its first image; a final None means that there are more than were examined.
        """
        looks = iter(range(_MOST_LOOKS))
        for folder in sorted(self._below[:_MOST_LOOKS], key=natural_key):
            for path in self._entries_below(folder):
                if next(looks, None) is None:
                    yield None
                    return
                if is_image_name(path) and not os.path.isdir(path):
                    yield folder
                    break

    def _entries_below(self, folder: Path) -> Iterator[Path]:
        """A folder, and all that is below it, as the system lists it; links to folders are not followed."""
        folders = [folder]
        while folders:
            folder = folders.pop()
            if self._skipped is not None and os.path.realpath(folder) == self._skipped:
                continue
            yield folder
            # What cannot be read holds nothing that could be searched.
            with suppress(OSError), os.scandir(folder) as listing:
                for entry in listing:
                    if not entry.name.startswith("."):
                        yield folder / entry.name
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(folder / entry.name)

    def expand(self, parts: Sequence[str]) -> set[Path]:
        """The files and folders below the root whose path matches a pattern, part by part; `**` matches files only."""
        places = {self._root}
        for index, part in enumerate(parts, 1):
            # A set for each part of the pattern, so a folder that matches in several ways is searched once.
            is_last = index == len(parts)
            places = {match for place in places for match in self._matches(place, part, is_last)}
        return places

    def _walk(self, root: Path, recursive: bool = True) -> Iterator[tuple[Path, list[Path]]]:
        # A stack, so the content of a folder comes before its siblings.
        folders, linked, seen = [root], deque[Path](), set()
        while folders or linked:
            folder = folders.pop() if folders else linked.popleft()
            real = os.path.realpath(folder)
            if real in seen or real == self._skipped:
                continue
            seen.add(real)
            yield folder, []
            below = list[Path]()
            for entries in self._parts(folder):
                files = [path for path, is_folder in entries if not is_folder]
                below += [path for path, is_folder in entries if is_folder and not _holds_thumbnails(path)]
                yield folder, files
            if not recursive:
                self._below = below
                return
            below.sort(key=natural_key)
            linked += [path for path in below if os.path.islink(path)]
            folders += [path for path in reversed(below) if not os.path.islink(path)]

    def _parts(self, folder: Path) -> Iterator[list[tuple[Path, bool]]]:
        """The entries of a folder without hidden ones, each with whether it is a folder."""
        try:
            with os.scandir(folder) as listing:
                while part := list(islice(listing, _PART)):
                    entries = [
                        (folder / entry.name, _is_folder(entry)) for entry in part if not entry.name.startswith(".")
                    ]
                    yield sorted(entries, key=lambda entry: natural_key(entry[0]))
        except OSError as error:
            self._on_error(folder, error)

    def _matches(self, folder: Path, part: str, is_last: bool) -> Iterator[Path]:
        """The matches of one part of a pattern in a folder: folders, and files too for the last part."""
        if part == "**":
            for below, files in self._walk(folder):
                yield from files if is_last else [below]
            return
        if glob.has_magic(part):
            hidden = part.startswith(".")
            named = (path for path in self._entries(folder) if path.name.startswith(".") == hidden)
            matches = [path for path in named if fnmatch.fnmatch(path.name, part)]
        else:
            matches = [folder / part]
        for path in matches:
            if os.path.isdir(path):
                if os.path.realpath(path) != self._skipped and not _holds_thumbnails(path):
                    yield path
            elif is_last and os.path.lexists(path):
                yield path

    def _entries(self, folder: Path) -> list[Path]:
        try:
            return sorted(folder.iterdir(), key=natural_key)
        except OSError as error:
            self._on_error(folder, error)
            return []


def _holds_thumbnails(folder: Path) -> bool:
    return os.path.lexists(folder / THUMBNAILS_MARK)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
