"""Helpers for tests of the command line: write a random model and images, and call the program."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from omgsr_cli.cli.app import run
from omgsr_cli.models.record import ModelRecord, write_record
from omgsr_cli.models.tiny import TinyRestorer
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork
from omgsr_cli.schedules import DdpmSchedule

MID_TIMESTEP = 275
PROGRAM = (sys.executable, "-m", "omgsr_cli")


def write_tiny_model(folder: Path) -> Path:
    """Write a random model of the bundled model's family that changes images visibly, but keeps them recognisable."""
    torch.manual_seed(3)
    config = TinyConfig(
        # This margin exceeds the networks' receptive field, so tiles are exact.
        encoder_width=8,
        encoder_layers=2,
        step_width=16,
        step_bottleneck=8,
        step_blocks=1,
        halo_px=160,
    )
    network = TinyNetwork(config)
    for conv in (network.encoder.conv_out, network.unet.conv_out):
        nn.init.normal_(conv.weight, std=0.05)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.model_dump()))
    schedule = DdpmSchedule().to_config()
    write_record(ModelRecord(family="tiny", mid_timestep=MID_TIMESTEP, native_tile_px=16, schedule=schedule), folder)
    return folder


@dataclass(frozen=True)
class Said:
    """The exit code and output of one call."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of results."""
        return self.out.decode().splitlines()

    @property
    def errors(self) -> list[str]:
        """The error lines."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The results of `--json`."""
        return [json.loads(line) for line in self.lines]


class Command:
    """One of the program's commands, run in this process."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], name: str = "upscale") -> None:
        self._capture = capture
        self._name = name

    def __call__(self, *arguments: str | Path) -> Said:
        self._capture.readouterr()
        code = run([self._name, *map(str, arguments)])
        out, err = self._capture.readouterr()
        return Said(code, out, err.decode())


def interrupt_restoring(patch: pytest.MonkeyPatch, number: int) -> None:
    """Raise what Ctrl-C raises when the small model restores an image, which is counted from 1."""
    calls, restore = count(1), TinyRestorer.restore

    def interrupted(self: TinyRestorer, lq_latent: Tensor) -> Tensor:
        if next(calls) == number:
            raise KeyboardInterrupt
        return restore(self, lq_latent)

    patch.setattr(TinyRestorer, "restore", interrupted)


def draw(path: Path, width: int = 20, height: int = 14, mode: str = "RGB", **save: Any) -> Path:
    """Write a smooth coloured image."""
    rows, columns = np.mgrid[0:height, 0:width].astype(float)
    planes = [128 + 100 * np.sin(rows / (3 + i) + columns / (5 - i)) for i in range(3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack(planes, 2).round().astype(np.uint8)).convert(mode).save(path, **save)
    return path


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of an image file."""
    with Image.open(path) as image:
        return image.size


def pixels(path: Path) -> NDArray[np.int64]:
    """Return the samples of an image file."""
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def files_below(folder: Path) -> list[str]:
    """Return the paths of all files, including hidden files, relative to the folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def spoil(path: Path, how: str) -> None:
    """Damage a database in ways that disks and people cause."""
    if how == "garbage":
        path.write_bytes(b"garbage" * 1000)
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "short":
        os.truncate(path, 50)
    elif how == "middle":
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xa5" * (len(content) - 4096)
        path.write_bytes(content)
    elif how == "folder":
        path.unlink()
        (path / "below").mkdir(parents=True)
    elif how == "another table":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE remembered (other TEXT)")
