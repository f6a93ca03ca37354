"""Find the images of a benchmark, match their files, and choose the part that is compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from omgsr_cli.benchmark.results import Failure
from omgsr_cli.errors import FileError, OmgsrError, UsageError, reason_of
from omgsr_cli.files.addresses import shown
from omgsr_cli.files.folders import natural_key
from omgsr_cli.files.inputs import FoundImage, find_inputs
from omgsr_cli.files.pairs import pair_by_name
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import probe_image
from omgsr_cli.options import MAX_SCALE, MIN_SCALE

#: Usual names of the two halves of a test set, in lower case.
_LOW_NAMES = ("test_lr", "lr", "lq")
_HIGH_NAMES = ("test_hr", "hr", "gt")
# Scales of published test sets: references without inputs may be cropped to a multiple of these.
_PUBLISHED_SCALES = (4, 2, 3, 8)
_DEFAULT_SCALE = 4.0


@dataclass(frozen=True)
class Case:
    """One image of a benchmark with its files.

    Attributes:
        name: the stem of all its files.
        input: the low-quality image; None if restored images were given without it, or if it cannot be used.
        reference: the high-quality image, or None.
        given: the image in each folder of restored images, by folder name.
        output_px: the output size of the models.
        compared_px: restored images and the reference are cropped to this size, from the top left, before they are
            compared, because published test sets crop a reference to a multiple of the scale. None compares full
            images.
        errors: why a model has no image here, by model name; the key "" means all models that restore the input.
    """

    name: str
    input: Path | None
    reference: Path | None
    given: Mapping[str, Path] = field(default_factory=dict)
    output_px: Size | None = None
    compared_px: Size | None = None
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundCases:
    """The images of a benchmark.

    Attributes:
        cases: images that can be restored or scored, in natural order.
        failures: files that cannot be used, each with the reason.
        notes: notes for the user, one line each.
    """

    cases: tuple[Case, ...]
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()


def bundled_folder() -> Path:
    """Return the folder of the bundled images: `lr/`, with references for some of them in `hr/`."""
    return Path(str(resources.files("omgsr_cli") / "benchmark" / "images"))


def bundled_cases(scale: float | None, model_scale: float | None = None) -> FoundCases:
    """Return the bundled images: pairs, and real low-quality images without a reference."""
    folder = bundled_folder()
    high = {found.path.stem: found.path for found in _images(folder / "hr")}
    low = [found.path for found in _images(folder / "lr")]
    return _measured([(path.stem, path, high.get(path.stem), {}) for path in low], scale, model_scale)


def find_cases(
    data: Path | None,
    references: Path | None,
    given: Mapping[str, Path],
    scale: float | None = None,
    *,
    model_scale: float | None = None,
    recursive: bool = False,
) -> FoundCases:
    """Find the images of a benchmark and match files of the same name.

    Args:
        data: folder of low-quality images, or a folder that contains `test_LR/` (or `LR/`) and `test_HR/` (or `HR/`).
        references: folder of high-quality images, or a folder that contains `test_HR/`.
        given: folders of restored images by their names.
        scale: scale of images without a reference; with a reference, the scale to try first. None finds it.
        model_scale: scale of images without a reference if `scale` is None.
        recursive: search subfolders.
    Raises:
        OmgsrError: files have no partner (the message lists them), or no file can be used.
    """
    if data is None and not given:
        raise UsageError("no images to compare", "use --data FOLDER or --sr FOLDER")
    low_folder = None if data is None else _half(data, _LOW_NAMES)
    if references is not None:
        references = _half(references, _HIGH_NAMES)
    elif data is not None and low_folder != data:
        references = _half(data, _HIGH_NAMES, missing_ok=True)
    folders = [folder for folder in (low_folder, references, *given.values()) if folder is not None]
    images = {folder: _images(folder, recursive) for folder in folders}
    partners = {
        folder: {
            pair.name: pair.second
            for pair in pair_by_name(images[folders[0]], images[folder], names=(str(folders[0]), str(folder)))
        }
        for folder in folders
    }
    groups = [
        (
            stem,
            partners[low_folder][stem] if low_folder else None,
            partners[references][stem] if references else None,
            {name: partners[folder][stem] for name, folder in given.items()},
        )
        for stem in partners[folders[0]]
    ]
    return _measured(groups, scale, model_scale)


def _half(folder: Path, names: Sequence[str], *, missing_ok: bool = False) -> Path | None:
    """Return the half of a test set in a folder, or the folder itself; None if it is missing and `missing_ok`."""
    try:
        inside = {path.name.casefold(): path for path in folder.iterdir() if path.is_dir()}
    except OSError as error:
        raise FileError(f"{shown(folder)}: {reason_of(error)}", "use a folder of images") from error
    found = next((inside[name] for name in names if name in inside), None)
    return found or (None if missing_ok else folder)


def _images(folder: Path, recursive: bool = False) -> list[FoundImage]:
    """Return the images of a folder in natural order."""
    found, problems, _ = find_inputs([str(folder)], recursive=recursive)
    if problems:
        raise problems[0]
    return sorted(found, key=lambda each: natural_key(each.path))


_Group = tuple[str, Path | None, Path | None, Mapping[str, Path]]


def _measured(groups: Iterable[_Group], scale: float | None, model_scale: float | None) -> FoundCases:
    """Read the sizes of all files, choose the parts to compare, and find files whose size does not fit."""
    cases, failures, cropped = [], [], []
    for group in groups:
        case, reference_px, wrong = _measure(group, scale, model_scale)
        failures += wrong
        if case.input or case.given:
            cases.append(case)
        if case.compared_px and reference_px != case.compared_px:
            cropped.append(f"{case.name} {reference_px} to {case.compared_px}")
    if failures and not cases:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise OmgsrError(
            f"no image can be used: {failures[0].line()}{more}",
            "a restored image needs the size of its reference, a low-quality image the same proportions",
        )
    notes: tuple[str, ...] = ()
    if cropped:
        count = "1 reference is" if len(cropped) == 1 else f"{len(cropped)} references are"
        more = ", ..." if len(cropped) > 1 else ""
        notes = (f"{count} cropped to a multiple of the scale, as published: {cropped[0]}{more}",)
    return FoundCases(tuple(cases), tuple(failures), notes)


def _measure(group: _Group, scale: float | None, model_scale: float | None) -> tuple[Case, Size | None, list[Failure]]:
    """Return the case of one group of files, the size of its reference, and its failures."""
    name, low, high, given = group
    failures: list[Failure] = []
    errors: dict[str, str] = {}

    def fail(key: str | None, what: str, message: str, hint: str | None) -> None:
        failures.append(Failure(what, message, hint))
        if key is not None:
            errors[key] = message

    def size_of(path: Path | None, key: str | None, what: str) -> Size | None:
        try:
            return None if path is None else Size(*probe_image(path).size_px)
        except OmgsrError as error:
            fail(key, what, error.message, error.hint)
            return None

    input_px, reference_px = size_of(low, "", f"input of {name}"), size_of(high, None, f"reference of {name}")
    restored_px = {model: size_of(path, model, f"{model} on {name}") for model, path in given.items()}
    fit = fit_to_reference(input_px, reference_px, scale) if input_px and reference_px else None
    if input_px and reference_px and fit is None:
        message = f"{input_px} does not have the proportions of its reference, {reference_px}"
        fail("", name, message, "a reference must be a multiple of its input, up to a remainder")
        input_px = None
    sizes = []
    for model, size in restored_px.items():
        if size and reference_px and not _is_restored(size, reference_px, fit, scale):
            message = f"its size is {size}, that of its reference {reference_px}"
            fail(model, f"{model} on {name}", message, "restored images need the size of their reference")
        elif size:
            sizes.append(size)
    output = fit or reference_px or (sizes[0] if sizes else None)
    if output is None and input_px:
        output = input_px.times(scale or model_scale or _DEFAULT_SCALE)
    compared = None
    if reference_px:
        heights, widths = zip(reference_px, *sizes, *([fit] if fit else []), strict=True)
        compared = Size(min(heights), min(widths))
    kept = {model: path for model, path in given.items() if model not in errors}
    inputs = low if input_px else None, high if reference_px else None
    return Case(name, *inputs, kept, output, compared, errors), reference_px, failures


def fit_to_reference(small: Size, large: Size, scale: float | None = None) -> Size | None:
    """Return the output size with which an input covers its reference; None if the two sizes do not fit.

    An integer scale is preferred, and the rest of either image is cropped: test sets crop references to a multiple of
    the scale (121x93 to 120x92, 30x23 from it), or round up (31x24). Otherwise the input is resized to the size of the
    reference, if the proportions agree within one pixel of the input.

    Args:
        small: size of the input.
        large: size of the reference.
        scale: the scale to try first.
    """
    factors = sorted({large.height // small.height, large.width // small.width})
    factors += [factor + 1 for factor in factors]
    if scale is not None and scale == int(scale):
        factors.insert(0, int(scale))
    fitting = []
    for factor in factors:
        enlarged = small.times(factor)
        left = (abs(large.height - enlarged.height), abs(large.width - enlarged.width))
        if MIN_SCALE <= factor <= MAX_SCALE and max(left) < max(factor, 2):
            # Prefer the given scale; after it, prefer cropping, as published sets do, to rounding up.
            was_cropped = (large.height // factor, large.width // factor) == small
            fitting.append((factor != scale, not was_cropped, enlarged))
    if fitting:
        return min(fitting, key=lambda each: each[:2])[2]
    ratio = large.height / small.height
    fits = MIN_SCALE <= ratio <= MAX_SCALE and abs(large.width - small.width * ratio) <= max(1.0, ratio)
    return large if fits else None


def _is_restored(size: Size, reference: Size, fit: Size | None, scale: float | None) -> bool:
    """Whether a restored image has the size of its reference, possibly cropped to a multiple of the scale."""
    scales = _PUBLISHED_SCALES if scale is None else (int(scale),) if scale == int(scale) else ()
    cropped = [Size(reference.height // s * s, reference.width // s * s) for s in scales]
    return size in (reference, fit) or (fit is None and size in cropped)
