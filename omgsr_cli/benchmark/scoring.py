"""Score restored images: load the metrics, apply them, and keep every score.

Every failure to load or to compute a metric of pyiqa is reported in one line.
"""

from __future__ import annotations

import importlib
import math
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor

from omgsr_cli.benchmark.metrics import CORE, KnownMetric, core_settings
from omgsr_cli.benchmark.results import Cache, Failure, key_of
from omgsr_cli.errors import FileError, OmgsrError, reason_of
from omgsr_cli.fidelity import psnr, ssim
from omgsr_cli.files.atomic import link_or_copy, scratch_folder
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import SourceImage, probe_image, read_image, write_image
from omgsr_cli.models.devices import choose_device
from omgsr_cli.models.libraries import explain_broken_torchvision
from omgsr_cli.options import BenchOptions
from omgsr_cli.packages import find_installation, install_command, version_of

_REACH_TIMEOUT_S = 5.0
# The seed of pyiqa's random crops; it is set before each image, so that a score does not depend on earlier images.
_SEED = 123
# Errors that libraries raise during import and construction. Any other error is a bug and shows its traceback.
_BUILD_ERRORS = (ImportError, OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError)

_Scored = tuple[Path, Path | None, Size | None]
"""A restored image, its reference if the metric needs one, and the size that both are cropped to from the top left."""


class MetricError(OmgsrError):
    """A metric that this machine cannot compute; others may work."""


class CoreMetric:
    """psnr or ssim, which need no weights; attributes as for `PyiqaMetric`."""

    def __init__(self, known: KnownMetric, options: BenchOptions) -> None:
        settings = core_settings(options.color_space, options.crop_border)
        self.info, self._options = replace(known.info, settings=settings), options
        self.depends_on = key_of(metric=self.info.name, settings=settings)

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score (1, 3, H, W) images in [0, 1]."""
        assert reference is not None, "used only for images with a reference"
        measure, options = {"psnr": psnr, "ssim": ssim}[self.info.name], self._options
        space, border = options.color_space, options.crop_border
        return float(measure(restored, reference, color_space=space, crop_border_px=border))


class PyiqaMetric:
    """A loaded pyiqa metric.

    Args:
        known: the metric.
        device: the device that computes it.
        seed: seed of random choices such as crops; None uses pyiqa's own.
    Attributes:
        info: the meaning of its scores, with their settings.
        depends_on: hash of everything except the images that a score depends on.
    Raises:
        MetricError: the metric is not available; the hint shows what to do.
    """

    def __init__(self, known: KnownMetric, device: torch.device, seed: int | None = None) -> None:
        self.info = known.info
        if find_spec("pyiqa") is None:
            missing = missing_weights(known)
            weights = f", then put {_places(missing)} unless they can be downloaded" if missing else ""
            hint = f"{install_command('metrics')} (its licence is non-commercial){weights}"
            raise MetricError("pyiqa is not installed", hint)
        try:
            pyiqa: Any = importlib.import_module("pyiqa")
        except _BUILD_ERRORS as error:
            raise _explain(error, None) from error
        _check_weights(known)
        self._seed = _SEED if seed is None else seed
        try:
            self._metric: Any = pyiqa.create_metric(self.info.name, device=device)
        except _BUILD_ERRORS as error:
            raise _explain(error, known) from error
        versions = {library: version_of(library) for library in ("pyiqa", "torch", "torchvision", "timm")}
        files = [(path.name, *_size_and_time(path)) for path in map(weights_path, known.weights or ())]
        self.depends_on = key_of(metric=self.info.name, device=device.type, versions=versions, weights=files, seed=seed)

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score one image.

        Args:
            restored: (1, 3, H, W) float32, sRGB in [0, 1].
            reference: same shape; None for a metric without references.
        Raises:
            FileError: the metric fails on this image.
        """
        images = (restored,) if self.info.kind == "no-reference" or reference is None else (restored, reference)
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(self._seed)
            return self._number(*images)

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        """Score all images of a model together, against all references if the metric uses them.

        Raises:
            FileError: the metric fails on these images.
        """
        with scratch_folder() as scratch:
            folders = [Path(scratch, name) for name in ("restored", "references")]
            for folder, paths in zip(folders, (restored, references), strict=True):
                folder.mkdir()
                for number, path in enumerate(paths):
                    link_or_copy(path.resolve(), folder / f"{number:06d}{path.suffix.lower()}")
            asked = folders if references else folders[:1]
            return self._number(*map(str, asked), num_workers=0, verbose=False)

    def _number(self, *arguments: object, **options: object) -> float:
        try:
            answer = self._metric(*arguments, **options)
            # Some metrics return several named numbers, the score first.
            value = float(next(iter(answer.values())) if isinstance(answer, Mapping) else answer)
        except (RuntimeError, ValueError, LookupError, AssertionError, TypeError, OSError) as error:
            raise FileError(f"pyiqa's {self.info.name} fails: {reason_of(error)}") from error
        if not math.isfinite(value):
            raise FileError(f"pyiqa's {self.info.name} returns {value}")
        return value


