"""Sources of training images: files, WebDataset shards and Hugging Face data sets; and how often each image is used."""

from __future__ import annotations

import math
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

from omgsr_cli.datasets import OnSmall, whole_factor
from omgsr_cli.errors import FileError, OmgsrError, UsageError, reason_of
from omgsr_cli.files.inputs import find_inputs
from omgsr_cli.files.pairs import find_images
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.imaging import probe_image
from omgsr_cli.packages import install_command
from omgsr_cli.training.config import SourceConfig

_DATASET_URL = "hf://datasets/"
_DATASET_FILES = ("state.json", "dataset_dict.json")
"""Files by which a folder that the library `datasets` saved is recognised."""

_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_MEMBERS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".avif", ".jxl", ".heic")


class UnreadableImagesError(FileError):
    """The headers of images cannot be read; the error lists all of these images.

    Args:
        problems: one error per file.
        count: number of all files.
    """

    def __init__(self, problems: Sequence[FileError], count: int) -> None:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        super().__init__(
            f"{len(problems)} of {count} images cannot be read: {problems[0].message}{more}",
            "repair them, or move them out of the data",
        )
        self.problems = tuple(problems)
        self.count = count

    def __reduce__(self) -> tuple[type[UnreadableImagesError], tuple[tuple[FileError, ...], int]]:
        return type(self), (self.problems, self.count)


@dataclass(frozen=True)
class Member:
    """An image in a WebDataset shard, an uncompressed tar file: a member's name, its offset and its size."""

    shard: Path
    name: str
    offset: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def read(self) -> bytes:
        """Read the content.

        Raises:
            FileError: the shard cannot be read.
        """
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size_bytes)
        except OSError as error:
            raise FileError(f"{self}: cannot be read: {reason_of(error)}") from error


@dataclass(frozen=True)
class Row:
    """An image in a Hugging Face data set, whose content has a fingerprint of the library."""

    dataset: str
    split: str
    column: str
    number: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.dataset}: {self.split}, row {self.number}"

    def read(self) -> bytes:
        """Read the content of the image file.

        Raises:
            FileError: the row has no image, or it cannot be read.
        """
        cell = _open_dataset(self.dataset, self.split, self.column)[self.number][self.column]
        try:
            content: bytes = cell["bytes"] or Path(cell["path"]).read_bytes()
        except (TypeError, OSError) as error:
            raise FileError(f"{self}: has no image: {reason_of(error)}") from error
        return content


Stored = Path | Member | Row
"""A file, or an image in a shard or a data set."""


def read_stored(stored: Stored) -> Path | bytes:
    """Return the input for `read_image` and `probe_image`: a path or the content of a file."""
    return stored if isinstance(stored, Path) else stored.read()


@dataclass(frozen=True)
class TrainingImage:
    """A high-quality image and its real low-quality counterpart, if any.

    Attributes:
        hq: the high-quality image.
        lq: file of the counterpart, or None if the low-quality image is made by degradation.
        height: height of the high-quality image in px, upright and after `resize_px`.
        width: width of the same image in px.
        lq_scale: side of the high-quality image divided by that of the counterpart; 1 without one.
        weight: how often the image is used, relative to others.
        resize_px: shorter side in px to which the image is reduced; None keeps the size.
    """

    hq: Stored
    lq: Path | None
    height: int
    width: int
    lq_scale: int = 1
    weight: float = 1.0
    resize_px: int | None = None

    @property
    def files(self) -> tuple[Stored, ...]:
        """The high-quality image and the counterpart's file, if any."""
        return (self.hq,) if self.lq is None else (self.hq, self.lq)


def find_training_images(
    sources: Sequence[str | SourceConfig], lq: Sequence[str] | None, least_px: int, on_small: OnSmall
) -> tuple[TrainingImage, ...]:
    """List the training images from their headers. Sizes are cached between runs and processes.

    Args:
        sources: sources of the high-quality images; a string is the `images` of a source.
        lq: folders, files, globs or .txt lists of counterparts with the same names except for their suffixes; or None.
        least_px: side of a crop in px.
        on_small: "skip" leaves out images whose shorter side is smaller than that.
    Raises:
        UnreadableImagesError: files cannot be read or their counterparts have another shape; the error lists them all.
        OmgsrError: a counterpart is missing, a data set cannot be opened, or no image is left.
    """
    named = [SourceConfig(images=each) if isinstance(each, str) else each for each in sources]
    found: list[TrainingImage] = []
    problems: list[FileError] = []
    with closing(Remembered()) as remembered:
        of_files = [source for source in named if is_files(source)]
        for describe in (*_describe_files(of_files, lq, problems, remembered), *_describe_stored(named, remembered)):
            try:
                found.append(describe())
            except FileError as error:
                problems.append(error)
    if problems:
        raise UnreadableImagesError(problems, len(found) + len(problems))
    chosen = [p for p in found if on_small != "skip" or min(p.height, p.width) >= least_px]
    if not chosen:
        raise OmgsrError(
            f"no image in {', '.join(source.images for source in named)} has {least_px} px on its shorter side "
            f"({len(found)} are smaller)",
            "set on_small to resize or pad, give larger images, or lower the resolution",
        )
    return tuple(chosen)


