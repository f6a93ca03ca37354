"""The metrics that pyiqa computes; whatever can go wrong on the way to them is one line."""

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
from omgsr_cli.benchmark.results import Failure
from omgsr_cli.errors import FileError, OmgsrError
from omgsr_cli.files.atomic import scratch_folder
from omgsr_cli.models.libraries import explain_broken_torchvision
from omgsr_cli.packages import install_command, version_of

_REACH_TIMEOUT_S = 5.0
# What pyiqa draws crops by; set before each image, so that a score does not depend on those before it.
_SEED = 123
# What libraries raise while they are imported and built. Whatever else comes is a bug, and shows its traceback.
_BUILD_ERRORS = (ImportError, OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError)


class MetricError(OmgsrError):
    """A metric that this machine cannot compute; others may work."""

    def failure(self, metric: str) -> Failure:
        """The record of it for a report."""
        return Failure(metric, self.message, self.hint)


class PyiqaMetric:
    """One metric of pyiqa, loaded.

    Args:
        known: which.
        device: where it computes.
        seed: of what it draws, such as crops; None takes pyiqa's own.
    Raises:
        MetricError: it cannot be had; message and hint say why and what to do.
    """

    def __init__(self, known: KnownMetric, device: torch.device, seed: int | None = None) -> None:
        self.name = known.info.name
        self.kind = known.info.kind
        if find_spec("pyiqa") is None:
            raise _not_installed(known)
        pyiqa = _import_pyiqa()
        check_weights(known)
        self._seed = _SEED if seed is None else seed
        try:
            self._metric: Any = pyiqa.create_metric(self.name, device=device)
        except _BUILD_ERRORS as error:
            raise _explain(error, known) from error

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score one image.

        Args:
            restored: (1, 3, H, W) float32, sRGB in [0, 1].
            reference: same shape; None for a metric that needs none.
        Raises:
            FileError: the metric does not work on this image.
        """
        images = (restored,) if self.kind == "no-reference" or reference is None else (restored, reference)
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(self._seed)
            return self._number(*images)

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        """Score all images of a model together, against all references; a metric that needs none gets none.

        Raises:
            FileError: the metric does not work on these images.
        """
        with scratch_folder() as scratch:
            folders = [Path(scratch, name) for name in ("restored", "references")]
            for folder, paths in zip(folders, (restored, references), strict=True):
                folder.mkdir()
                for number, path in enumerate(paths):
                    (folder / f"{number:06d}{path.suffix.lower()}").symlink_to(path.resolve())
            asked = folders if references else folders[:1]
            return self._number(*map(str, asked), num_workers=0, verbose=False)

    def _number(self, *arguments: object, **options: object) -> float:
        try:
            answer = self._metric(*arguments, **options)
            # Some give several numbers by name, the score first.
            value = float(next(iter(answer.values())) if isinstance(answer, Mapping) else answer)
        except (RuntimeError, ValueError, LookupError, AssertionError, TypeError, OSError) as error:
            raise FileError(f"pyiqa's {self.name} fails on it: {_first_line(error)}") from error
        if not math.isfinite(value):
            raise FileError(f"pyiqa's {self.name} gives {value} for it")
        return value


def missing_weights(known: KnownMetric) -> list[Path]:
    """The files of weights of a metric that are not on this machine, at the place where they belong."""
    return [path for weights in known.weights or () for path in [weights_path(weights)] if not path.is_file()]


def weights_path(weights: Weights) -> Path:
    """Where a file of weights is, or would be: the folders are those of torch's hub and of the Hugging Face hub."""
    if weights.place != "hub":
        return Path(torch.hub.get_dir()) / weights.place / weights.name
    found = try_to_load_from_cache(weights.name, "model.safetensors")
    if isinstance(found, str):
        return Path(found)
    return Path(constants.HF_HUB_CACHE) / f"models--{weights.name.replace('/', '--')}" / "model.safetensors"


