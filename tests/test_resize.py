"""The one resize and the one reflection, against Pillow, torch and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from omgsr_cli.imaging import FILTERS, extend, resize

IMAGE = torch.rand(3, 13, 21, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", FILTERS)
@pytest.mark.parametrize("size", [(40, 9), (5, 64), (13, 22), (1, 1)])
def test_eight_bits_are_what_pillow_gives_for_a_picture(method: str, size: tuple[int, int]) -> None:
    levels = (IMAGE * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(levels).resize((size[1], size[0]), FILTERS[method]))
    found = resize(IMAGE, size, method=method)
    assert np.array_equal((found * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), expected)


def test_sixteen_bits_are_computed_in_float() -> None:
    expected = np.asarray(Image.fromarray(IMAGE[1].numpy()).resize((28, 20), Image.Resampling.BICUBIC)).clip(0, 1)
    assert np.array_equal(resize(IMAGE, (20, 28), 16)[1].numpy(), expected)
    assert len(np.unique(expected)) > 300
    assert resize(IMAGE, (13, 21)) is IMAGE


@pytest.mark.parametrize("size", [(13, 21), (20, 30), (14, 21), (70, 23), (300, 300)])
@pytest.mark.parametrize("before", [0, 4, 15])
def test_extension_is_numpys_reflection(size: tuple[int, int], before: int) -> None:
    height, width = (max(side, own + before) for side, own in zip(size, (13, 21), strict=True))
    padding = [(0, 0), (before, height - 13 - before), (before, width - 21 - before)]
    assert np.array_equal(extend(IMAGE, (height, width), before).numpy(), np.pad(IMAGE.numpy(), padding, "reflect"))


def test_a_single_pixel_is_repeated() -> None:
    assert torch.equal(extend(IMAGE[:, :1, :1], (5, 6), 2), IMAGE[:, :1, :1].expand(3, 5, 6))
