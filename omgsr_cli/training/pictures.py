"""Which pictures are trained on, and where crops of them lie: headers and integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omgsr_cli.datasets.crops import OnSmall, whole_factor
from omgsr_cli.errors import FileError, OmgsrError
from omgsr_cli.files.pairs import find_pictures
from omgsr_cli.imaging import probe_picture
from omgsr_cli.training.draws import Purpose, draw_rng


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


@dataclass(frozen=True)
class TrainingPicture:
    """A sharp picture, and its low-quality counterpart where there is a real one.

    Attributes:
        hq: the sharp picture's file.
        lq: the counterpart's, or None where it is made by degradation.
        height: of the sharp picture, pixels, upright.
        width: likewise.
        lq_scale: the sharp picture's side over its counterpart's; 1 without one.
    """

    hq: Path
    lq: Path | None
    height: int
    width: int
    lq_scale: int = 1

    @property
    def files(self) -> tuple[Path, ...]:
        """The sharp picture's file, and the counterpart's where there is one."""
        return (self.hq,) if self.lq is None else (self.hq, self.lq)


def find_training_pictures(
    hq: Sequence[str], lq: Sequence[str] | None, least_px: int, on_small: OnSmall
) -> tuple[TrainingPicture, ...]:
    """List the pictures to train on, from their headers.

    Args:
        hq: folders (with what lies below them), files, globs or .txt lists.
        lq: likewise, counterparts with the same names but for their suffixes; or None.
        least_px: side of a crop.
        on_small: "skip" leaves pictures out whose shorter side is smaller.
    Raises:
        UnreadableImagesError: files cannot be read, or have a counterpart of another shape; it names all of them.
        OmgsrError: a counterpart is missing, or no picture is left.
    """
    named = find_pictures(hq, lq, names=("the sharp pictures", "their counterparts"))
    counterparts = named.partners or (None,) * len(named.pictures)
    found: list[TrainingPicture] = []
    problems = list(named.problems)
    for both in zip(named.pictures, counterparts, strict=True):
        try:
            found.append(_describe(*both))
        except FileError as error:
            problems.append(error)
    if problems:
        raise UnreadableImagesError(problems, len(found) + len(problems))
    kept = [p for p in found if on_small != "skip" or min(p.height, p.width) >= least_px]
    if not kept:
        raise OmgsrError(
            f"no picture in {', '.join(hq)} has {least_px} px on its shorter side ({len(found)} are smaller)",
            "set on_small to resize or pad, give larger pictures, or lower the resolution",
        )
    return tuple(kept)


def plan_epoch(pictures: Sequence[TrainingPicture], crop_px: int) -> tuple[int, ...]:
    """How often each picture comes in an epoch: its side over the crop's, at least once.

    The root of the area lies between "every picture alike" and "every pixel alike": a large picture holds more, but
    not as much more as it has pixels.

    Returns:
        Indices of pictures, each as often as it comes, in order.
    """
    times = [max(1, round((p.height * p.width) ** 0.5 / crop_px)) for p in pictures]
    return tuple(index for index, count in enumerate(times) for _ in range(count))


class Order:
    """The order of samples over all epochs: a new permutation for each, by the seed and the epoch's number alone.

    Sample n is the same on every process and after every interruption. Epochs follow each other without a gap: a batch
    goes on in the next one, so that none is smaller than the others and no picture is left out.
    """

    def __init__(self, epoch: Sequence[int], seed: int, purpose: Purpose = Purpose.ORDER) -> None:
        self._epoch, self._seed, self._purpose = np.array(epoch), seed, purpose
        self._kept = (-1, self._epoch)

    def picture(self, number: int) -> int:
        """Index of the picture of a sample of the run."""
        epoch, position = divmod(number, len(self._epoch))
        if self._kept[0] != epoch:
            self._kept = (epoch, draw_rng(self._seed, self._purpose, epoch).permutation(self._epoch))
        return int(self._kept[1][position])


def _describe(path: Path, lq: Path | None) -> TrainingPicture:
    height, width = probe_picture(path).size_px
    if lq is None:
        return TrainingPicture(path, None, height, width)
    lq_height, lq_width = probe_picture(lq).size_px
    scale = whole_factor((height, width), (lq_height, lq_width))
    if scale is None:
        raise FileError(
            f"{lq}: {lq_width}x{lq_height} is no whole part of {path.name}'s {width}x{height}",
            "pairs have sizes of which one is a whole multiple of the other",
        )
    return TrainingPicture(path, lq, height, width, scale)
