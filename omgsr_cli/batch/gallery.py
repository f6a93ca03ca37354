"""The page of a run: every image before and after, with marks for the next run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from omgsr_cli.batch.reports import FileResult
from omgsr_cli.errors import (
    FileError,
    OmgsrError,
    OtherSettingsError,
    UsageError,
    read_reason,
    write_error,
    write_reason,
)
from omgsr_cli.files.addresses import Address, Location, is_url, json_text, local_copy, look_at, shown
from omgsr_cli.files.atomic import write_atomically
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX, THUMBNAILS_MARK
from omgsr_cli.files.jobs import listed_name
from omgsr_cli.pages.template import data_address, definitions, escape, fill_page, printable

GENERATOR = "omgsr gallery"

#: Up to this many images, the page contains their thumbnails.
_MOST_EMBEDDED = 200

#: Results that wait for their thumbnails, which another thread makes.
_MOST_WAITING = 8

#: The beginning of the line that describes the run.
_RUN = b'<script type="application/json" id="run">'

_OWN_FILE = re.compile(r"[0-9a-f]{16}t?\.[a-z]{3,4}")


@dataclass(frozen=True)
class GalleryOptions:
    """What a gallery shows, and where.

    Attributes:
        path: the page.
        beside: folders with other results of the same inputs.
        overwrite: replace an existing file that is not a gallery.
        updates: keep the images of an existing page with the same title and headings that are not in the run.
    """

    path: Path
    beside: tuple[Path, ...] = ()
    overwrite: bool = False
    updates: bool = False


def check_gallery(page: str, beside: Sequence[str], *, overwrite: bool, updates: bool) -> GalleryOptions:
    """Check that a gallery can be written.

    Args:
        page: the value of `--gallery`.
        beside: the values of `--beside`.
        overwrite: replace an existing file that is not a gallery.
        updates: keep the other images of an existing page.
    Raises:
        UsageError: it cannot be written there, or a folder does not exist.
    """
    name, path = f"--gallery {shown(page)}", Path(page)
    if is_url(page) and not os.path.lexists(page):
        raise UsageError(f"{name}: the page is written to this machine only", "give the path of an .html file")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{name} is not an .html file", f"use --gallery {shown(path)}.html")
    if path.is_dir():
        raise UsageError(f"{name} is a folder", f"use --gallery {shown(path / 'index.html')}")
    if os.path.lexists(path) and not overwrite and not _is_gallery(path):
        raise UsageError(f"{name} exists and is not a gallery", "use another name, or --overwrite to replace it")
    if (files := files_folder(path)).exists() and not files.is_dir():
        raise UsageError(f"{name}: {shown(files)} exists but is not a folder", "use another name")
    for folder in beside:
        if not os.path.isdir(folder):
            raise UsageError(f"--beside {shown(folder)} is not a folder of this machine", "give a folder of results")
    return GalleryOptions(path, tuple(map(Path, beside)), overwrite, updates)


def files_folder(page: Path) -> Path:
    """The folder of a page's thumbnails and previews."""
    return page.with_name(f"{page.stem}_files")


