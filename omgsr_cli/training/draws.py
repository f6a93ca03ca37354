"""Random numbers that depend only on the seed of the run and a sample's number, not on global state.

Sample numbers are unique over the run and all processes. Different processes and steps therefore draw different
numbers, and a resumed run draws the same numbers as an uninterrupted run.
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
    """Purpose of random numbers; each purpose has its own stream."""

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
    """Return a numpy generator for a sample, an epoch or a step."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, int(purpose), number))))


def draw_seed(seed: int, purpose: Purpose, number: int) -> int:
    """Return a seed for a sample or a step: an integer in 0..2^63-1."""
    state = np.random.SeedSequence((seed, int(purpose), number)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def draw_generator(seed: int, purpose: Purpose, number: int) -> torch.Generator:
    """Return a torch generator on the CPU, so that the numbers are the same for every device."""
    return torch.Generator().manual_seed(draw_seed(seed, purpose, number))


def draw_generators(seed: int, purpose: Purpose, numbers: Sequence[int]) -> list[torch.Generator]:
    """Return a generator for each sample, so that its numbers do not depend on the other samples of the batch."""
    return [draw_generator(seed, purpose, number) for number in numbers]


def draw_noise(like: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal noise, for each sample from its own generator.

    Args:
        like: (B, ...) float.
        draws: B CPU generators.
    Returns:
        (B, ...) float with the dtype and device of like.
    """
    noise = [torch.randn(like.shape[1:], generator=draw) for draw in draws]
    return upload(torch.stack(noise).to(like.dtype), like.device)


def choose(weighted: Sequence[tuple[Choice, float]], rng: np.random.Generator) -> Choice:
    """Draw one of several items with probabilities proportional to their weights."""
    chance = np.array([weight for _, weight in weighted])
    return weighted[int(rng.choice(len(weighted), p=chance / chance.sum()))][0]
