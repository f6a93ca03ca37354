"""What a model says of its stages decides how a picture is cut up, and pictures cut up in any way are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.geometry import Size
from omgsr_cli.models.base import ImageRows, RestorerInfo, StageInfo, Tiling
from omgsr_cli.models.vae_tiling import Workspace
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import MIN_TILE_PX, plan_restoration
from omgsr_cli.schedules import DdpmSchedule
from omgsr_cli.upscaling import upscale_image

PX = 4
"""Image pixels per latent element of the model below."""

EVERY_PAIR = [(codec, step) for codec in ("exact", "internal") for step in ("exact", "blended")]


def info_of(codec: Tiling, step: Tiling, *, native_px: int = 64) -> RestorerInfo:
    return RestorerInfo(
        name="shift",
        family="none",
        scale=2.0,
        mid_timestep=1,
        multiple_of_px=8,
        native_tile_px=native_px,
        latent_px=PX,
        codec=StageInfo(codec, 8 if codec == "exact" else 0, 100),
        step=StageInfo(step, 8 if step == "exact" else 0, 10),
        border_px=0,
        color_fix="none",
        prompt=None,
        parameters=0,
    )


class Mean:
    """A model whose codec is a mean of 4x4 pixels, and whose step a mean of 3x3 latents: both of limited reach."""

    schedule = DdpmSchedule()
    device = torch.device("cpu")
    precision = "fp32"
    notes = ()

    def __init__(self, info: RestorerInfo) -> None:
        self.info = info
        self.largest = {"encode": 0, "restore": 0}
        self.allowed = 0

    def compile(self) -> None: ...

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.largest["encode"] = max(self.largest["encode"], *image.shape[-2:])
        return F.avg_pool2d(image, PX)

    def restore(self, lq_latent: Tensor) -> Tensor:
        self.largest["restore"] = max(self.largest["restore"], *(side * PX for side in lq_latent.shape[-2:]))
        return F.avg_pool2d(F.pad(lq_latent, (1, 1, 1, 1), mode="replicate"), 3, stride=1)

    def decode(self, latent: Tensor) -> Tensor:
        return latent.repeat_interleave(PX, 2).repeat_interleave(PX, 3)

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        self.allowed = workspace.memory_bytes
        return self.encode(image.read(0, image.size_px[0]), generator)

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        yield from self.decode(latent).split(50, dim=2)


@pytest.mark.parametrize(("codec", "step"), EVERY_PAIR)
def test_every_pair_of_tilings_restores_a_picture(codec: Tiling, step: Tiling) -> None:
    model = Mean(info_of(codec, step))
    image = torch.rand(3, 57, 83, generator=torch.Generator().manual_seed(0))
    output = Size(114, 166)
    options = RestoreOptions(tile=64, overlap=16, batch=2)
    done: list[tuple[int, int]] = []
    tiled = upscale_image(model, image, output, options, on_progress=lambda *count: done.append(count))
    whole = upscale_image(model, image, output, RestoreOptions(tile="off"))
    # Exact tiles are the whole picture; blended ones differ where a tile's edge is not the picture's.
    allowed = 1e-6 if "blended" not in (codec, step) else 0.1
    assert (tiled - whole).abs().max() < allowed
    plan = plan_restoration(model.info, output, options, 1 << 30)
    assert done[-1] == (plan.tiles, plan.tiles)
    assert plan.in_one_go == (codec == step == "exact")


def test_tiles_are_no_larger_than_asked_for() -> None:
    model = Mean(info_of("exact", "blended"))
    upscale_image(model, torch.rand(3, 90, 90), Size(180, 180), RestoreOptions(tile=64, overlap=16))
    assert model.largest == {"encode": 64 + 32, "restore": 64}


def test_a_stage_that_tiles_itself_is_given_the_whole() -> None:
    model = Mean(info_of("internal", "blended"))
    upscale_image(model, torch.rand(3, 90, 90), Size(184, 184), RestoreOptions(tile=64, overlap=16, memory=20))
    assert model.largest == {"encode": 184, "restore": 64}
    assert model.allowed == 20 << 20


def test_a_codec_that_tiles_itself_takes_what_it_needs_up_to_what_it_may() -> None:
    info = info_of("internal", "blended")
    held = 2000**2 * 36
    plan = plan_restoration(info, Size(2000, 2000), RestoreOptions(), 1 << 30)
    assert (plan.in_strips, plan.memory_bytes) == (False, 2000**2 * 100 + held)
    plan = plan_restoration(info, Size(2000, 2000), RestoreOptions(memory=100), 1 << 30)
    # Latents, and the result that a colour fix puts aside.
    assert (plan.in_strips, plan.memory_bytes) == (True, (100 << 20) + 2000**2 * 2 + held)
    large = plan_restoration(info, Size(20_000, 20_000), RestoreOptions(memory=100), 1 << 30)
    assert large.memory_bytes == (356 << 20) + 20_000**2 * 2


def test_automatic_tiles_are_what_fits_for_the_codec_and_native_for_the_step() -> None:
    plan = plan_restoration(info_of("exact", "blended"), Size(2000, 2000), RestoreOptions(), 100 * 700**2)
    assert (plan.codec.side_px, plan.codec.margin_px) == (640, 8)
    assert (plan.step.side_px, plan.step.margin_px) == (64, 32)
    assert plan.memory_bytes == (640 + 2 * 8) ** 2 * 100 + (640 + 2 * 8) * 2000 * 36
    exact = plan_restoration(info_of("exact", "exact"), Size(2000, 2000), RestoreOptions(), 100 * 700**2)
    assert exact.step == exact.codec
    # Four even tiles of 2000 pixels, rounded up to whole multiples.
    assert (exact.step.side_px, exact.step.margin_px) == (504, 16)
    # Whatever the height of the picture, one row of tiles is held.
    assert exact.memory_bytes == (504 + 2 * 16) ** 2 * 100 + (504 + 2 * 16) * 2000 * 36
    tall = plan_restoration(info_of("exact", "exact"), Size(20_000, 2000), RestoreOptions(tile=504), 100 * 700**2)
    assert tall.memory_bytes == exact.memory_bytes
    short = plan_restoration(info_of("exact", "exact"), Size(2000, 2000), RestoreOptions(), 0)
    assert short.step.side_px == MIN_TILE_PX


def test_the_step_may_be_what_needs_the_memory() -> None:
    info = replace(info_of("internal", "blended", native_px=512), step=StageInfo("blended", 0, 1000))
    plan = plan_restoration(info, Size(1024, 1024), RestoreOptions(batch=3, tile=512), 1 << 30)
    assert plan.memory_bytes == 3 * 512**2 * 1000 + 512 * 1024 * 36
