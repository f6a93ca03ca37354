"""Which pictures a benchmark runs on, and which of them belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from omgsr_cli.errors import FileError, OmgsrError, UsageError, reason_of
from omgsr_cli.files.addresses import shown
from omgsr_cli.files.folders import natural_key
from omgsr_cli.files.found import FoundPicture
from omgsr_cli.files.inputs import find_inputs
from omgsr_cli.files.pairs import pair_by_name
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import probe_picture
from omgsr_cli.options import MAX_SCALE, MIN_SCALE

#: What the field calls the two halves of a test set, in small letters.
_LOW_NAMES = ("test_lr", "lr", "lq")
_HIGH_NAMES = ("test_hr", "hr", "gt")
_LISTED = 10


@dataclass(frozen=True)
class Case:
    """One picture of a benchmark, with all that belongs to it.

    Attributes:
        name: the stem that its files share.
        input: the low-quality picture, or None where restored ones were given without.
        reference: the high-quality picture, or None.
        given: name of a folder of restored pictures to the picture in it.
        output_px: the size that models restore to.
    """

    name: str
    input: Path | None
    reference: Path | None
    given: Mapping[str, Path] = field(default_factory=dict)
    output_px: Size | None = None


def shipped_folder() -> Path:
    """The small set that the package brings along: `lr/` with references for some of it in `hr/`."""
    return Path(str(resources.files("omgsr_cli") / "benchmark" / "pictures"))


def shipped_cases(scale: float) -> tuple[Case, ...]:
    """The small set of the package: pairs, and real low-quality pictures that have no reference."""
    folder = shipped_folder()
    high = {found.path.stem: found.path for found in _pictures(folder / "hr")}
    low = [found.path for found in _pictures(folder / "lr")]
    return _sized([Case(path.stem, path, high.get(path.stem)) for path in low], scale)


def find_cases(
    data: Path | None,
    references: Path | None,
    given: Mapping[str, Path],
    scale: float,
    *,
    recursive: bool = False,
    use_references: bool = True,
) -> tuple[Case, ...]:
    """Find the pictures of a benchmark and put those together that are called the same.

    Args:
        data: folder of low-quality pictures, or one with `test_LR/` (or `LR/`) and `test_HR/` (or `HR/`) in it.
        references: folder of high-quality pictures, or one with `test_HR/` in it.
        given: folders of restored pictures by the name that each is called.
        scale: enlargement of pictures that have no reference; those that have one are restored to its size.
        recursive: whether the folders' folders are searched too.
        use_references: whether to take the `test_HR/` that lies beside `test_LR/`.
    Raises:
        OmgsrError: files have no partner or not the partner's size; the message lists them.
    """
    if data is None and not given:
        raise UsageError("there is nothing to compare", "give --data FOLDER or --sr FOLDER")
    low_folder = None if data is None else _half(data, _LOW_NAMES)
    if references is None and data is not None and use_references and low_folder != data:
        references = _half(data, _HIGH_NAMES, missing_ok=True)
    elif references is not None:
        references = _half(references, _HIGH_NAMES)
    folders = [folder for folder in (low_folder, references, *given.values()) if folder is not None]
    pictures = {folder: _pictures(folder, recursive) for folder in folders}
    partners = {
        folder: {
            pair.name: pair.second
            for pair in pair_by_name(pictures[folders[0]], pictures[folder], names=(str(folders[0]), str(folder)))
        }
        for folder in folders
    }
    cases = [
        Case(
            stem,
            partners[low_folder][stem] if low_folder else None,
            partners[references][stem] if references else None,
            {name: partners[folder][stem] for name, folder in given.items()},
        )
        for stem in partners[folders[0]]
    ]
    return _sized(cases, scale)


def _half(folder: Path, names: Sequence[str], *, missing_ok: bool = False) -> Path | None:
    """The half of a test set in a folder, or the folder itself; None for a half that may be missing."""
    try:
        inside = {path.name.casefold(): path for path in folder.iterdir() if path.is_dir()}
    except OSError as error:
        raise FileError(f"{shown(folder)}: {reason_of(error)}", "give a folder of pictures") from error
    found = next((inside[name] for name in names if name in inside), None)
    return found or (None if missing_ok else folder)


def _pictures(folder: Path, recursive: bool = False) -> list[FoundPicture]:
    """The pictures of a folder in natural order."""
    found, problems, _ = find_inputs([str(folder)], recursive=recursive)
    if problems:
        raise problems[0]
    return sorted(found, key=lambda each: natural_key(each.path))


def _sized(cases: Sequence[Case], scale: float) -> tuple[Case, ...]:
    """Give every case the size that models restore to, and refuse those whose sizes do not belong together."""
    found, wrong = [], []
    for case in cases:
        input_px, reference_px = (path and _size(path) for path in (case.input, case.reference))
        others = [(path, _size(path)) for path in case.given.values()]
        if input_px and reference_px and not _is_enlargement(input_px, reference_px):
            wrong.append(f"{case.name} ({input_px} and its reference {reference_px})")
        wrong += [
            f"{shown(path)} ({size}, its reference {reference_px})"
            for path, size in others
            if reference_px and size != reference_px
        ]
        first_given = others[0][1] if others else None
        output = reference_px or first_given or (input_px.times(scale) if input_px else None)
        found.append(Case(case.name, case.input, case.reference, case.given, output))
    if wrong:
        raise OmgsrError(
            f"{_count(wrong)} with a size that does not fit: {_listed(wrong)}",
            "a restored picture has its reference's size, a low-quality one the same proportions",
        )
    return tuple(found)


def _size(path: Path) -> Size:
    return Size(*probe_picture(path).size_px)


def _is_enlargement(small: Size, large: Size) -> bool:
    """Whether one factor leads from a size to another, give or take one pixel of the smaller picture."""
    factor = large.height / small.height
    return MIN_SCALE <= factor <= MAX_SCALE and abs(large.width - small.width * factor) <= max(1.0, factor)


def _count(items: Sequence[str]) -> str:
    return "1 picture" if len(items) == 1 else f"{len(items)} pictures"


def _listed(items: Sequence[str]) -> str:
    rest = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
