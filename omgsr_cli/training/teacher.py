"""A teacher: a network whose pictures, with the photograph's own low frequencies, are what the model learns to give.

Its pictures are kept on disk by the content of what it saw, so that a slow teacher is paid once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from torch import Tensor

from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.files.manifest import read_entry
from omgsr_cli.geometry import round_up
from omgsr_cli.imaging import from_samples, resize, to_samples
from omgsr_cli.models.foreign import read_foreign_network
from omgsr_cli.models.loading import load_found
from omgsr_cli.models.sources import find_model

Restore = Callable[[Tensor, int, int], Tensor]
"""Of (3, h, w) in [0, 1] and the height and width wanted, to (3, height, width) in [0, 1], on the CPU."""

LowFrequencies = Literal["hq", "none"]


def load_teacher(model: str, device: torch.device, precision: Literal["fp32", "bf16"] = "fp32") -> Restore:
    """Read a teacher.

    Args:
        model: a preset, a model's folder or hub repository, or a file that spandrel reads.
        device: where it runs.
        precision: of its convolutions.
    Raises:
        ModelError: it cannot be read.
    """
    path = Path(model)
    if path.is_file():
        network = read_foreign_network(path)
        network.to(device).eval()
        network.model.to(memory_format=torch.channels_last)

        def restore(lq: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                made: Tensor = network(lq[None].to(device))[0]
            return made.float().clamp(0, 1).cpu()

        return torch.inference_mode()(lambda lq, height, width: resize(restore(lq), (height, width)))
    restorer = load_found(find_model(model), device=str(device), precision=precision)
    multiple = restorer.info.multiple_of_px

    def restore_enlarged(lq: Tensor, height: int, width: int) -> Tensor:
        enlarged = resize(lq, (height, width))[None] * 2 - 1
        below, beside = round_up(height, multiple) - height, round_up(width, multiple) - width
        padded = F.pad(enlarged, (0, beside, 0, below), "replicate").to(device)
        made = restorer.decode(restorer.restore(restorer.encode(padded)))
        return made[0, :, :height, :width].float().mul(0.5).add(0.5).clamp(0, 1).cpu()

    return torch.inference_mode()(restore_enlarged)


def identify_teacher(model: str, precision: Literal["fp32", "bf16"] = "fp32") -> str:
    """Tell a teacher from every other by its content and its precision.

    Raises:
        ModelError: it is not there.
        FileError: its files cannot be read.
    """
    path = Path(model)
    source = None if path.is_file() else find_model(model)
    folders = [] if source is None else [source.folder, *([source.adapter] if source.adapter else [])]
    files = [path] if source is None else [f for folder in folders for f in sorted(folder.rglob("*.safetensors"))]
    try:
        text = "\n".join(read_entry(file).sha256 for file in files)
    except OSError as error:
        raise FileError(f"{model} cannot be read: {reason_of(error)}") from error
    return hashlib.sha256(f"{precision}\n{text}".encode()).hexdigest()[:16]


def teacher_target(taught: Tensor, hq: Tensor, sigma_px: float, low_frequencies: LowFrequencies = "hq") -> Tensor:
    """Give the teacher's picture the photograph's own low frequencies: T = t + G * (hq - t).

    Args:
        taught: (3, H, W) float32, the teacher's picture, any range.
        hq: same shape and range, the sharp picture.
        sigma_px: of the Gaussian G; edges are repeated.
        low_frequencies: "hq" as above, or "none", which leaves the teacher's picture as it is.
    Returns:
        (3, H, W) float32, not clamped.
    """
    if low_frequencies == "none":
        return taught
    return taught + _blur(hq - taught, sigma_px)


class KeptPictures:
    """A teacher's pictures on disk, one PNG for each low-quality crop that it saw.

    Args:
        folder: is made if it is missing; several runs may share it.
        teacher: what `identify_teacher` gave.
    """

    def __init__(self, folder: Path, teacher: str) -> None:
        self.folder, self.teacher = folder, teacher

    def path(self, lq: Tensor, height: int, width: int) -> Path:
        """Where the picture of (3, h, w) in whole levels of 1/255, enlarged to height and width, lies or would lie."""
        text = f"{self.teacher} {tuple(lq.shape)} {height} {width}\n".encode()
        return self.folder / f"{hashlib.sha256(text + to_samples(lq, 8).tobytes()).hexdigest()[:32]}.png"

    def read(self, lq: Tensor, height: int, width: int) -> Tensor:
        """Give a kept picture: (3, height, width) float32 in [0, 1].

        Raises:
            FileError: it is not there or cannot be read.
        """
        path = self.path(lq, height, width)
        try:
            with Image.open(path) as image:
                return from_samples(np.array(image.convert("RGB")))
        except OSError as error:
            raise FileError(f"the teacher's picture {path} cannot be read: {error}", "begin the run again") from error

    def keep(self, lq: Tensor, height: int, width: int, restore: Restore) -> bool:
        """Ask the teacher for a picture that is not there yet; whether it was asked.

        Raises:
            FileError: the picture cannot be written.
        """
        path = self.path(lq, height, width)
        if path.is_file():
            return False
        picture = to_samples(restore(lq, height, width), 8)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(partial, "PNG", compress_level=1)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise FileError(f"the teacher's picture {path} cannot be written: {reason_of(error)}") from error
        return True


def _blur(image: Tensor, sigma_px: float) -> Tensor:
    """Blur (3, H, W) by a Gaussian that ends at three sigma, repeating edges."""
    reach = max(1, round(3 * sigma_px))
    taps = torch.arange(-reach, reach + 1, dtype=torch.float32).div(sigma_px).square().mul(-0.5).exp()
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    rows = F.conv2d(F.pad(image[:, None], (reach, reach, 0, 0), "replicate"), taps)
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), "replicate"), taps.transpose(2, 3))[:, 0]
