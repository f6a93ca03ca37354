"""The discriminators: small trained heads on each level of a frozen feature network, or a separate U-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from omgsr_cli.errors import UsageError
from omgsr_cli.training.config import GanConfig
from omgsr_cli.training.perceptual import FeatureNet
from omgsr_cli.transfer import upload

_LARGEST_SHIFT = 1 / 8
"""Largest translation as a fraction of the side."""

_CUTOUT = 1 / 2
"""Side of the cut-out as a fraction of the image's side."""


Draws = Sequence[torch.Generator]
"""One CPU generator per image, so that the augmentation of a sample does not depend on the device or the batch."""


def augment(images: Tensor, changes: Sequence[str], draws: Draws) -> Tensor:
    """Augment each image of a batch at random, one change (of CHANGES) after the other.

    Args:
        images: (B, 3, H, W) float, sRGB in [-1, 1].
        changes: names of the changes, in order.
        draws: generators of all random numbers.
    Returns:
        The same shape and dtype; not clamped.
    """
    for change in changes:
        images = _FUNCTIONS[change](images, draws)
    return images


def change_color(images: Tensor, draws: Draws) -> Tensor:
    """Add a brightness in [-0.5, 0.5], multiply the saturation by [0, 2] and the contrast by [0.5, 1.5]."""
    brightness, saturation, contrast = _uniform(3, images, draws).unbind()
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * 2) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def translate(images: Tensor, draws: Draws) -> Tensor:
    """Translate each image by up to an eighth of its side in each direction; fill with zeros, which are mid-grey."""
    height, width = images.shape[2:]
    largest = [int(side * _LARGEST_SHIFT + 0.5) for side in (height, width)]
    tops, lefts = (_integers(2 * most + 1, draws) for most in largest)
    padded = F.pad(images, (largest[1], largest[1], largest[0], largest[0]))
    moved = [
        image[:, top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack(moved)


def cut_out(images: Tensor, draws: Draws) -> Tensor:
    """Set a rectangle of half the sides, with its centre anywhere in the image, to zero, which is mid-grey."""
    kept = torch.ones(len(images), 1, *images.shape[2:], dtype=images.dtype)
    sizes = [int(side * _CUTOUT + 0.5) for side in images.shape[2:]]
    # The centre of a rectangle of even size is between two pixels, which allows one more position.
    rows, columns = (_integers(side + 1 - size % 2, draws) for side, size in zip(images.shape[2:], sizes, strict=True))
    for mask, row, column in zip(kept, rows, columns, strict=True):
        top, left = row - sizes[0] // 2, column - sizes[1] // 2
        mask[:, max(0, top) : top + sizes[0], max(0, left) : left + sizes[1]] = 0
    return images * upload(kept, images.device)


_FUNCTIONS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "color": change_color,
    "translation": translate,
    "cutout": cut_out,
}

CHANGES = tuple(_FUNCTIONS)
"""Names of the changes, in the published order."""


def _uniform(count: int, images: Tensor, draws: Draws) -> Tensor:
    """Draw numbers in [0, 1) for each image: (count, B, 1, 1, 1), dtype and device of the images."""
    drawn = [torch.stack([torch.rand(1, 1, 1, generator=draw) for draw in draws]) for _ in range(count)]
    return upload(torch.stack(drawn).to(images.dtype), images.device)


def _integers(end: int, draws: Draws) -> list[int]:
    """Draw an integer from 0 to end - 1 for each image."""
    return [int(torch.randint(0, end, (), generator=draw)) for draw in draws]


STRIDES = (4, 8, 16)
"""Image pixels per element of the feature maps for the heads: the first three of DINOv3, the last three of VGG16."""

_MOST_BLOCKS = 4


@dataclass(frozen=True)
class Block:
    """One halving blur, one 3x3 convolution from `inputs` to `outputs` channels, and one LeakyReLU."""

    inputs: int
    outputs: int
    stride: int


def plan_heads(resolution: int, channels: Sequence[int] = (192, 384, 768)) -> tuple[tuple[Block, ...], ...]:
    """Plan one head per level, as deep as the feature maps allow, with at most four blocks.

    At 512 (three blocks) and 1024 (four blocks) these are the published heads, arXiv:2508.08227. Blocks whose index is
    above the level's index keep the number of channels and have a stride of 2.

    Args:
        resolution: side in px of the square images.
        channels: channels of the map at each of STRIDES; the default is DINOv3 ConvNeXt large.
    Returns:
        The blocks of each level's head; a halving blur and a 1x1 convolution follow them.
    Raises:
        UsageError: the resolution is too small for a head, or a map has too few channels.
    """
    for blocks in range(_MOST_BLOCKS, 0, -1):
        heads = tuple(_plan_head(level, count, blocks) for level, count in enumerate(channels))
        sides = [_logits_side(resolution // stride, head) for stride, head in zip(STRIDES, heads, strict=True)]
        if min(sides) >= 1:
            break
    else:
        raise UsageError(
            f"a resolution of {resolution} px is too small for the discriminator: its feature maps would be empty",
            hint="set a larger resolution, at least 64, or gan = 0",
        )
    if any(block.outputs < 1 for head in heads for block in head):
        raise UsageError(f"the discriminator cannot halve feature maps of {tuple(channels)} channels {blocks} times")
    return heads


def _plan_head(level: int, channels: int, blocks: int) -> tuple[Block, ...]:
    # In the published heads for 1024 px strides start one block later than for 512 px; all end in a single logit.
    first_stride = level + (blocks == _MOST_BLOCKS)
    head = []
    for number in range(blocks):
        outputs = channels // 2 if number <= level else channels
        head.append(Block(channels, outputs, 2 if number >= first_stride else 1))
        channels = outputs
    return tuple(head)


def _logits_side(side: int, head: Sequence[Block]) -> int:
    for block in head:
        # The blur rounds the side down, the convolution rounds it up.
        side = -(-(side // 2) // block.stride)
    return side // 2


class BlurPool(nn.Module):
    """Blur and halve feature maps, so that the result changes little when the image is shifted.

    The blur kernel is the outer product of (1, 3, 3, 1) / 8; the border is padded with zeros.
    Source: "Making convolutional networks shift-invariant again", arXiv:1904.11486.

    Args:
        channels: channels of the maps.
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor((1.0, 3.0, 3.0, 1.0)) / 8
        kernel = taps[:, None] * taps[None, :]
        self.register_buffer("kernel", kernel.repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W), sides of at least 2, to (B, C, H // 2, W // 2), same dtype."""
        return F.conv2d(features, self.kernel, stride=2, padding=1, groups=features.shape[1])


_SLOPE = 0.2


class Discriminator(nn.Module):
    """Distinguishes real images from restored ones.

    Args:
        heads: trained modules; each returns logits.
        changes: augmentation of every input image, names from `CHANGES`.
    Attributes:
        autocast: whether it computes in bf16, as published; its weights stay float32.
    """

    def __init__(self, heads: Sequence[nn.Module], changes: Sequence[str]) -> None:
        super().__init__()
        self.changes = tuple(changes)
        self.autocast = False
        self.heads = nn.ModuleList(heads)

    def forward(self, image: Tensor, draws: Draws) -> list[Tensor]:
        """Augment images and compute their logits.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1].
            draws: one generator per image for the augmentation.
        Returns:
            For each head, logits of (B, 1, h, w) float32, higher for real images.
        """
        return self.judge(augment(image, self.changes, draws))

    def judge(self, image: Tensor) -> list[Tensor]:
        """Compute logits as `forward` does, without augmentation."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.autocast):
            return [logits.float() for logits in self._judge(image)]

    def _judge(self, image: Tensor) -> list[Tensor]:
        return [head(image) for head in self.heads]


class FeatureDiscriminator(Discriminator):
    """Discriminates on three levels of feature maps from a frozen network.

    Source: OMGSR, arXiv:2508.08227; heads on frozen features as in "Ensembling off-the-shelf models for GAN training",
    arXiv:2112.09130.

    Args:
        features: frozen network; the heads use its plain maps at STRIDES.
        plans: blocks of each head.
        changes: augmentation of every input image, names from `CHANGES`.
        blur_pool: blur before halving; otherwise average 2x2 pixels.
    """

    def __init__(
        self, features: FeatureNet, plans: Sequence[Sequence[Block]], changes: Sequence[str], *, blur_pool: bool = True
    ) -> None:
        super().__init__([_build_head(plan, blur_pool) for plan in plans], changes)
        self.features = features
        self._stages = [features.strides.index(stride) for stride in STRIDES]

    def _judge(self, image: Tensor) -> list[Tensor]:
        maps = self.features(image, autocast=self.autocast)
        return [head(maps[stage].float()) for stage, head in zip(self._stages, self.heads, strict=True)]


class UNet(nn.Module):
    """Predicts a logit for every pixel from its surroundings.

    Source: the discriminator of Real-ESRGAN, arXiv:2107.10833, section 3.3, with its default of 64 channels.

    Args:
        width: channels at full resolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(_build_conv(a, b, 4, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_build_conv(a, b) for a, b in pairwise(reversed(widths)))
        self.last = nn.ModuleList(_build_conv(width, width) for _ in range(2))
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1], sides multiples of UNET_MULTIPLE_PX, to (B, 1, H, W) float32 logits."""
        x = F.leaky_relu(self.conv_in(image.float().contiguous(memory_format=torch.channels_last)), _SLOPE)
        kept = []
        for conv in self.down:
            kept.append(x)
            x = F.leaky_relu(conv(x), _SLOPE)
        for conv, skipped in zip(self.up, reversed(kept), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(conv(x), _SLOPE) + skipped
        for conv in self.last:
            x = F.leaky_relu(conv(x), _SLOPE)
        logits: Tensor = self.conv_out(x)
        return logits


def build_discriminator(
    features: FeatureNet | None, resolution: int, config: GanConfig, seed: int = 0, *, autocast: bool = False
) -> Discriminator:
    """Build a discriminator with new weights, which depend on the seed only.

    Args:
        features: frozen network, may be shared with the losses; None builds the U-Net.
        resolution: side in px of the square crops; `config.px` limits the input to windows of them.
        config: the [gan] section.
        seed: seed of the weights.
        autocast: whether it computes in bf16.
    Raises:
        UsageError: the input is too small for the heads.
    """
    # New weights depend only on the seed, and creating them does not advance the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if features is None:
            built = Discriminator([UNet(config.width)], config.augment)
        else:
            channels = [features.channels[features.strides.index(stride)] for stride in STRIDES]
            plans = plan_heads(config.px or resolution, channels)
            built = FeatureDiscriminator(features, plans, config.augment, blur_pool=config.blur_pool)
    built.autocast = autocast
    return built


def _build_head(plan: Sequence[Block], blur_pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for block in plan:
        layers += [
            _build_halving(block.inputs, blur_pool),
            spectral_norm(nn.Conv2d(block.inputs, block.outputs, 3, block.stride, 1)),
            nn.LeakyReLU(_SLOPE, inplace=True),
        ]
    last = plan[-1].outputs
    return nn.Sequential(*layers, _build_halving(last, blur_pool), spectral_norm(nn.Conv2d(last, 1, 1)))


def _build_conv(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, side, stride, 1, bias=False))


def _build_halving(channels: int, blur_pool: bool) -> nn.Module:
    return BlurPool(channels) if blur_pool else nn.AvgPool2d(2)