def check_weights(known: KnownMetric) -> None:
    """Look at a metric's files of weights before pyiqa does, which waits long where there is no network.

    Raises:
        MetricError: some are missing and cannot be fetched, or broken.
    """
    missing = missing_weights(known)
    if missing and not _hub_answers(constants.ENDPOINT):
        raise _cannot_be_had(missing)
    for weights in known.weights or ():
        path = weights_path(weights)
        if path.is_file() and path.suffix in (".pth", ".pt") and not _is_whole(path):
            raise MetricError(f"its weights {path} are broken", "remove the file; it is fetched again")


def what_is_lacking(chosen: Sequence[KnownMetric]) -> str:
    """What metrics that nobody asked for by name would need, in one line; empty where all is on this machine."""
    missing = [path for known in chosen for path in missing_weights(known)]
    if find_spec("pyiqa") is None:
        needed = "pyiqa and its weights" if missing else "pyiqa"
        return f"they need {needed}: {install_command('metrics')} (its licence is non-commercial)"
    if missing:
        names = ",".join(known.info.name for known in chosen)
        return f"they need {' and '.join(path.name for path in missing)}, which --metrics {names} fetches"
    return ""


def weights_identity(known: KnownMetric) -> list[list[object]]:
    """Name, size and time of a metric's files, on which kept scores depend."""
    found: list[list[object]] = []
    for weights in known.weights or ():
        path = weights_path(weights)
        state = path.stat() if path.is_file() else None
        found.append([weights.name, state and state.st_size, state and state.st_mtime_ns])
    return found


def _not_installed(known: KnownMetric) -> MetricError:
    missing = missing_weights(known)
    weights = f", then {_places(missing)} unless it can be fetched" if missing else ""
    return MetricError(
        "pyiqa is not installed", f"{install_command('metrics')} (its licence is non-commercial){weights}"
    )


def _places(missing: Sequence[Path]) -> str:
    return " and ".join(f"{path.name} into {path.parent}" for path in missing)


def _cannot_be_had(missing: Sequence[Path]) -> MetricError:
    return MetricError(
        f"its weights are not on this machine and {constants.ENDPOINT} does not answer",
        f"put {_places(missing)}, or set HF_ENDPOINT to a mirror",
    )


@cache
def _hub_answers(endpoint: str) -> bool:
    """Whether weights could be fetched at all; any answer counts."""
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


def _is_whole(path: Path) -> bool:
    """Whether a file is torch's archive with its end, or its older kind; a page of an error is neither."""
    with path.open("rb") as file:
        return file.read(2) == b"\x80\x02" or zipfile.is_zipfile(path)


def _import_pyiqa() -> Any:
    try:
        return importlib.import_module("pyiqa")
    except _BUILD_ERRORS as error:
        raise _explain(error, None) from error


def _explain(error: BaseException, known: KnownMetric | None) -> MetricError:
    """Say in one line why pyiqa could not be imported or a metric of it not be made."""
    missing = missing_weights(known) if known else []
    name = getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and name == "pkg_resources":
        version = version_of("setuptools")
        return MetricError(
            f"setuptools {version} has no pkg_resources, which CLIP needs", "pip install 'setuptools<82'"
        )
    if isinstance(error, ModuleNotFoundError) and name:
        return MetricError(f"pyiqa needs {name}, which is not installed", install_command("metrics"))
    if "libGL" in str(error):
        hint = "pip uninstall opencv-python, then pip install opencv-python-headless"
        return MetricError("the installed opencv needs libGL, which this machine lacks", hint)
    is_out_of_reach = isinstance(error, urllib.error.URLError) or (
        isinstance(error, OSError) and not _hub_answers(constants.ENDPOINT)
    )
    if known and known.weights is None and is_out_of_reach:
        return MetricError(f"its weights cannot be fetched: {_first_line(error)}", "set HF_ENDPOINT to a mirror")
    explanation = explain_broken_torchvision(error)
    if explanation is not None:
        return MetricError(explanation.message, explanation.hint)
    if missing and isinstance(error, OSError | RuntimeError):
        return _cannot_be_had(missing)
    return MetricError(f"pyiqa {version_of('pyiqa')} fails: {type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
