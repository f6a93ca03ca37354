"""Whether a processor that multiplies in bf16 gains anything by it: measured once for a machine, and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from omgsr_cli.files.remembered import Remembered

_ROUNDS, _ROUND_S = 4, 0.1
"""Each format has its turn so often, for so long: together a little less than a second."""

# A level of a UNet: enough to keep all cores busy, small enough to be done many times.
_CHANNELS, _HEADS, _SIDE = 320, 5, 32


@lru_cache(maxsize=1)
def bf16_gain_on_cpu() -> float:
    """How many times as fast as in fp32 convolutions, attention and products are in bf16; below 1 they are slower.

    Some processors have the instructions, and yet take longer in the whole: inputs have to be laid out anew, and clocks
    fall. So it is measured, unless an earlier run remembers it for this processor, torch and number of threads.
    """
    return remembered_gain(Remembered(), _measure)


def remembered_gain(remembered: Remembered, measure: Callable[[], float]) -> float:
    """What is remembered for this machine, or else is measured now, and remembered."""
    capabilities = sorted((name, str(value)) for name, value in torch.cpu.get_capabilities().items())
    key = f"bf16 {torch.__version__} {torch.get_num_threads()} {capabilities}"
    found = remembered.find_gain(key)
    if found is None:
        found = measure()
        remembered.keep_gain(key, found)
    return found


@torch.inference_mode()
def _measure() -> float:
    work = {dtype: _work(dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(work, float("inf"))
    for do in work.values():
        do()
    for _ in range(_ROUNDS):
        # In turns, so that what else the machine does disturbs both alike; the best time of each is disturbed least.
        for dtype, do in work.items():
            end = time.perf_counter() + _ROUND_S
            while (start := time.perf_counter()) < end:
                do()
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]


def _work(dtype: torch.dtype) -> Callable[[], object]:
    """A convolution, a linear layer and attention, as a UNet has them."""
    image = torch.rand(1, _CHANNELS, _SIDE, _SIDE).to(dtype)
    kernel = torch.rand(_CHANNELS, _CHANNELS, 3, 3).to(dtype)
    matrix = torch.rand(4 * _CHANNELS, _CHANNELS).to(dtype)

    def do() -> object:
        tokens = F.conv2d(image, kernel, padding=1).flatten(2).transpose(1, 2).contiguous()
        heads = tokens.view(1, _SIDE * _SIDE, _HEADS, -1).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads, heads, heads)
        return F.linear(attended.transpose(1, 2).flatten(2), matrix)

    return do
