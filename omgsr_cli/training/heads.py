"""Layout of the discriminator's heads; it needs only integers, so that a configuration is checked without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omgsr_cli.errors import UsageError

STRIDES = (4, 8, 16)
"""Image pixels per element of the feature maps for the heads: the first three of DINOv3, the last three of VGG16."""

UNET_MULTIPLE_PX = 8
"""Input sides of the U-Net discriminator are multiples of this, because it halves them three times."""

_MOST_BLOCKS = 4


@dataclass(frozen=True)
class Block:
    """One halving blur, one 3x3 convolution and one LeakyReLU.

    Attributes:
        inputs: input channels of the convolution.
        outputs: output channels of the convolution.
        stride: stride of the convolution.
    """

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
            hint=f"set resolution to {_least_resolution()} or more, or gan = 0",
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


def _least_resolution() -> int:
    heads = [_plan_head(level, 2, 1) for level in range(len(STRIDES))]
    return next(
        side
        for side in range(STRIDES[-1], 10_000)
        if all(_logits_side(side // stride, head) for stride, head in zip(STRIDES, heads, strict=True))
    )