ReadyMetric = CoreMetric | PyiqaMetric
"""A loaded metric."""


def make_metrics(chosen: Sequence[KnownMetric], options: BenchOptions) -> tuple[list[ReadyMetric], list[Failure]]:
    """Load every metric that this machine can compute, in the given order; return the others as failures."""
    device = choose_device(options.device)
    ready: list[ReadyMetric] = []
    failed: dict[tuple[str, str | None], list[str]] = {}
    for known in chosen:
        try:
            is_core = known.info.name in CORE
            ready.append(CoreMetric(known, options) if is_core else PyiqaMetric(known, device, options.seed))
        except MetricError as error:
            failed.setdefault((error.message, error.hint), []).append(known.info.name)
    return ready, [Failure(", ".join(names), message, hint) for (message, hint), names in failed.items()]


@dataclass
class Scorebook:
    """Scores images with the loaded metrics; each pair of files is scored only once across runs.

    Attributes:
        metrics: the loaded metrics.
        cache: cache of scores.
        failed: (metric name, file or model, reason), in order.
    """

    metrics: Sequence[ReadyMetric]
    cache: Cache
    failed: list[tuple[str, str, str]] = field(default_factory=list)

    def score(self, restored: Path, reference: Path | None, compared_px: Size | None = None) -> dict[str, float | None]:
        """Return all scores of one image; None if a metric fails, or needs a reference and none exists.

        Args:
            restored: the image.
            reference: the high-quality image, or None.
            compared_px: the size that both are cropped to, from the top left; None compares full images.
        """

        @cache
        def read(path: Path) -> Tensor:
            return _cropped(read_image(path).rgb, compared_px)[None].clamp(0, 1)

        def compute(metric: ReadyMetric, needed: Path | None) -> float:
            return metric.score(read(restored), read(needed) if needed else None)

        found: dict[str, float | None] = {}
        for metric in (metric for metric in self.metrics if not metric.info.scores_sets):
            needed = reference if metric.info.needs_references else None
            found[metric.info.name] = None
            if needed or not metric.info.needs_references:
                # The name of a restored file is a hash, so prefer the name of the reference in errors.
                found[metric.info.name] = self._once(
                    metric, [(restored, needed, compared_px)], str(needed or restored), partial(compute, metric, needed)
                )
        return found

    def score_set(self, metric: ReadyMetric, images: Sequence[_Scored], model: str) -> float | None:
        """Return one score for all images of a model with a metric of sets; None if it fails."""
        if len(images) < 2:
            what = "images with references" if metric.info.needs_references else "images"
            self.failed.append((metric.info.name, model, f"needs at least two {what}"))
            return None

        def compute() -> float:
            assert not isinstance(metric, CoreMetric), "which scores no sets"
            with scratch_folder() as scratch:
                restored = [_cropped_file(path, size, scratch) for path, _, size in images]
                references = [_cropped_file(path, size, scratch) for _, path, size in images if path]
                return metric.score_set(restored, references)

        return self._once(metric, images, model, compute)

    def _once(
        self, metric: ReadyMetric, images: Sequence[_Scored], place: str, compute: Callable[[], float]
    ) -> float | None:
        """Return the kept score of images, or compute it; None if this fails."""
        content = self.cache.content
        try:
            files = [[content(path), other and content(other), size and list(size)] for path, other, size in images]
            key = key_of(metric=metric.depends_on, images=files)
            value: float | None = self.cache.find("score", key)
            if value is None:
                value = compute()
                self.cache.keep("score", key, value)
        except OmgsrError as error:
            self.failed.append((metric.info.name, place, error.message))
            return None
        return value


def scoring_failures(failed: Sequence[tuple[str, str, str]]) -> list[Failure]:
    """Return one failure for each metric that fails on some images."""
    found = []
    for name in dict.fromkeys(name for name, _, _ in failed):
        (first, reason), *others = [(place, reason) for metric, place, reason in failed if metric == name]
        more = f" and {len(others)} more" if others else ""
        found.append(Failure(name, f"no score for {first}{more}: {reason}"))
    return found


