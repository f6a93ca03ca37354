"""The layout of the discriminator's heads: integers only, so that a configuration can be checked without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omgsr_cli.errors import UsageError

STRIDES = (4, 8, 16)
"""Image pixels per element of the feature maps that are judged: DINOv3's first three, VGG16's last three."""

UNET_MULTIPLE_PX = 8
"""Sides of the images that the U-Net discriminator takes are multiples of this: it halves them three times."""

_MOST_BLOCKS = 4


@dataclass(frozen=True)
class Block:
    """One halving blur, one convolution of 3x3, one LeakyReLU.

    Attributes:
        inputs: channels before the convolution.
        outputs: channels after it.
        stride: of the convolution.
    """

    inputs: int
    outputs: int
    stride: int


def plan_heads(resolution: int, channels: Sequence[int] = (192, 384, 768)) -> tuple[tuple[Block, ...], ...]:
    """Lay out a head for each level: as deep as its map allows, but four blocks at most.

    At 512 (three blocks) and 1024 (four) these are the published heads, arXiv:2508.08227. A block after the level's
    own number halves the channels no more, and strides.

    Args:
        resolution: side in px of the square images.
        channels: of the map of each of STRIDES; DINOv3 ConvNeXt large's.
    Returns:
        The blocks of each level's head; a halving blur and a convolution of 1x1 follow them.
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
    # The published heads of 1024 px stride one block later than those of 512 px: all end at a single logit.
    first_stride = level + (blocks == _MOST_BLOCKS)
    head = []
    for number in range(blocks):
        outputs = channels // 2 if number <= level else channels
        head.append(Block(channels, outputs, 2 if number >= first_stride else 1))
        channels = outputs
    return tuple(head)


def _logits_side(side: int, head: Sequence[Block]) -> int:
    for block in head:
        # The blur rounds down, the convolution up.
        side = -(-(side // 2) // block.stride)
    return side // 2


def _least_resolution() -> int:
    heads = [_plan_head(level, 2, 1) for level in range(len(STRIDES))]
    return next(
        side
        for side in range(STRIDES[-1], 10_000)
        if all(_logits_side(side // stride, head) for stride, head in zip(STRIDES, heads, strict=True))
    )
