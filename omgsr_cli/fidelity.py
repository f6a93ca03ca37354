"""PSNR and SSIM: metrics of the similarity to a reference that need no weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.errors import ShapeError
from omgsr_cli.options import ColorSpace
from omgsr_cli.transfer import has_float64

SSIM_WINDOW_PX = 11
_SSIM_SIGMA_PX = 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# Keeps the PSNR of equal images finite, at 80 dB, as in pyiqa.
_MSE_FLOOR = 1e-8
# Weights of R, G, B and the black level, in levels of 8 bits. Y of YCbCr is in studio swing, 16 to 235.
_LUMA = {
    "ycbcr": ((65.481, 128.553, 24.966), 16.0),
    "yiq": ((0.299 * 255, 0.587 * 255, 0.114 * 255), 0.0),
}


def psnr(restored: Tensor, reference: Tensor, *, color_space: ColorSpace = "ycbcr", crop_border_px: int = 0) -> Tensor:
    """Peak signal-to-noise ratio in dB.

    10 log10(1 / (mse + 1e-8)), over Y in [0, 1] or over R, G and B.
    Source: the definition; Y, its range and the constant 1e-8 as in pyiqa's `psnr` with `test_y_channel=True`.
    Papers on real-world super-resolution report this value with `color_space="ycbcr"`.

    Args:
        restored: (B, 3, H, W) float, sRGB in [0, 1].
        reference: same shape.
        color_space: "ycbcr" or "yiq" for that space's Y alone, "rgb" for all three channels.
        crop_border_px: pixels that are ignored on every side.
    Returns:
        (B,) float64 on the device of `restored` (float32 if it has no float64); 80 for equal images.
    Raises:
        ShapeError: the shapes differ, are not (B, 3, H, W), or no pixels are left.
    """
    _check(restored, reference, crop_border_px, 1)
    first, second = (_planes(image, color_space, crop_border_px) / 255 for image in (restored, reference))
    mse = (first - second).square().mean((1, 2, 3))
    return -10 * torch.log10(mse + _MSE_FLOOR)


def ssim(restored: Tensor, reference: Tensor, *, color_space: ColorSpace = "ycbcr", crop_border_px: int = 0) -> Tensor:
    """Structural similarity.

    Computed on 8-bit integer levels over all 11x11 Gaussian windows (sigma 1.5) that lie inside the image, with
    C1 = (0.01*255)^2 and C2 = (0.03*255)^2; the contrast-structure term is clamped to 0 or more.
    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004,
    without the reduction of large images; rounded as in the authors' program and pyiqa's `ssim`.

    Args:
        restored: (B, 3, H, W) float, sRGB in [0, 1].
        reference: same shape.
        color_space: "ycbcr" or "yiq" for that space's Y alone, "rgb" for the mean over all three channels.
        crop_border_px: pixels that are ignored on every side.
    Returns:
        (B,) float64 on the device of `restored` (float32 if it has no float64), in [-1, 1]; 1 for equal images.
    Raises:
        ShapeError: the shapes differ, are not (B, 3, H, W), or what is left is smaller than a window.
    """
    _check(restored, reference, crop_border_px, SSIM_WINDOW_PX)
    first, second = (_planes(image, color_space, crop_border_px).round() for image in (restored, reference))
    # One convolution averages five planes: both images, their squares and their product.
    stack = torch.stack([first, second, first * first, second * second, first * second], 1)
    mean_1, mean_2, square_1, square_2, product = _window_means(stack).unbind(1)
    variances = square_1 - mean_1**2 + square_2 - mean_2**2
    structure = (2 * (product - mean_1 * mean_2) + _SSIM_C2) / (variances + _SSIM_C2)
    luminance = (2 * mean_1 * mean_2 + _SSIM_C1) / (mean_1**2 + mean_2**2 + _SSIM_C1)
    return (luminance * structure.clamp(min=0)).mean((1, 2, 3))


def _check(restored: Tensor, reference: Tensor, crop_border_px: int, least_px: int) -> None:
    if restored.shape != reference.shape:
        raise ShapeError(f"restored {tuple(restored.shape)} and reference {tuple(reference.shape)} differ in shape")
    if restored.ndim != 4 or restored.shape[1] != 3 or not restored.is_floating_point():
        raise ShapeError(f"images must be float (B, 3, H, W), not {restored.dtype} {tuple(restored.shape)}")
    if crop_border_px < 0 or min(restored.shape[-2:]) - 2 * crop_border_px < least_px:
        height, width = restored.shape[-2:]
        raise ShapeError(
            f"a border of {crop_border_px} px leaves too little of {width}x{height} px: at least "
            f"{least_px}x{least_px} px are needed"
        )


def _planes(image: Tensor, color_space: ColorSpace, crop_border_px: int) -> Tensor:
    """Convert (B, 3, H, W) in [0, 1] to (B, 1 or 3, h, w) in 8-bit levels, in the best precision of the device."""
    height, width = image.shape[-2:]
    image = image[..., crop_border_px : height - crop_border_px, crop_border_px : width - crop_border_px]
    image = image.to(torch.float64 if has_float64(image.device) else torch.float32)
    if color_space == "rgb":
        return image * 255
    weights, black = _LUMA[color_space]
    # Summed in this order instead of a matrix product, so that the rounding equals that of other libraries.
    red, green, blue = image.unbind(1)
    return (red * weights[0] + green * weights[1] + blue * weights[2] + black)[:, None]


def _window_means(planes: Tensor) -> Tensor:
    """Gaussian means of (..., H, W) over all windows inside the image: (..., H-10, W-10)."""
    offsets = torch.arange(SSIM_WINDOW_PX, dtype=torch.float64) - SSIM_WINDOW_PX // 2
    window = torch.exp(-offsets.square() / (2 * _SSIM_SIGMA_PX**2))
    window = (window / window.sum()).to(planes.dtype).to(planes.device)
    flat = planes.reshape(-1, 1, *planes.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, window.reshape(1, 1, -1, 1)), window.reshape(1, 1, 1, -1))
    return flat.reshape(*planes.shape[:-2], *flat.shape[-2:])