def _cropped(image: Tensor, size: Size | None) -> Tensor:
    return image if size is None else image[..., : size.height, : size.width]


def _cropped_file(path: Path, size: Size | None, scratch: Path) -> Path:
    """Return the file itself, or a copy of the part that is compared."""
    if size is None or tuple(probe_image(path).size_px) == tuple(size):
        return path
    copy = scratch / f"{len(list(scratch.iterdir())):06d}.png"
    write_image(SourceImage(_cropped(read_image(path).rgb, size)), copy, format="png", metadata="none")
    return copy


def missing_weights(known: KnownMetric) -> list[Path]:
    """Return the paths of a metric's weight files that are missing on this machine."""
    return [path for path in map(weights_path, known.weights or ()) if not path.is_file()]


def weights_path(name: str) -> Path:
    """Return the path of a weight file (see `KnownMetric`) in the folder of torch's hub or of the Hugging Face hub."""
    place, _, repository = name.partition(":")
    if place != "hub":
        return Path(torch.hub.get_dir()) / name
    found = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(found, str):
        return Path(found)
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "model.safetensors"


def missing_requirements(chosen: Sequence[KnownMetric]) -> str:
    """Return one line about what the default metrics lack; empty if everything is on this machine."""
    missing = [path for known in chosen for path in missing_weights(known)]
    if find_spec("pyiqa") is None:
        needed = "pyiqa and its weights" if missing else "pyiqa"
        return f"they need {needed}: {install_command('metrics')} (its licence is non-commercial)"
    if missing:
        names = ",".join(known.info.name for known in chosen)
        return f"they need {' and '.join(path.name for path in missing)}, which --metrics {names} downloads"
    return ""


def _size_and_time(path: Path) -> tuple[int | None, int | None]:
    state = path.stat() if path.is_file() else None
    return (None, None) if state is None else (state.st_size, state.st_mtime_ns)


def _check_weights(known: KnownMetric) -> None:
    """Check a metric's weight files before pyiqa does, because pyiqa waits long without a network."""
    missing = missing_weights(known)
    if missing and not _hub_answers(constants.ENDPOINT):
        raise _unavailable_weights(missing)
    for path in map(weights_path, known.weights or ()):
        if path.is_file() and path.suffix in (".pth", ".pt"):
            with path.open("rb") as file:
                is_old = file.read(2) == b"\x80\x02"
            # A valid file is a torch archive or uses torch's older format; an HTML error page is neither.
            if not is_old and not zipfile.is_zipfile(path):
                raise MetricError(f"its weights {path} are corrupt", "remove the file; it is then downloaded again")


def _places(missing: Sequence[Path]) -> str:
    return " and ".join(f"{path.name} into {path.parent}" for path in missing)


def _unavailable_weights(missing: Sequence[Path]) -> MetricError:
    return MetricError(
        f"its weights are not on this machine and {constants.ENDPOINT} does not answer",
        f"put {_places(missing)}, or set HF_ENDPOINT to a mirror",
    )


@cache
def _hub_answers(endpoint: str) -> bool:
    """Whether weights can be downloaded; any response counts."""
    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _explain(error: BaseException, known: KnownMetric | None) -> MetricError:
    """Return an error that explains in one line why pyiqa cannot be imported or a metric cannot be loaded."""
    installation, name = find_installation(), getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and name == "pkg_resources":
        reason = f"setuptools {version_of('setuptools')} has no pkg_resources, which CLIP needs"
        return MetricError(reason, installation.reinstall("setuptools<82", None))
    if isinstance(error, ModuleNotFoundError) and name:
        return MetricError(f"pyiqa needs {name}, which is not installed", install_command("metrics"))
    if "libGL" in str(error):
        headless = installation.reinstall("opencv-python-headless", None)
        hint = f"{installation.uninstall('opencv-python')}, then {headless}"
        return MetricError("the installed OpenCV needs libGL, which is missing on this machine", hint)
    is_out_of_reach = isinstance(error, urllib.error.URLError) or (
        isinstance(error, OSError) and not _hub_answers(constants.ENDPOINT)
    )
    if known and known.weights is None and is_out_of_reach:
        return MetricError(f"its weights cannot be downloaded: {reason_of(error)}", "set HF_ENDPOINT to a mirror")
    explanation = explain_broken_torchvision(error)
    if explanation is not None:
        return MetricError(explanation.message, explanation.hint)
    missing = missing_weights(known) if known else []
    if missing and isinstance(error, OSError | RuntimeError):
        return _unavailable_weights(missing)
    return MetricError(f"pyiqa {version_of('pyiqa')} fails: {type(error).__name__}: {reason_of(error)}")