def is_files(source: SourceConfig) -> bool:
    """Return whether a source consists of image files, not of shards or a data set."""
    return not source.images.endswith(".tar") and not _is_dataset(source)


def check_source(source: SourceConfig) -> None:
    """Check that a source exists, without reading an image.

    Raises:
        OmgsrError: the source does not exist, or the library that reads it is not installed.
    """
    if source.images.endswith(".tar"):
        _expand(source.images)
    elif _is_dataset(source):
        if not source.images.startswith(_DATASET_URL) and not Path(source.images).exists():
            raise UsageError(f"{source.images} does not exist", f"name a data set of the hub {_DATASET_URL}OWNER/NAME")
        _import_datasets()
    else:
        found, problems, _ = find_inputs([source.images], recursive=True)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise OmgsrError(problems[0].message + more, problems[0].hint)
        if not found:
            raise OmgsrError(f"no image was found in {source.images}")


def plan_epoch(images: Sequence[TrainingImage], crop_px: int, *, by_area: bool = True) -> tuple[int, ...]:
    """Plan how often an epoch uses each image: its side divided by that of a crop, at least once, times its weight.

    The square root of the area is between equal frequency per image and equal frequency per pixel: a large image has
    more content, but not in proportion to its pixels.

    Args:
        images: training images; their weights are rounded to fractions with denominators up to 100.
        crop_px: side of a crop in px.
        by_area: False uses all images equally, except for their weights.
    Returns:
        Indices of images in order, each repeated as often as it is used.
    """
    exact = {p.weight: Fraction(p.weight).limit_denominator(100) for p in images}
    common = math.lcm(*(each.denominator for each in exact.values()))
    unit = Fraction(math.gcd(*(int(each * common) for each in exact.values())), common)
    shares = {weight: int(each / unit) for weight, each in exact.items()}
    times = [max(1, round((p.height * p.width) ** 0.5 / crop_px)) if by_area else 1 for p in images]
    counts = [count * shares[p.weight] for p, count in zip(images, times, strict=True)]
    return tuple(index for index, count in enumerate(counts) for _ in range(count))


_Describe = Callable[[], TrainingImage]


def _describe_files(
    sources: Sequence[SourceConfig], lq: Sequence[str] | None, problems: list[FileError], remembered: Remembered
) -> Iterator[_Describe]:
    if not sources:
        return
    texts = [source.images for source in sources]
    named = find_images(texts, lq, names=("the sharp images", "their counterparts"))
    problems += named.problems
    owners: dict[Path, SourceConfig | None] = {}
    if any(not source.is_plain for source in sources):
        # A file in several sources belongs to the first of them.
        for source in reversed(sources):
            files = [each.path for each in find_inputs([source.images], recursive=True)[0]]
            owners |= dict.fromkeys(files, source)
            owners |= dict.fromkeys(files[source.first :] if source.first else ())
    for path, partner in zip(named.images, named.partners or (None,) * len(named.images), strict=True):
        owner = owners[path] if owners else sources[0]
        if owner is not None:
            yield partial(_describe, path, partner, owner, remembered)


def _describe(path: Path, lq: Path | None, source: SourceConfig, remembered: Remembered) -> TrainingImage:
    height, width = _remembered_size(path, remembered)
    if lq is None:
        return _sized(path, (height, width), source)
    lq_height, lq_width = _remembered_size(lq, remembered)
    scale = whole_factor((height, width), (lq_height, lq_width))
    if scale is None:
        raise FileError(
            f"{lq}: {lq_width}x{lq_height} is no whole part of {path.name}'s {width}x{height}",
            "pairs have sizes of which one is a whole multiple of the other",
        )
    return TrainingImage(path, lq, height, width, scale, source.weight)


def _sized(stored: Stored, size_px: Sequence[int], source: SourceConfig) -> TrainingImage:
    height, width = reduced_size(size_px, source.resize)
    return TrainingImage(stored, None, height, width, 1, source.weight, source.resize)


def reduced_size(size_px: Sequence[int], shorter_px: int | None) -> tuple[int, int]:
    """Return height and width after the shorter side is reduced to `shorter_px`; smaller images keep their size."""
    height, width = size_px
    if shorter_px is None or min(height, width) <= shorter_px:
        return height, width
    factor = shorter_px / min(height, width)
    return round(height * factor), round(width * factor)


def _remembered_size(path: Path, remembered: Remembered) -> Sequence[int]:
    try:
        size: Sequence[int] = remembered.about("size", path, lambda: probe_image(path).size_px)
    except OSError:
        size = probe_image(path).size_px
    return size