def _is_gallery(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return f'<meta name="generator" content="{GENERATOR}">'.encode() in file.read(2000)
    except OSError:
        return False


class Gallery:
    """Collects the results of a run, and writes them as one page that opens from disk, however the run ends.

    Its memory does not grow with the images: their entries are stored in a temporary file.

    Args:
        options: what it shows, and where.
        title: the heading of the page.
        result: the heading of the results.
        facts: names and values about the run.
        command: arguments of the command that processes the images of a list again, without the list.
        made: how the results of this run are made, shown for each if the page is updated.
        total: number of images; None if it is unknown.

    Attributes:
        notes: notes for the user, once the page is written.
        images: number of inputs of this run on the page.
        is_written: whether the page was written.

    Raises:
        UsageError: the page cannot be written.
    """

    def __init__(
        self,
        options: GalleryOptions,
        *,
        title: str,
        result: str,
        facts: Mapping[str, str],
        command: str,
        made: str = "",
        total: int | None,
    ) -> None:
        self._options, self._title, self._facts, self._command, self._made = options, title, facts, command, made
        self._panes = ["before", result, *(shown(folder) for folder in options.beside)]
        self._beside = [_Results(folder) for folder in options.beside]
        self._files = files_folder(options.path)
        self._embeds = total is not None and total <= _MOST_EMBEDDED
        self._used, self._names = set[str](), set[str]()
        self._waiting = deque[Future[None]]()
        self._pool = ThreadPoolExecutor(1)
        self._failure: OSError | None = None
        self.notes: list[str] = []
        self.images, self.is_written = 0, False
        try:
            options.path.parent.mkdir(parents=True, exist_ok=True)
            self._entries = tempfile.TemporaryFile(dir=options.path.parent, buffering=0)  # noqa: SIM115 - closed with the gallery
        except OSError as error:
            reason = write_reason(error)
            raise UsageError(
                f"--gallery {shown(options.path)} cannot be written: {reason}", "use another file"
            ) from error

    def add(self, result: FileResult, below: str) -> None:
        """Add the result of an image.

        Args:
            result: the result.
            below: path of the input below its folder.
        """
        if result.is_own or result.status == "planned":
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._add, result, below))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with self._entries:
                self._pool.shutdown(wait=True)
                for future in self._waiting:
                    future.result()
                models = self._keep_others() if self.images else ""
                if self._failure is not None:
                    raise write_error(f"--gallery {shown(self._options.path)}", self._failure)
                if self.images:
                    self._write(models)
                if kind is None:
                    self._remove_unused()
        except BaseException:
            self._pool.shutdown(wait=True, cancel_futures=True)
            raise

    def _add(self, result: FileResult, below: str) -> None:
        notes = list(result.notes)
        views, sizes, thumbnail = list[str | None](), list[tuple[int, int] | None](), None
        others = [each.find(below, result) if result.source is not None else None for each in self._beside]
        # A result with other settings exists, so it is shown with the error.
        has_result = result.status != "failed" or isinstance(result.error, OtherSettingsError)
        for place in (result.source, result.destination if has_result else None, *others):
            view, size_px = None, None
            if place is not None:
                try:
                    view, size_px, small = self._view(place, with_thumbnail=thumbnail is None)
                    thumbnail = thumbnail or small
                except (OmgsrError, MemoryError) as error:
                    # An input that cannot be read is the reason of the failure.
                    if result.status != "failed":
                        notes.append(
                            error.message if isinstance(error, OmgsrError) else f"{shown(place)}: ran out of memory"
                        )
            views.append(view)
            sizes.append(size_px)
        before, after = result.input_px or sizes[0], result.output_px or sizes[1]
        entry = {
            "name": "" if result.source is None else listed_name(result.source),
            "title": printable(below or (result.source and shown(result.source)) or ""),
            "status": result.status,
            "views": views,
            "thumb": thumbnail,
            "from": before and [before[1], before[0]],
            "to": after and [after[1], after[0]],
            "seconds": round(result.seconds, 2),
            "notes": [printable(note) for note in notes],
            "error": result.error and printable(result.error.message),
        }
        if self._options.updates:
            entry["made"] = self._made if result.status != "failed" else ""
            self._names.add(str(entry["name"]))
        self._store(_script_text(entry).encode() + b",\n")
        self.images += result.source is not None

    def _store(self, line: bytes) -> None:
        try:
            if self._entries.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # The run continues, and the error is raised at its end.
            self._failure = error

    def _keep_others(self) -> str:
        """Store the entries of the existing page that are not in this run; returns the models of all."""
        model = self._facts["model"]
        if not self._options.updates or not _is_gallery(self._options.path):
            return model
        with open(self._options.path, "rb") as file:
            run = next((line for line in file if line.startswith(_RUN)), b"")
            earlier = json.loads(run.removeprefix(_RUN).removesuffix(b"</script>\n") or "{}")
            if (earlier.get("title"), earlier.get("panes")) != (self._title, self._panes):
                return model
            own = self._url(self._files / "x").removesuffix("x")
            self._names.add("")
            for line in takewhile(lambda line: not line.startswith(b"null"), file):
                if line.startswith(b"{") and (entry := json.loads(line[:-2]))["name"] not in self._names:
                    urls = [url for url in (*entry["views"], entry["thumb"]) if url and url.startswith(own)]
                    self._used.update(url.removeprefix(own) for url in urls)
                    self._store(line)
        return ", ".join(dict.fromkeys([*earlier["model"].split(", "), model]))

    def _view(self, place: Location, *, with_thumbnail: bool) -> tuple[str, tuple[int, int], str | None]:
        """The URL of an image or of its preview, its height and width, and the URL of its thumbnail."""
        # Imported late, because this loads torch.
        from omgsr_cli.batch.previews import encode_preview, encode_thumbnail, look_at_image

        name, key = shown(place), _key_of(place)
        if isinstance(place, Address) and (copied := self._copied(key, place.suffix)) is not None:
            shown_file, (size_px, _) = copied, look_at_image(copied, name)
        else:
            with local_copy(place) as copy:
                size_px, is_shown = look_at_image(copy.path, name)
                shown_file = copy.path
                if not is_shown:
                    shown_file = self._stored(f"{key}.webp", lambda: encode_preview(copy.path, name))
                elif isinstance(place, Address):
                    shown_file = self._stored(f"{key}{place.suffix}", copy.path.read_bytes)
        url = self._url(shown_file)
        if not with_thumbnail:
            return url, size_px, None
        if self._embeds:
            return url, size_px, data_address("image/webp", encode_thumbnail(shown_file, name))
        return url, size_px, self._url(self._stored(f"{key}t.webp", lambda: encode_thumbnail(shown_file, name)))

    def _copied(self, key: str, suffix: str) -> Path | None:
        """The file that shows an address, from an earlier run."""
        files = (self._files / f"{key}{each}" for each in (suffix, ".webp"))
        return next((self._stored(file.name, bytes) for file in files if file.is_file()), None)

    def _stored(self, name: str, make: Callable[[], bytes]) -> Path:
        """A file beside the page, made unless an earlier run did."""
        if not self._used and not (mark := self._files / THUMBNAILS_MARK).exists():
            write_atomically(mark, [b""], overwrite=True)
        self._used.add(name)
        path = self._files / name
        if not path.is_file():
            write_atomically(path, [make()], overwrite=True)
        return path

    def _url(self, path: Path) -> str:
        """The URL of a file relative to the page, so both may move together."""
        try:
            relative = Path(os.path.relpath(os.path.abspath(path), os.path.abspath(self._options.path.parent)))
        except ValueError:
            # Another drive of Windows.
            return Path(os.path.abspath(path)).as_uri()
        return quote(os.fsencode(relative.as_posix()))

    def _write(self, models: str) -> None:
        place = "\0"
        text = fill_page(
            resources.files("omgsr_cli") / "batch" / "page_files",
            "gallery.html",
            generator=GENERATOR,
            title=escape(self._title),
            created=datetime.now().astimezone().isoformat(" ", "minutes"),
            about=definitions(self._facts.items()),
            run=_script_text({"title": self._title, "panes": self._panes, "command": self._command, "model": models}),
            images=place,
        )
        head, tail = (part.encode("utf-8", "backslashreplace") for part in text.split(place))

        def parts() -> Iterator[bytes]:
            yield head
            self._entries.seek(0)
            yield from iter(lambda: self._entries.read(1 << 20), b"")
            yield b"null"
            yield tail

        # What existed was checked before the run.
        write_atomically(self._options.path, parts(), overwrite=True)
        self.is_written = True
        for each in self._beside:
            self.notes += each.note

    def _remove_unused(self) -> None:
        """Remove previews and thumbnails of earlier pages; after an interruption, the next run uses them."""
        if not self._files.is_dir():
            return
        for file in self._files.iterdir():
            if _OWN_FILE.fullmatch(file.name) and file.name not in self._used:
                file.unlink(missing_ok=True)


