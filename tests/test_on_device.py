"""Both families and a training step of each on another device: the same values as on the CPU, and few waits.

The device is a simulated one; OMGSR_TEST_DEVICE=cuda takes a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from PIL import Image
from simulated_device import Card, Use
from torch import Tensor, nn
from training_run import settings

from omgsr_cli.geometry import Size
from omgsr_cli.imaging import SourceImage, write_image
from omgsr_cli.models.base import Restorer, Workspace
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.models.sd import SdRestorer
from omgsr_cli.models.vae_tiling import attention, decode_in_strips, encode_in_strips
from omgsr_cli.options import RestoreOptions
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.data import load_batches, number_batches
from omgsr_cli.training.loop import load_run
from omgsr_cli.training.step import Stepper, StepResult
from omgsr_cli.transfer import upload
from omgsr_cli.upscaling import restore_image, upscale_image

MIB = 1 << 20

CASES = {
    "whole": (Size(64, 48), {}, 512),
    "batch 4": (Size(96, 80), {"batch": 4, "tile": 64, "overlap": 16}, 512),
    "strips": (Size(96, 80), {"seed": 3}, 1),
    "wavelet": (Size(50, 36), {"color_fix": "wavelet"}, 512),
    "wavelet, 8 bits": (Size(50, 36), {"color_fix": "wavelet"}, 512),
    "adain, 8 bits": (Size(50, 36), {"color_fix": "adain", "strength": 0.7}, 512),
    "no fix": (Size(50, 36), {"color_fix": "none"}, 512),
}


def load(folder: Path, device: str) -> Restorer:
    """A model whose step has small tiles."""
    return load_restorer(folder, device=device, precision="fp32", process_size=64)


@pytest.fixture(scope="module")
def restorers(model: Path, sd_model: Path) -> dict[str, Restorer]:
    folders = {"tiny": model, "sd": sd_model}
    return {name: load(folder, "cpu") for name, folder in folders.items()}


@pytest.mark.parametrize("family", ["tiny", "sd"])
def test_results_equal_those_of_the_cpu(
    card: Card, restorers: dict[str, Restorer], model: Path, sd_model: Path, family: str
) -> None:
    image = torch.rand(3, 24, 18, generator=torch.Generator().manual_seed(0))
    # What happens to colours after the model is the same for every model.
    names = CASES if family == "tiny" else ("whole", "batch 4", "strips")
    expected = {name: run(restorers[family], image, name) for name in names}
    with card.used() as use:
        there = load({"tiny": model, "sd": sd_model}[family], use.name)
        for name in names:
            found = run(there, image, name)
            assert found.device.type == "cpu"
            distance = (found - expected[name]).abs()
            # Between whole levels of 8 bits the last digit decides which one a value becomes.
            assert distance.max() < (0.02 if "8 bits" in name else card.tolerance), name
            assert distance.median() < card.tolerance, name


@pytest.mark.parametrize("scale", [4, 2])
def test_files_are_those_of_the_cpu(card: Card, model: Path, scale: int) -> None:
    image = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(1)).mul(255).round().div(255)
    photo, options = SourceImage(image), RestoreOptions(color_fix="wavelet")
    assert photo.is_plain

    def samples(device: str) -> NDArray[Any]:
        there = load(model, device)
        bands, _ = restore_image(there, photo, Size(20 * scale, 24 * scale), options, whole_levels=True)
        stream = BytesIO()
        write_image(bands, stream, format="png")
        return np.asarray(Image.open(stream)).astype(int)

    expected = samples("cpu")
    with card.used() as use:
        assert np.abs(samples(use.name) - expected).max() <= 1


def run(restorer: Restorer, image: Tensor, case: str) -> Tensor:
    size, options, memory_mib = CASES[case]
    depth = 8 if "8 bits" in case else 16
    chosen = RestoreOptions(**options)
    return upscale_image(restorer, image, size, chosen, free_bytes=memory_mib * MIB, bit_depth=depth)


@pytest.mark.parametrize(("family", "most"), [("tiny", 2), ("sd", 2)])
def test_a_tile_waits_a_few_times_at_most(card: Card, model: Path, sd_model: Path, family: str, most: int) -> None:
    with card.used() as use:
        there = load({"tiny": model, "sd": sd_model}[family], use.name)
        counts = [count(there, use, side, 512, tile=64, overlap=16) for side in (64, 160)]
    (few, low), (many, high) = counts
    assert many > few
    assert high - low <= most * (many - few), use.where()


@torch.no_grad()
def test_strips_do_not_wait(card: Card, sd_model: Path) -> None:
    with card.used() as use:
        there = load(sd_model, use.name)
        assert isinstance(there, SdRestorer)
        image = WholeImage(upload(torch.rand(1, 3, 40, 32), there.device))
        counts = []
        for strip_bytes in (1 << 20, 1 << 16):
            workspace, before = Workspace(64 * MIB, there.device), use.waits()
            workspace.strip_bytes = strip_bytes
            latent = encode_in_strips(there.vae, image, workspace).chunk(2, dim=1)[0]
            strips = len(list(decode_in_strips(there.vae, latent, workspace)))
            counts.append((strips, use.waits() - before))
    assert counts[0][0] == 1 < counts[1][0]
    # One for each norm of the network, whatever the number of strips.
    assert counts[0][1] == counts[1][1] <= 40, use.where()


@torch.no_grad()
def test_products_of_attention_are_held_up_to_a_bound(
    card: Card, sd_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, attend = 1 << 14, F.scaled_dot_product_attention
    assert most < attention._MOST_PRODUCTS_BYTES <= 1 << 31
    products: list[int] = []

    def watched(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        products.append(2 * 4 * queries.shape[:-1].numel() * keys.shape[-2])
        return attend(queries, keys, values)

    with card.used() as use:
        there = load(sd_model, use.name)
        assert isinstance(there, SdRestorer)
        latent = upload(torch.rand(1, 4, 16, 12), there.device)
        whole = torch.cat(list(decode_in_strips(there.vae, latent, Workspace(64 * MIB, there.device))), 2).cpu()
        monkeypatch.setattr(attention, "_MOST_PRODUCTS_BYTES", most)
        monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
        cut = torch.cat(list(decode_in_strips(there.vae, latent, Workspace(64 * MIB, there.device))), 2).cpu()
    if there.device.type != "cpu":
        assert 0 < max(products) <= most
    assert (cut - whole).abs().max() < card.tolerance


@dataclass
class WholeImage:
    """Rows of an image on a device."""

    planes: Tensor

    @property
    def size_px(self) -> tuple[int, int]:
        return self.planes.shape[2], self.planes.shape[3]

    def read(self, top: int, bottom: int) -> Tensor:
        return self.planes[:, :, top:bottom]


@pytest.mark.parametrize("family", ["tiny", "sd", "pre-training"])
def test_a_training_step_equals_that_of_the_cpu(
    card: Card, world: Path, base: Path, tmp_path: Path, family: str
) -> None:
    tables = settings(world, tmp_path / "run", data={"batch_size": 1, "resolution": 64 if family == "tiny" else 32})
    if family == "sd":
        tables["model"] = {"preset": "omgsr-s-512", "base": str(base), "mid_timestep": 273}
        tables["lora"] = {"vae_rank": 2, "backbone_rank": 2}
        # The other losses do not depend on the family.
        tables["loss"] |= {"dv3cd": 0.0, "gan": 0.0}
        del tables["gan"]
    if family == "pre-training":
        tables["loss"] = {"lrr": 0.0, "l1": 0.0, "dv3cd": 0.0, "gan": 0.0, "denoise": 1.0}
        del tables["gan"]
    config = TrainConfig.model_validate(tables)
    expected = [step.losses for step in take_steps(config, Process(torch.device("cpu")))]
    with card.used() as use:
        steps = take_steps(config, Process(torch.device(use.name)))
        waits = [use.waits()]
        found = []
        for step in steps:
            found.append(step.losses)
            waits.append(use.waits())
    for losses, wanted in zip(found, expected, strict=True):
        assert losses == pytest.approx(wanted, rel=card.tolerance * 100, abs=card.tolerance)
    # One for the losses, and in diffusers one for each sample of a posterior.
    assert waits[2] - waits[1] <= 4, use.where()


@dataclass
class Process:
    """As much of accelerate as one process asks of it, on any device."""

    device: torch.device
    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True

    def prepare_model(self, module: nn.Module) -> nn.Module:
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


def take_steps(config: TrainConfig, process: Any) -> Iterator[StepResult]:
    """Two steps of a run."""
    run = load_run(config, process, resumed=False)
    stepper = Stepper(process, run.learner, config)
    batches = load_batches(run.crops, number_batches(config.data.batch_size, 0, 0, 1), 0, process.device)
    for number in range(2):
        yield stepper.take(number, batches, 0)


def count(restorer: Restorer, use: Use, side: int, memory_mib: int, **options: Any) -> tuple[int, int]:
    """Tiles of a square image, and how often the host waited."""
    tiles, before = [0], use.waits()
    image = torch.rand(3, side // 4, side // 4)
    upscale_image(
        restorer,
        image,
        Size(side, side),
        RestoreOptions(**options),
        free_bytes=memory_mib * MIB,
        on_progress=lambda done, total: tiles.append(total),
    )
    return tiles[-1], use.waits() - before