def _describe_stored(sources: Sequence[SourceConfig], remembered: Remembered) -> Iterator[_Describe]:
    for source in sources:
        if is_files(source):
            continue
        listed = _list_members(source, remembered) if source.images.endswith(".tar") else _list_rows(source, remembered)
        for stored, size in listed:
            # The list contains the sizes that are already known.
            yield partial(_describe_one, stored, size, source)


def _describe_one(stored: Stored, size: Sequence[int] | None, source: SourceConfig) -> TrainingImage:
    return _sized(stored, size or probe_image(read_stored(stored), str(stored)).size_px, source)


def _list_members(source: SourceConfig, remembered: Remembered) -> Iterator[tuple[Member, Sequence[int] | None]]:
    left = source.first or math.inf
    for shard in _expand(source.images):
        for member, size in _index_shard(shard, remembered):
            if source.column is not None and member.name.rpartition("/")[2].partition(".")[2] != source.column:
                continue
            left -= 1
            if left < 0:
                return
            yield member, size


def _index_shard(shard: Path, remembered: Remembered) -> list[tuple[Member, Sequence[int] | None]]:
    """List the images of a shard with their sizes; None marks an unreadable header, which is read again later."""
    try:
        index = remembered.about("shard", shard, lambda: _read_index(shard))
    except (OSError, tarfile.TarError) as error:
        raise FileError(f"{shard}: is no uncompressed tar file: {reason_of(error)}") from error
    return [(Member(shard, *place), size) for place, size in index]


def _read_index(shard: Path) -> list[tuple[tuple[str, int, int], Sequence[int] | None]]:
    with tarfile.open(shard, "r:") as tar:
        places = [
            (each.name, each.offset_data, each.size)
            for each in tar
            if each.isfile() and each.name.lower().endswith(_MEMBERS)
        ]
    return [(place, _probed(Member(shard, *place))) for place in places]


def _probed(stored: Member | Row) -> Sequence[int] | None:
    try:
        return tuple(probe_image(stored.read(), str(stored)).size_px)
    except FileError:
        return None


def _expand(pattern: str) -> list[Path]:
    """List the shards of a pattern: `shards/{000..099}.tar`, a glob or a file.

    Raises:
        FileError: a shard does not exist.
    """
    texts = list(_expand_braces(pattern))
    paths = [Path(text) for text in texts]
    if len(texts) == 1 and not paths[0].is_file():
        paths = sorted(paths[0].parent.glob(paths[0].name))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise FileError(f"{missing[0] if missing else pattern} does not exist")
    return paths


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    for number in range(int(match[1]), int(match[2]) + 1):
        yield from _expand_braces(pattern[: match.start()] + str(number).zfill(len(match[1])) + pattern[match.end() :])


def _is_dataset(source: SourceConfig) -> bool:
    path = Path(source.images)
    is_saved = any((path / name).is_file() for name in _DATASET_FILES)
    return source.images.startswith(_DATASET_URL) or path.suffix in _TABLES or source.split is not None or is_saved


def _list_rows(source: SourceConfig, remembered: Remembered) -> Iterator[tuple[Row, Sequence[int] | None]]:
    split = source.split or "train"
    dataset = _open_dataset(source.images, split, source.column)
    (column,) = dataset.column_names
    count = min(len(dataset), source.first or len(dataset))
    fingerprint = str(dataset._fingerprint)
    rows = [Row(source.images, split, column, number, fingerprint) for number in range(count)]
    key = f"{fingerprint} {count}"
    sizes = remembered.find("dataset", key)
    if sizes is None:
        sizes = [_probed(row) for row in rows]
        remembered.keep("dataset", key, sizes)
    yield from zip(rows, sizes, strict=True)


@cache
def _open_dataset(name: str, split: str, column: str | None) -> Any:
    """Open a data set with only its column of images, which are not decoded.

    Raises:
        UsageError: the library is not installed, or the split or column does not exist.
        FileError: the data set cannot be read.
    """
    datasets = _import_datasets()
    path = Path(name)
    try:
        if any((path / each).is_file() for each in _DATASET_FILES):
            loaded = datasets.load_from_disk(name)
            loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        elif path.suffix in _TABLES:
            loaded = datasets.load_dataset(_TABLES[path.suffix], data_files=name, split="train")
        else:
            loaded = datasets.load_dataset(name.removeprefix(_DATASET_URL), split=split)
    # Errors of a name, the network, a file or a split.
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        reason = f"{name}: the data set cannot be opened: {reason_of(error)}"
        raise FileError(reason, "check its name and split") from error
    images = [name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)]
    chosen = [column] if column is not None else images
    if len(chosen) != 1 or chosen[0] not in images:
        listed = ", ".join(images) or "none"
        raise UsageError(f"{name}: name its column of images, which are {listed}", "set column in data.train")
    return loaded.select_columns(chosen).cast_column(chosen[0], datasets.Image(decode=False))


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"data sets need the library datasets: {reason_of(error)}", install_command("data")) from error
    return datasets
