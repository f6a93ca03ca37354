"""A teacher: a network whose images, with the low frequencies of the photograph, are training targets.

Its images are cached on disk under a key of the crop's definition, so that a slow teacher runs once per crop.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from torch import Tensor

from omgsr_cli.errors import FileError, NotFiniteError, reason_of
from omgsr_cli.files.atomic import partial_file
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.geometry import round_up
from omgsr_cli.imaging import from_samples, resize, to_samples
from omgsr_cli.models.loading import load_found
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions
from omgsr_cli.training.config import TeacherConfig

Restore = Callable[[Tensor, int, int], Tensor]
"""Function of (3, h, w) in [0, 1], the output height and width; it returns (3, height, width) in [0, 1] on the CPU."""


def load_teacher(model: str, device: torch.device, precision: Literal["fp32", "bf16"] = "fp32") -> Restore:
    """Load a teacher.

    Args:
        model: a preset, a model's folder or hub repository, or a file that spandrel reads.
        device: device of the teacher.
        precision: precision of its convolutions.
    Raises:
        ModelError: the teacher cannot be read.
    """
    restorer = load_found(find_model(ModelOptions(model=model)), device=str(device), precision=precision)
    multiple, takes_lq = restorer.info.multiple_of_px, restorer.info.input == "lq"

    def restore(lq: Tensor, height: int, width: int) -> Tensor:
        given = lq if takes_lq else resize(lq, (height, width))
        high, wide = given.shape[1:]
        padding = (0, round_up(wide, multiple) - wide, 0, round_up(high, multiple) - high)
        padded = F.pad(given[None] * 2 - 1, padding, "replicate").to(device)
        made = restorer.decode(restorer.restore(restorer.encode(padded)))
        _check_finite(made, model)
        inside = made[0, :, : high * restorer.info.factor, : wide * restorer.info.factor]
        return resize(inside.float().mul(0.5).add(0.5).clamp(0, 1).cpu(), (height, width))

    return torch.inference_mode()(restore)


def _check_finite(made: Tensor, model: str) -> None:
    if not bool(made.isfinite().all()):
        raise NotFiniteError(f"the teacher {model} returns values that are not finite", "set its precision to fp32")


def identify_teacher(model: str, precision: Literal["fp32", "bf16"] = "fp32") -> str:
    """Compute a teacher's identifier from its weights and configuration files, its record and its precision.

    Raises:
        ModelError: the teacher does not exist.
        FileError: its files cannot be read.
    """
    source = find_model(ModelOptions(model=model))
    places = [place for place in (source.folder, source.adapter, source.vae) if place is not None]
    with closing(Remembered()) as remembered:
        text = f"{precision}\n{source.record.model_dump_json()}\n{remembered.contents(places)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def teacher_target(taught: Tensor, hq: Tensor, sigma_px: float) -> Tensor:
    """Replace the low frequencies of the teacher's image by those of the photograph: T = t + G * (hq - t).

    Args:
        taught: (3, H, W) float32, the teacher's image, any range.
        hq: same shape and range, the high-quality image.
        sigma_px: standard deviation of the Gaussian G in px; edges are repeated.
    Returns:
        (3, H, W) float32, not clamped.
    """
    return taught + blur_gaussian(hq - taught, sigma_px)


class TeacherImages:
    """A teacher's images on disk, one PNG per crop.

    Args:
        config: the [loss.teacher] section; several runs may share its folder.
        teacher: result of `identify_teacher`.
    """

    def __init__(self, config: TeacherConfig, teacher: str) -> None:
        self.config, self.folder, self._teacher = config, Path(config.cache), teacher

    def path(self, crop: str) -> Path:
        """Return the path of the image of a crop, named by its key; it may not exist yet."""
        return self.folder / f"{hashlib.sha256(f'{self._teacher} {crop}'.encode()).hexdigest()[:32]}.png"

    def read(self, crop: str, size_px: tuple[int, int]) -> Tensor:
        """Read a cached image of the required height and width: (3, H, W) float32 in [0, 1].

        Raises:
            FileError: the image does not exist, cannot be read or has another size; its file is then removed.
        """
        path = self.path(crop)
        try:
            with Image.open(path) as image:
                taught = from_samples(np.array(image.convert("RGB")))
            if tuple(taught.shape[1:]) != size_px:
                raise OSError(f"it has {taught.shape[2]}x{taught.shape[1]} px, not {size_px[1]}x{size_px[0]}")
        except (OSError, SyntaxError) as error:
            path.unlink(missing_ok=True)
            raise FileError(
                f"the teacher's image {path} cannot be read: {error}",
                "run the command again: the teacher makes a new one",
            ) from error
        return taught

    def make(self, crop: str, lq: Tensor, height: int, width: int, restore: Restore) -> None:
        """Restore the low-quality crop (3, h, w) in [0, 1] to a height and width in px, and cache the image.

        Raises:
            FileError: the image cannot be written.
        """
        path = self.path(crop)
        image = to_samples(restore(lq, height, width), 8)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial_file(path) as partial:
                Image.fromarray(image).save(partial, "PNG", compress_level=1)
                os.replace(partial, path)
        except OSError as error:
            raise FileError(f"the teacher's image {path} cannot be written: {reason_of(error)}") from error


def blur_gaussian(image: Tensor, sigma_px: float) -> Tensor:
    """Blur (3, H, W) with a Gaussian that is truncated at three sigma; edges are repeated."""
    reach = max(1, round(3 * sigma_px))
    taps = torch.arange(-reach, reach + 1, dtype=torch.float32).div(sigma_px).square().mul(-0.5).exp()
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    rows = F.conv2d(F.pad(image[:, None], (reach, reach, 0, 0), "replicate"), taps)
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), "replicate"), taps.transpose(2, 3))[:, 0]
