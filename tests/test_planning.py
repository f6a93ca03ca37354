"""Plans follow the stages of a model, and any way of tiling gives the same image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.geometry import Size
from omgsr_cli.models.base import ImageRows, RestorerInfo, StageInfo, Tiling, Workspace
from omgsr_cli.models.loading import describe_model
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions, RestoreOptions
from omgsr_cli.planning import MIN_TILE_PX, TilePlan, plan_model_canvas, plan_restoration
from omgsr_cli.schedules import DdpmSchedule
from omgsr_cli.upscaling import upscale_image

PX = 4
"""Image pixels per latent element of the model below."""

EVERY_PAIR = [(codec, step) for codec in ("exact", "internal") for step in ("exact", "blended")]


def info_of(codec: Tiling, step: Tiling, *, native_px: int = 64) -> RestorerInfo:
    return RestorerInfo(
        name="shift",
        family="none",
        scale=1.0,
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


def plan_of(info: RestorerInfo, output: Size, options: RestoreOptions, free_bytes: int) -> TilePlan:
    """The plan of an image that keeps its size."""
    return plan_restoration(info, output, output, options, free_bytes)


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
def test_every_pair_of_tilings_restores_an_image(codec: Tiling, step: Tiling) -> None:
    model = Mean(info_of(codec, step))
    image = torch.rand(3, 57, 83, generator=torch.Generator().manual_seed(0))
    output = Size(114, 166)
    options = RestoreOptions(tile=64, overlap=16, batch=2)
    done: list[tuple[int, int]] = []
    tiled = upscale_image(model, image, output, options, on_progress=lambda *count: done.append(count))
    whole = upscale_image(model, image, output, RestoreOptions(tile="off"))
    # Exact tiles are the whole image; blended ones differ where a tile's edge is not the image's.
    allowed = 1e-6 if "blended" not in (codec, step) else 0.1
    assert (tiled - whole).abs().max() < allowed
    plan = plan_of(model.info, output, options, 1 << 30)
    assert done[-1] == (plan.tiles, plan.tiles)
    assert plan.in_one_go == (codec == step == "exact")


def test_tiles_are_at_most_the_requested_size() -> None:
    model = Mean(info_of("exact", "blended"))
    upscale_image(model, torch.rand(3, 90, 90), Size(180, 180), RestoreOptions(tile=64, overlap=16))
    assert model.largest == {"encode": 64 + 32, "restore": 64}


def test_a_stage_that_tiles_itself_gets_the_whole_image() -> None:
    model = Mean(info_of("internal", "blended"))
    upscale_image(model, torch.rand(3, 90, 90), Size(184, 184), RestoreOptions(tile=64, overlap=16, memory=20))
    assert model.largest == {"encode": 184, "restore": 64}
    assert model.allowed == 20 << 20


def test_a_codec_that_tiles_itself_uses_at_most_the_memory_limit() -> None:
    info = info_of("internal", "blended")
    held = 2000**2 * 24
    plan = plan_of(info, Size(2000, 2000), RestoreOptions(), 1 << 30)
    assert (plan.in_strips, plan.memory_bytes) == (False, 2000**2 * 100 + held)
    plan = plan_of(info, Size(2000, 2000), RestoreOptions(memory=100), 1 << 30)
    # Latents, and the result that a colour fix puts aside.
    assert (plan.in_strips, plan.memory_bytes) == (True, (100 << 20) + 2000**2 * 2 + held)
    large = plan_of(info, Size(20_000, 20_000), RestoreOptions(memory=100), 1 << 30)
    assert large.memory_bytes == (356 << 20) + 20_000**2 * 2


def test_automatic_tiles_fit_the_memory_for_the_codec_and_are_native_for_the_step() -> None:
    free = 100 * 700**2
    plan = plan_of(info_of("exact", "blended"), Size(2000, 2000), RestoreOptions(), free)
    assert plan.codec.margin_px == 8
    assert (plan.step.side_px, plan.step.margin_px) == (64, 32)
    assert free * 0.7 < plan.memory_bytes <= free
    exact = plan_of(info_of("exact", "exact"), Size(2000, 2000), RestoreOptions(), free)
    assert exact.step == exact.codec
    assert exact.step.margin_px == 16
    height, width = (core + 2 * 16 for core in exact.step.core_px)
    assert exact.memory_bytes == height * width * 100 + height * 2000 * 24 <= free
    # Whatever the height of the image, one row of tiles is held.
    tall, square = (
        plan_of(info_of("exact", "exact"), Size(side, 2000), RestoreOptions(tile=504), free) for side in (20_000, 2000)
    )
    assert tall.memory_bytes == square.memory_bytes
    short = plan_of(info_of("exact", "exact"), Size(2000, 2000), RestoreOptions(), 0)
    assert short.step.core_px == (MIN_TILE_PX, MIN_TILE_PX)


@pytest.mark.parametrize("width", [300, 1200, 5000, 24_000, 60_000])
def test_tiles_of_any_image_fit_into_the_memory_or_are_the_smallest(width: int) -> None:
    info = replace(info_of("exact", "exact"), step=StageInfo("exact", 88, 240))
    for memory in (64, 256, 1000, 100_000):
        plan = plan_of(info, Size(2 * width // 3, width), RestoreOptions(memory=memory), 0)
        assert plan.memory_bytes <= memory << 20 or plan.step.core_px == (256, 256)
        # However much is free: rows of a wide image are large.
        assert plan.memory_bytes <= 1000 << 20


def test_the_step_can_need_the_most_memory() -> None:
    info = replace(info_of("internal", "blended", native_px=512), step=StageInfo("blended", 0, 1000))
    plan = plan_of(info, Size(1024, 1024), RestoreOptions(batch=3, tile=512), 1 << 30)
    assert plan.memory_bytes == 3 * 512**2 * 1000 + 512 * 1024 * 24


WORKING_SIZES: list[tuple[tuple[int, int], tuple[int, int], float | str, tuple[int, int]]] = [
    ((100, 150), (100, 150), "auto", (400, 600)),
    ((100, 150), (200, 300), "auto", (400, 600)),
    ((100, 150), (50, 75), "auto", (400, 600)),
    ((101, 151), (270, 403), "auto", (404, 604)),
    ((100, 150), (400, 600), "auto", (400, 600)),
    ((100, 150), (800, 1200), "auto", (800, 1200)),
    # Another proportion than the input's: no side is below four times the input's.
    ((100, 150), (800, 150), "auto", (800, 600)),
    ((100, 150), (70, 90), 2, (200, 300)),
    ((100, 150), (100, 150), 2.5, (250, 375)),
    ((100, 150), (100, 150), 1, (100, 150)),
    ((200, 300), (100, 150), 1, (100, 150)),
    # The native size of 64 is a lower bound of its own.
    ((10, 12), (10, 12), "auto", (64, 77)),
    ((10, 12), (20, 24), 1, (64, 77)),
]


def test_the_working_size_is_a_multiple_of_the_input() -> None:
    info = replace(info_of("exact", "exact"), scale=4.0)
    for source, output, process_scale, working in WORKING_SIZES:
        options = RestoreOptions(process_scale=process_scale)  # type: ignore[arg-type] # "auto" or a number
        canvas = plan_model_canvas(info, Size(*source), Size(*output), options)
        assert (canvas.output, canvas.working) == (output, working)
        plan = plan_restoration(info, Size(*source), Size(*output), options, 1 << 30)
        assert plan.canvas == canvas


def test_a_photo_of_24_megapixels_needs_little_at_any_scale() -> None:
    info = describe_model(find_model(ModelOptions(model="omgsr-tiny")))
    photo = Size(4000, 6000)
    for scale in (1, 2, 4):
        plan = plan_restoration(info, photo, photo.times(scale), RestoreOptions(), 1 << 40)
        assert plan.canvas.working == (16_000, 24_000)
        assert plan.memory_bytes < 700 << 20


def test_plain_upscaling_takes_no_tiles() -> None:
    plan = plan_of(info_of("exact", "exact"), Size(2000, 2000), RestoreOptions(strength=0), 1 << 30)
    assert (plan.tiles, plan.canvas.working) == (0, (2000, 2000))
