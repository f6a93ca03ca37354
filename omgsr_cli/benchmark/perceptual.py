"""Compute metrics with pyiqa, and report every failure to load or compute a metric in one line."""

from __future__ import annotations

import importlib
import math
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor

from omgsr_cli.benchmark.metrics import KnownMetric, Weights
from omgsr_cli.errors import FileError, OmgsrError
from omgsr_cli.files.atomic import link_or_copy, scratch_folder
from omgsr_cli.models.libraries import explain_broken_torchvision
from omgsr_cli.packages import find_installation, install_command, version_of

_REACH_TIMEOUT_S = 5.0
# The seed of pyiqa's random crops; it is set before each image, so that a score does not depend on earlier images.
_SEED = 123
# Errors that libraries raise during import and construction. Any other error is a bug and shows its traceback.
_BUILD_ERRORS = (ImportError, OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError)


class MetricError(OmgsrError):
    """A metric that this machine cannot compute; others may work."""


class PyiqaMetric:
    """A loaded pyiqa metric.

    Args:
        known: the metric.
        device: the device that computes it.
        seed: seed of random choices such as crops; None uses pyiqa's own.
    Raises:
        MetricError: the metric is not available; the hint shows what to do.
    """

    def __init__(self, known: KnownMetric, device: torch.device, seed: int | None = None) -> None:
        self.name = known.info.name
        self.kind = known.info.kind
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
            self._metric: Any = pyiqa.create_metric(self.name, device=device)
        except _BUILD_ERRORS as error:
            raise _explain(error, known) from error

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score one image.

        Args:
            restored: (1, 3, H, W) float32, sRGB in [0, 1].
            reference: same shape; None for a metric without references.
        Raises:
            FileError: the metric fails on this image.
        """
        images = (restored,) if self.kind == "no-reference" or reference is None else (restored, reference)
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
            raise FileError(f"pyiqa's {self.name} fails: {_first_line(error)}") from error
        if not math.isfinite(value):
            raise FileError(f"pyiqa's {self.name} returns {value}")
        return value


def missing_weights(known: KnownMetric) -> list[Path]:
    """Return the paths of a metric's weight files that are missing on this machine."""
    return [path for weights in known.weights or () for path in [weights_path(weights)] if not path.is_file()]


def weights_path(weights: Weights) -> Path:
    """Return the path of a weight file, in the folder of torch's hub or of the Hugging Face hub."""
    if weights.place != "hub":
        return Path(torch.hub.get_dir()) / weights.place / weights.name
    found = try_to_load_from_cache(weights.name, "model.safetensors")
    if isinstance(found, str):
        return Path(found)
    return Path(constants.HF_HUB_CACHE) / f"models--{weights.name.replace('/', '--')}" / "model.safetensors"


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


def weights_identity(known: KnownMetric) -> list[list[object]]:
    """Return name, size and time of a metric's files, which identify kept scores."""
    found: list[list[object]] = []
    for weights in known.weights or ():
        path = weights_path(weights)
        state = path.stat() if path.is_file() else None
        found.append([weights.name, state and state.st_size, state and state.st_mtime_ns])
    return found


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
    missing = missing_weights(known) if known else []
    name = getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and name == "pkg_resources":
        version = version_of("setuptools")
        return MetricError(
            f"setuptools {version} has no pkg_resources, which CLIP needs",
            find_installation().reinstall("setuptools<82", None),
        )
    if isinstance(error, ModuleNotFoundError) and name:
        return MetricError(f"pyiqa needs {name}, which is not installed", install_command("metrics"))
    if "libGL" in str(error):
        installation = find_installation()
        hint = (
            f"{installation.uninstall('opencv-python')}, then {installation.reinstall('opencv-python-headless', None)}"
        )
        return MetricError("the installed OpenCV needs libGL, which is missing on this machine", hint)
    is_out_of_reach = isinstance(error, urllib.error.URLError) or (
        isinstance(error, OSError) and not _hub_answers(constants.ENDPOINT)
    )
    if known and known.weights is None and is_out_of_reach:
        return MetricError(f"its weights cannot be downloaded: {_first_line(error)}", "set HF_ENDPOINT to a mirror")
    explanation = explain_broken_torchvision(error)
    if explanation is not None:
        return MetricError(explanation.message, explanation.hint)
    if missing and isinstance(error, OSError | RuntimeError):
        return _unavailable_weights(missing)
    return MetricError(f"pyiqa {version_of('pyiqa')} fails: {type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
