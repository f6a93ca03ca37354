"""Random numbers that depend on the run's seed and a sample's number alone, never on a global state.

Numbers of samples count over the whole run and all processes, so that no two processes and no two steps draw alike,
and a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from omgsr_cli.transfer import upload

Choice = TypeVar("Choice")


class Purpose(IntEnum):
    """What a random number is for; each has a stream of its own."""

    ORDER = 1
    CROP = 2
    LATENT = 3
    AUGMENT = 4
    DEGRADATION = 5
    LOSS = 6
    VALIDATION = 7
    JUDGEMENT = 8
    WINDOW = 9
    NOISE = 10
    POOL = 11
    SURFACE = 12
    GRAY = 13
    REPLACEMENT = 14
    FILTER = 15
    TARGET = 16


def draw_rng(seed: int, purpose: Purpose, number: int) -> np.random.Generator:
    """Give numpy's random numbers for a sample, an epoch or a step."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, int(purpose), number))))


def draw_seed(seed: int, purpose: Purpose, number: int) -> int:
    """Give a seed for a sample or a step: an integer in 0..2^63-1."""
    state = np.random.SeedSequence((seed, int(purpose), number)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def draw_generator(seed: int, purpose: Purpose, number: int) -> torch.Generator:
    """Give torch's random numbers, drawn on the CPU so that every device gets the same."""
    return torch.Generator().manual_seed(draw_seed(seed, purpose, number))


def draw_generators(seed: int, purpose: Purpose, numbers: Sequence[int]) -> list[torch.Generator]:
    """Give each sample its own random numbers, so that it does not count which others are in its batch."""
    return [draw_generator(seed, purpose, number) for number in numbers]


def draw_noise(like: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
    """Draw unit normal noise, each sample's from its own generator.

    Args:
        like: (B, ...) float.
        draws: B generators of the CPU.
    Returns:
        (B, ...) float, dtype and device of like.
    """
    noise = [torch.randn(like.shape[1:], generator=draw) for draw in draws]
    return upload(torch.stack(noise).to(like.dtype), like.device)


def choose(weighted: Sequence[tuple[Choice, float]], rng: np.random.Generator) -> Choice:
    """Draw one of several things, each with its probability."""
    chance = np.array([weight for _, weight in weighted])
    return weighted[int(rng.choice(len(weighted), p=chance / chance.sum()))][0]
