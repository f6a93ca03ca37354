"""Name results, and choose their folders."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omgsr_cli.errors import UsageError
from omgsr_cli.files.addresses import Location, check_address, is_url, look_at, parse_address, shown
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX, format_of_content
from omgsr_cli.files.inputs import FoundInput

if TYPE_CHECKING:
    from omgsr_cli.options import OutputFormat, SizeOptions

STREAM = "-"

#: The usual suffix of each output format.
_SUFFIX_OF_FORMAT = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif"}

# Suffixes of output formats that promise more than one frame, although only one is written.
_PLAIN_SUFFIX = {".apng": ".png", ".mpo": ".jpg"}

# An output with such a suffix is a file of any kind; ".05" or a long word can be the end of a folder name.
_LIKE_A_FILES = re.compile(r"\.[a-z][a-z0-9]{1,4}")


@dataclass(frozen=True)
class Output:
    """The meaning of -o: a file, a folder, standard output, or beside each input."""

    kind: Literal["file", "folder", "stream", "beside"]
    path: Location = Path()


def check_suffix(suffix: str | None) -> None:
    """Refuse a suffix that cannot be part of a file name.

    Raises:
        UsageError: the suffix has slashes.
    """
    if suffix and any(mark in suffix for mark in ("/", "\\", "\0")):
        raise UsageError(f"--suffix {shown(suffix)} cannot be part of a file name", "remove the slashes")


def parse_output(output: str | None, output_format: OutputFormat) -> Output:
    """Parse the value of -o.

    Raises:
        UsageError: results cannot be written there.
    """
    if output is None:
        return Output("beside")
    if output == STREAM:
        return Output("stream")
    if not output:
        raise UsageError("-o is empty", "check that variables in the command are set")
    path: Location = Path(output)
    if is_url(output):
        path = parse_address(output)
        if path.scheme in ("http", "https"):
            raise UsageError(
                f"-o {path}: results cannot be written to a web server", "use a folder, or s3://, gs:// or hf://"
            )
        check_address(path)
    ends_as_folder = output.endswith(("/", os.sep)) or path.name in ("", "..")
    suffix = path.suffix.lower()
    if ends_as_folder or _is_folder(path) or not (suffix in FORMAT_OF_SUFFIX or _LIKE_A_FILES.fullmatch(suffix)):
        if isinstance(path, Path) and os.path.lexists(path) and not os.path.isdir(path):
            raise UsageError(f"-o {shown(output)} exists but is not a folder", "use a folder, or the name of an image")
        return Output("folder", path)
    written = FORMAT_OF_SUFFIX.get(suffix)
    if written not in _SUFFIX_OF_FORMAT:
        names = ", ".join(_SUFFIX_OF_FORMAT.values())
        raise UsageError(
            f"-o {shown(output)}: {shown(suffix)} is not an output format",
            f"use one of {names}; for a folder of this name, add a slash",
        )
    if output_format not in ("same", written):
        right = path.stem + _SUFFIX_OF_FORMAT[output_format]
        raise UsageError(f"-o {shown(output)} and --format {output_format} disagree", f"use -o {shown(right)}")
    return Output("file", path)


def _is_folder(path: Location) -> bool:
    if isinstance(path, Path):
        return os.path.isdir(path)
    # A name without a suffix is always a folder.
    entry = look_at(path) if path.suffix else None
    return entry is not None and entry.is_folder


@dataclass(frozen=True)
class Naming:
    """Names results.

    Attributes:
        output: the parsed -o.
        suffix: appended to each name; None appends the size beside an input, and nothing in an output folder.
        size_suffix: see `size_suffix`.
        format: format of the files.
    """

    output: Output
    suffix: str | None
    size_suffix: str
    format: OutputFormat

    def destination(self, found: FoundInput) -> Location:
        """The path of an input's result."""
        if self.output.kind == "file":
            return self.output.path
        if self.output.kind == "folder":
            return self.output.path / found.below.parent / self._name(found, found.below, "")
        if found.folder is not None:
            return self._beside_folder(found.folder) / found.below.parent / self._name(found, found.below, "")
        return found.path.parent / self._name(found, found.path, self.size_suffix)

    def _beside_folder(self, folder: Location) -> Location:
        named = folder
        if isinstance(folder, Path) and folder.name in ("", ".."):
            # "." and "x/.." have no name to append the scale to.
            named = Path(os.path.realpath(folder))
        if not named.name:
            raise UsageError(f"results cannot be written beside {shown(folder)}", "choose a folder with -o FOLDER")
        return named.parent / (named.name + self.size_suffix)

    def _name(self, found: FoundInput, source: Location, default: str) -> str:
        middle = default if self.suffix is None else self.suffix
        # Only image suffixes are removed, because the last part distinguishes IMG.0001 from IMG.0002.
        stem = source.stem if source.suffix.lower() in FORMAT_OF_SUFFIX else source.name
        return stem + middle + self._extension(found, source)

    def _extension(self, found: FoundInput, source: Location) -> str:
        suffix = source.suffix.lower()
        source_format = FORMAT_OF_SUFFIX.get(suffix, "")
        wanted: str = self.format
        if wanted == "same":
            # Names can be wrong: many WebP files are called .jpg.
            wanted = (format_of_content(found.path) if isinstance(found.path, Path) else None) or source_format
        if wanted not in _SUFFIX_OF_FORMAT:
            return ".png"
        if wanted != source_format:
            return _SUFFIX_OF_FORMAT[wanted]
        return _PLAIN_SUFFIX.get(suffix, source.suffix)


def size_suffix(sizes: SizeOptions, model_scale: float) -> str:
    """The size in a result's name: "_x4" for a factor, "_1920x1080", or "_2000px" for a side."""
    if sizes.size is not None:
        return f"_{sizes.size[1]}x{sizes.size[0]}"
    if sizes.print is not None:
        return f"_print{sizes.print[0]}x{sizes.print[1]}"
    side = sizes.long_side or sizes.short_side
    return f"_{side}px" if side else f"_x{sizes.scale or model_scale:g}"


def comparison_path(destination: Location) -> Location:
    """The path of a result's before/after image."""
    return destination.with_name(comparison_name(destination.name))


def comparison_name(name: str) -> str:
    """The name of a result's before/after image, from the result's name or path."""
    return f"{os.path.splitext(name)[0]}_compare.png"
