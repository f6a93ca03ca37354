"""Where training images come from: files, shards of WebDataset and data sets of Hugging Face; how often each comes."""

from __future__ import annotations

import math
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

from omgsr_cli.datasets.crops import OnSmall, whole_factor
from omgsr_cli.errors import FileError, OmgsrError, UsageError, reason_of
from omgsr_cli.files.inputs import find_inputs
from omgsr_cli.files.pairs import find_images
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.imaging import probe_image
from omgsr_cli.packages import install_command
from omgsr_cli.training.config import SourceConfig

_DATASET_URL = "hf://datasets/"
_DATASET_FILES = ("state.json", "dataset_dict.json")
"""Of a folder that the library `datasets` has saved."""

_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_MEMBERS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".avif", ".jxl", ".heic")


class UnreadableImagesError(FileError):
    """Images whose headers cannot be read, all of them.

    Args:
        problems: one for each file.
        count: how many files were looked at.
    Attributes:
        problems, count: as given.
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
    """An image in a shard of WebDataset, an uncompressed tar file, in which it is read by its place.

    Attributes:
        shard: the tar file.
        name: of the member.
        offset: of its first byte.
        size_bytes: of its content.
    """

    shard: Path
    name: str
    offset: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def read(self) -> bytes:
        """The whole content.

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
    """An image in a data set of Hugging Face.

    Attributes:
        dataset: as for `SourceConfig.images`.
        split: of it.
        column: with the images.
        number: of the row.
        fingerprint: of the content of the data set, as the library computes it.
    """

    dataset: str
    split: str
    column: str
    number: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.dataset}: {self.split}, row {self.number}"

    def read(self) -> bytes:
        """The whole content of its file.

        Raises:
            FileError: the row has none, or it cannot be read.
        """
        cell = _open_dataset(self.dataset, self.split, self.column)[self.number][self.column]
        try:
            content: bytes = cell["bytes"] or Path(cell["path"]).read_bytes()
        except (TypeError, OSError) as error:
            raise FileError(f"{self}: has no image: {reason_of(error)}") from error
        return content


Stored = Path | Member | Row
"""A file, or an image inside of one."""


def read_stored(stored: Stored) -> Path | bytes:
    """What `read_image` and `probe_image` take."""
    return stored if isinstance(stored, Path) else stored.read()


@dataclass(frozen=True)
class TrainingImage:
    """A sharp image, and its low-quality counterpart where there is a real one.

    Attributes:
        hq: the sharp image.
        lq: the counterpart's file, or None where it is made by degradation.
        height: of the sharp image as crops are taken of it, pixels, upright.
        width: likewise.
        lq_scale: the sharp image's side over its counterpart's; 1 without one.
        weight: how often it comes, relative to others.
        resize_px: it was reduced to this shorter side; None leaves it as it is.
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
        """The sharp image, and the counterpart's file where there is one."""
        return (self.hq,) if self.lq is None else (self.hq, self.lq)


def find_training_images(
    sources: Sequence[str | SourceConfig], lq: Sequence[str] | None, least_px: int, on_small: OnSmall
) -> tuple[TrainingImage, ...]:
    """List the images to train on, from their headers. Sizes are remembered between runs and processes.

    Args:
        sources: of the sharp images; a text is the `images` of one.
        lq: folders (with what is below them), files, globs or .txt lists of counterparts with the same names but for
            their suffixes; or None.
        least_px: side of a crop.
        on_small: "skip" leaves images out whose shorter side is smaller.
    Raises:
        UnreadableImagesError: files cannot be read, or have a counterpart of another shape; it names all of them.
        OmgsrError: a counterpart is missing, a data set cannot be opened, or no image is left.
    """
    named = [SourceConfig(images=each) if isinstance(each, str) else each for each in sources]
    found: list[TrainingImage] = []
    problems: list[FileError] = []
    remembered = Remembered()
    try:
        of_files = [source for source in named if is_files(source)]
        for describe in (*_describe_files(of_files, lq, problems, remembered), *_describe_stored(named, remembered)):
            try:
                found.append(describe())
            except FileError as error:
                problems.append(error)
    finally:
        remembered.close()
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
    """Whether a source names image files, and neither shards nor a data set."""
    return not source.images.endswith(".tar") and not _is_dataset(source)


def check_source(source: SourceConfig) -> None:
    """Check that what a source names exists, without reading an image.

    Raises:
        OmgsrError: it does not, or the library that reads it is not installed.
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
    """How often each image comes in an epoch: its side over the crop's, at least once, times its weight.

    The root of the area lies between "every image alike" and "every pixel alike": a large image shows more, but
    not in proportion to its pixels.

    Args:
        images: their weights count to a hundredth.
        crop_px: side of a crop.
        by_area: False has all images alike but for their weights.
    Returns:
        Indices of images, each as often as it comes, in order.
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
        # A file that several sources name belongs to the first.
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
    """Height and width of an image whose shorter side is reduced to `shorter_px`; one that is smaller stays."""
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
            # Sizes that were read before are part of the list.
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
    """The images of a shard with their sizes; a size is None where a header cannot be read, which is tried again."""
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
    """The shards that a pattern names: `shards/{000..099}.tar`, a glob or a file.

    Raises:
        FileError: one does not exist.
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
    """A data set with its column of images alone, which are not decoded.

    Raises:
        UsageError: the library is not installed, or there is no such split or column.
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
    # Whatever is wrong with a name, the network, a file or a split.
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
