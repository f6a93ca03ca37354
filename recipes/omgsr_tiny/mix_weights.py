"""Mix the weights of two checkpoints of omgsr-tiny, weight by weight: (1 - share) * FIRST + share * SECOND.

python recipes/omgsr_tiny/mix_weights.py omgsr_cli/weights/omgsr-tiny runs/sharpened/step-00001000 0.5 runs/mixed
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

NAME = "model.safetensors"


def mix(first: Path, second: Path, share: float, out: Path) -> None:
    """Write a model folder: a copy of the first one with mixed weights, in the first one's precision."""
    own, other = load_file(first / NAME), load_file(second / NAME)
    shutil.copytree(first, out)
    mixed = {name: weight.double().lerp(other[name].double(), share).to(weight.dtype) for name, weight in own.items()}
    save_file({name: weight.contiguous() for name, weight in mixed.items()}, out / NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("out", type=Path, help="must not exist")
    options = parser.parse_args()
    mix(options.first, options.second, options.share, options.out)


if __name__ == "__main__":
    main()
