"""Convert the downloaded perceptual networks to files that `omgsr_cli.training.perceptual` reads.

    python features.py FOLDER

`fetch_features.sh` runs this script. VGG16 and AlexNet become `.safetensors` in torchvision's layout. LPIPS's linear
weights become files in the layout of its published `vgg.pth` and `alex.pth`. `dists.pt` is read without conversion.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

# Positions of the convolutions in torchvision's checkpoints, among ReLUs and poolings.
PLACES = {"vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), "alexnet": (0, 3, 6, 8, 10)}
NETWORKS = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}
LINEAR = {"vgg16": "vgg", "alexnet": "alex"}


def _empty_array(*_: object) -> np.ndarray[Any, Any]:
    """Replace numpy's private `_reconstruct`: return an array whose state the pickle sets afterwards."""
    return np.empty(0, dtype=np.int8)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads only dictionaries of numpy arrays, so that a foreign pickle cannot run code."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three names that an array needs; refuse all others."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return self._ALLOWED[module, name]


def load_arrays(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return cast("dict[str, Any]", _ArrayUnpickler(file).load())


def to_conv_weight(kernel: np.ndarray[Any, Any]) -> Tensor:
    """Convert a (H, W, in, out) kernel to torch's (out, in, H, W)."""
    return torch.from_numpy(np.array(kernel, dtype=np.float32)).permute(3, 2, 0, 1).contiguous()


def convert(folder: Path, name: str) -> None:
    """Write one network and its LPIPS weights."""
    arrays = load_arrays(folder / f"{name}.ckpt")
    tensors = {}
    for number, place in enumerate(PLACES[name]):
        layer = arrays[NETWORKS[name]][f"Conv_{number}"]
        tensors[f"features.{place}.weight"] = to_conv_weight(layer["kernel"])
        tensors[f"features.{place}.bias"] = torch.from_numpy(np.array(layer["bias"], dtype=np.float32))
    linear = {
        f"lin{number}.model.1.weight": to_conv_weight(arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
        for number in range(5)
    }
    save_file(linear, folder / f"{LINEAR[name]}.safetensors")
    save_file(tensors, folder / f"{name}.safetensors")


def convert_missing(folder: Path) -> None:
    """Convert downloaded networks that are not converted yet."""
    for name in NETWORKS:
        if not (folder / f"{name}.safetensors").is_file():
            convert(folder, name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    convert_missing(parser.parse_args().folder)