class _Results:
    """A folder of other results, which are found by the relative name of their input."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._missing, self._first, self._images = 0, "", 0
        self._listed: tuple[Path, dict[str, list[str]]] | None = None

    def find(self, below: str, result: FileResult) -> Path | None:
        """The counterpart of a result: a file of any format with its name or that of its input."""
        inside = Path(below).parent
        names = [Path(below).name, *([] if result.destination is None else [result.destination.name])]
        files = self._files_of(self._folder / inside)
        self._images += result.status != "failed"
        for name in reversed(names):
            # Of several formats, prefer that of the result.
            found = sorted(files.get(_stem(name), ()), key=lambda each: (each != names[-1], each))
            if found:
                return self._folder / inside / found[0]
        if result.status != "failed":
            self._missing, self._first = self._missing + 1, self._first or below
        return None

    @property
    def note(self) -> list[str]:
        """A note about results without a counterpart, if any."""
        if not self._missing:
            return []
        missing = f"{self._missing} of {self._images} images are missing, the first is {shown(self._first)}"
        return [f"--beside {shown(self._folder)}: {missing}"]

    def _files_of(self, folder: Path) -> dict[str, list[str]]:
        if self._listed is None or self._listed[0] != folder:
            files: dict[str, list[str]] = {}
            if folder.is_dir():
                for name in os.listdir(folder):
                    if Path(name).suffix.lower() in FORMAT_OF_SUFFIX and not name.startswith("."):
                        files.setdefault(_stem(name), []).append(name)
            self._listed = folder, files
        return self._listed[1]


def _script_text(record: Mapping[str, object]) -> str:
    # "<" could begin "</script>".
    return json_text(record).replace("<", "\\u003c")


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in FORMAT_OF_SUFFIX else name


def _key_of(place: Location) -> str:
    """A name for the preview of an image, which changes with its content."""
    if isinstance(place, Address):
        entry = look_at(place)
        text = f"{place.url}\n{entry.stamp if entry else ''}"
    else:
        try:
            found = place.stat()
        except OSError as error:
            raise FileError(f"{shown(place)}: {read_reason(error)}") from error
        text = f"{os.path.abspath(place)}\n{found.st_size}\n{found.st_mtime_ns}"
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()
