"""Images that are read and written row by row, so large images never have to fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.errors import OmgsrError, reason_of
from omgsr_cli.transfer import download, upload

#: Approximate number of pixels of a band: small compared with an image, but large enough to keep the overhead low.
_BAND_PX = 1 << 20

#: Bytes of a `BandSpool` that stay in memory; the rest goes into a file.
_SPOOLED_IN_MEMORY = 256 << 20


class Rows(Protocol):
    """An image whose rows can be read in any order; they may be computed on demand."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        ...

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom, (C, bottom - top, W) float32 on the CPU; 0 <= top < bottom <= height.

        They may be a view of their source, so callers must not modify them.
        """
        ...


@dataclass(frozen=True)
class WholeRows:
    """Rows of a tensor, (C, H, W) float on any device."""

    planes: Tensor

    @property
    def size_px(self) -> tuple[int, int]:
        """See `Rows`."""
        return self.planes.shape[-2], self.planes.shape[-1]

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Rows`."""
        return self.planes[:, top:bottom].float().cpu()


class ExtendedRows:
    """The result of `extend`, computed row by row.

    Args:
        source: an image with at least one pixel.
        size_px: height and width of the result, at least those of the source plus `before_px`.
        before_px: number of pixels added above and to the left; the rest is added below and to the right.
    """

    def __init__(self, source: Rows, size_px: tuple[int, int], before_px: int = 0) -> None:
        self.size_px = size_px
        self._source, self._before = source, before_px
        self._rows = reflected(source.size_px[0], before_px, size_px[0])
        self._columns = reflected(source.size_px[1], before_px, size_px[1])

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Rows`."""
        spans = _spans(top, bottom, self.size_px[1])
        if len(spans) == 1:
            return self._read(top, bottom)
        # A few rows at a time keep the intermediate results small.
        result = None
        for first, last in spans:
            part = self._read(first, last)
            if result is None:
                result = part.new_empty(part.shape[0], bottom - top, part.shape[2])
            result[:, first - top : last - top] = part
        assert result is not None
        return result

    def _read(self, top: int, bottom: int) -> Tensor:
        rows = self._rows[top:bottom]
        first, last = int(rows.min()), int(rows.max()) + 1
        found = self._source.read(first, last)
        is_plain = last - first == len(rows) and bool((rows.diff() == 1).all())
        found = found if is_plain else found.index_select(-2, rows - first)
        width, after = found.shape[2], self.size_px[1] - found.shape[2] - self._before
        if max(self._before, after) < width:
            return F.pad(found, (self._before, after), mode="reflect") if self._before or after else found
        return found.index_select(-1, self._columns)


def extend(image: Tensor, size_px: tuple[int, int], before_px: int = 0) -> Tensor:
    """Extend an image by reflection without repeating the border, several times if needed.

    Args:
        image: (C, H, W), H and W at least 1.
        size_px: height and width of the result; the image is cropped along a side that is shorter.
        before_px: number of pixels added above and to the left; the rest is added below and to the right.
    Returns:
        (C, height, width), same dtype and device; the image itself if nothing is added.
    """
    height, width = image.shape[-2:]
    below, right = size_px[0] - height - before_px, size_px[1] - width - before_px
    if below == right == before_px == 0:
        return image
    if 0 <= below < height and 0 <= right < width and before_px < min(height, width):
        return F.pad(image[None], (before_px, right, before_px, below), mode="reflect")[0]
    # torch reflects only once, which is not enough if the border is larger than the image.
    rows, columns = (
        reflected(length, before_px, total).to(image.device)
        for length, total in ((height, size_px[0]), (width, size_px[1]))
    )
    return image.index_select(-2, rows).index_select(-1, columns)


def reflected(length: int, before: int, total: int) -> Tensor:
    """The indices -before, -before + 1, ... (`total` of them) of an axis of `length`, reflected at its ends."""
    position = torch.arange(-before, total - before)
    period = max(2 * (length - 1), 1)
    folded = position.remainder(period)
    return torch.minimum(folded, period - folded).clamp_max(length - 1)


def bands_of(rows: Rows) -> Iterator[Tensor]:
    """Read an image from top to bottom in bands (C, n, W)."""
    height, width = rows.size_px
    for top, bottom in _spans(0, height, width):
        yield rows.read(top, bottom)


def split_bands(bands: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same rows in bands that are no larger than those of `bands_of`."""
    for band in bands:
        yield from torch.split(band, max(_BAND_PX // band.shape[2], 1), dim=1)
        # Free the band before the next one is computed.
        del band


def _spans(top: int, bottom: int, width: int) -> list[tuple[int, int]]:
    count = max(_BAND_PX // width, 1)
    return [(first, min(first + count, bottom)) for first in range(top, bottom, count)]


class BandSpool:
    """Stores bands, in memory or in an unnamed temporary file, and returns them any number of times.

    Args:
        bit_depth: 8 rounds values in [0, 1] to multiples of 1/255; 16 keeps them as float32.
    """

    def __init__(self, bit_depth: int) -> None:
        self._dtype: type[Any] = np.uint8 if bit_depth == 8 else np.float32
        self._shapes: list[tuple[int, ...]] = []
        # An unnamed file disappears with this object, also after a crash.
        self._file = tempfile.SpooledTemporaryFile(_SPOOLED_IN_MEMORY)  # noqa: SIM115 - closed with the object

    def append(self, band: Tensor) -> None:
        """Add (C, n, W) float32 on any device; at 8 bits also uint8.

        Raises:
            OmgsrError: the disk is full.
        """
        if self._dtype is np.uint8 and band.dtype != torch.uint8:
            band = (band * 255).round_().to(torch.uint8)
        values = download(band)[0].numpy()
        try:
            self._file.write(np.ascontiguousarray(values).data.cast("B"))
        except OSError as error:
            raise no_room(None, error) from error
        self._shapes.append(tuple(band.shape))

    def __iter__(self) -> Iterator[Tensor]:
        """The bands in order, (C, n, W) float32 on the CPU."""
        return self.bands(torch.device("cpu"))

    def bands(self, device: torch.device) -> Iterator[Tensor]:
        """The bands in order, (C, n, W) float32 on a device."""
        self._file.flush()
        position = 0
        for shape in self._shapes:
            self._file.seek(position)
            held = bytearray(self._file.read(int(np.prod(shape)) * np.dtype(self._dtype).itemsize))
            position += len(held)
            values = upload(torch.from_numpy(np.frombuffer(held, self._dtype).reshape(shape)), device)
            yield values if self._dtype is np.float32 else values.float().div_(255)


def keeping(bands: Iterator[Tensor], kept: BandSpool) -> Iterator[Tensor]:
    """Yield the same bands and store them in `kept`."""
    for band in bands:
        kept.append(band)
        yield band


def no_room(folder: Path | None, error: OSError) -> OmgsrError:
    """The error for an image that fits neither in memory nor on the disk."""
    place = folder or tempfile.gettempdir()
    return OmgsrError(
        f"the image does not fit in memory, and {place} has no space: {reason_of(error)}",
        "allow more with --memory, or set TMPDIR to a folder on a larger disk",
    )
