"""A VAE in strips equals the whole VAE, for any strips, sizes and layers."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import Attention
from places import GOLDEN
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, OmgsrError
from omgsr_cli.models.base import Workspace
from omgsr_cli.models.vae_tiling import check_tiling, decode_in_strips, encode_in_strips
from omgsr_cli.models.vae_tiling.attention import Attended
from omgsr_cli.models.vae_tiling.fields import InputRows, strips
from omgsr_cli.models.vae_tiling.storage import MomentSums, StoredRows

GOLDEN_VAE = GOLDEN / "sd" / "base" / "vae"
CPU = torch.device("cpu")
# Sizes of latents from one element to ugly ones; memory from one row at a time, with every layer in a file, to enough.
DECODED = [((1, 1), 1), ((1, 5), 100_000), ((2, 3), 1), ((5, 7), 200_000), ((3, 5), 1 << 30)]
# Sizes of images, also such as are no multiple of 8.
ENCODED = [((8, 8), 1), ((17, 11), 1), ((8, 40), 100_000), ((41, 24), 200_000)]


def build_vae(*, channels: int = 4, quant: bool = True, attention: bool = True, layers: int = 1) -> AutoencoderKL:
    """A small random VAE with norms whose weights matter and biases that are not 0."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16, 24),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=layers,
        norm_num_groups=4,
        latent_channels=channels,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        mid_block_add_attention=attention,
    )
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.5)
            nn.init.normal_(module.bias, 0, 0.5)
    return vae.eval().requires_grad_(False)


class Image:
    """An image as it is read."""

    def __init__(self, planes: Tensor) -> None:
        self.planes, self.size_px = planes, (planes.shape[2], planes.shape[3])

    def read(self, top: int, bottom: int) -> Tensor:
        return self.planes[:, :, top:bottom]


KINDS = {
    "sd": {},
    "flux": {"channels": 16, "quant": False},
    "plain": {"attention": False, "layers": 2},
}


@pytest.fixture(scope="module", params=["golden", *KINDS])
def vae(request: pytest.FixtureRequest) -> AutoencoderKL:
    if request.param == "golden":
        loaded: AutoencoderKL = AutoencoderKL.from_pretrained(GOLDEN_VAE).eval()
        return loaded
    return build_vae(**KINDS[request.param])


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize(("size", "memory"), DECODED)
@torch.inference_mode()
def test_strips_decode_to_the_whole_image(vae: AutoencoderKL, size: tuple[int, int], memory: int) -> None:
    latent = torch.randn(1, vae.config["latent_channels"], *size)
    rows = list(decode_in_strips(vae, latent, Workspace(memory, CPU)))
    assert memory not in (1, 1 << 30) or len(rows) == (8 * size[0] if memory == 1 else 1)
    assert_same(torch.cat(rows, dim=2), vae.decode(latent).sample)


@pytest.mark.parametrize(("size", "memory"), ENCODED)
@torch.inference_mode()
def test_strips_encode_the_whole_image(vae: AutoencoderKL, size: tuple[int, int], memory: int) -> None:
    image = torch.rand(1, 3, *size) * 2 - 1
    expected = vae.encode(image).latent_dist.parameters
    assert_same(encode_in_strips(vae, Image(image), Workspace(memory, CPU)), expected)


@pytest.mark.parametrize(
    ("heads", "memory", "spread"), [(1, 1, 60.0), (2, 1, 1.0), (2, 4_000, 60.0), (1, 60_000, 1.0), (3, 1 << 20, 60.0)]
)
@torch.inference_mode()
def test_attention_is_the_same_however_little_it_sees_at_once(heads: int, memory: int, spread: float) -> None:
    """Also where one key outweighs all others: sums are relative to the largest product."""
    torch.manual_seed(1)
    attention = Attention(
        24, heads=heads, dim_head=24 // heads, bias=True, norm_num_groups=4, residual_connection=True
    ).eval()
    attention.to_q.weight *= spread
    image = torch.randn(1, 24, 7, 9)
    expected = attention(image)
    workspace = Workspace(memory, CPU)
    rows = StoredRows(workspace, 24, 7, 9, image.dtype)
    for top in range(0, 7, 3):
        rows.append(image[:, :, top : top + 3])
    field = Attended(rows, attention, workspace)
    assert_same(torch.cat(list(strips(field, workspace)), dim=2), expected)
    # Everything that was reserved is free again.
    free = workspace._free[CPU]
    assert free == memory - int(memory * 0.25)


@torch.inference_mode()
def test_plain_tiles_would_differ() -> None:
    """What the strips are for: a half of the latent decoded alone has other statistics than in the whole."""
    vae, latent = build_vae(), torch.randn(1, 4, 16, 8)
    alone, whole = vae.decode(latent[:, :, :8]).sample, vae.decode(latent).sample[:, :, :64]
    # Even far from the cut.
    assert (alone - whole)[:, :, :16].abs().max() > 0.02


@torch.inference_mode()
def test_large_means_keep_the_statistics_exact() -> None:
    """Sums of squares would cancel: means of channels are a thousand times their spread."""
    layer = (
        torch.randn(1, 8, 40, 30, dtype=torch.float64) * torch.rand(8, 1, 1) + torch.arange(8.0)[:, None, None] * 1e3
    )
    sums = MomentSums()
    for rows in layer.float().split(7, dim=2):
        sums.add(rows)
    mean, variance = sums.moments(8)
    exact = layer.float().double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


@torch.inference_mode()
def test_the_statistics_of_long_strips_are_exact() -> None:
    """Half a million squares of one sign, added one after the other in float32, would be 1e-4 off."""
    layer = torch.randn(1, 4, 700, 701) + 1
    sums = MomentSums()
    sums.add(layer)
    mean, variance = sums.moments(4)
    exact = layer.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


@torch.inference_mode()
def test_bf16_strips_are_as_accurate_as_bf16_whole() -> None:
    vae, latent = build_vae(), torch.randn(1, 4, 5, 4)
    exact = vae.decode(latent).sample
    vae.to(torch.bfloat16)
    whole = vae.decode(latent.bfloat16()).sample.float()
    tiled = torch.cat(list(decode_in_strips(vae, latent, Workspace(100_000, CPU))), dim=2)
    assert tiled.dtype == torch.bfloat16
    assert (tiled.float() - exact).abs().mean() < 1.2 * (whole - exact).abs().mean()


@torch.inference_mode()
def test_strips_shrink_if_memory_runs_out_and_finished_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, latent = build_vae(), torch.randn(1, 4, 5, 4)
    expected = vae.decode(latent).sample
    said: list[str] = []
    finished = 0
    convolve = F.conv2d

    def short(rows: Tensor, *arguments: object) -> Tensor:
        nonlocal finished
        if rows.shape[2] > 20:
            raise torch.OutOfMemoryError("short")
        result = convolve(rows, *arguments)  # type: ignore[arg-type]  # as they came
        finished += result.numel()
        return result

    monkeypatch.setattr(F, "conv2d", short)
    workspace = Workspace(1 << 30, CPU, on_short=lambda: said.append("short"))
    assert_same(torch.cat(list(decode_in_strips(vae, latent, workspace)), dim=2), expected)
    assert said == ["short"]
    worked, finished = finished, 0
    list(decode_in_strips(vae, latent, workspace))
    assert finished == worked, "nothing is computed twice"


def test_too_little_memory_for_one_row_is_reported() -> None:
    vae = build_vae()
    workspace = Workspace(1, CPU)

    def read(top: int, bottom: int) -> Tensor:
        raise torch.OutOfMemoryError("short")

    field = InputRows(read, (3, 8, 8), CPU, vae.dtype)
    with pytest.raises(torch.OutOfMemoryError):
        list(strips(field, workspace))


@torch.inference_mode()
def test_all_reserved_memory_is_released() -> None:
    vae, workspace = build_vae(), Workspace(40_000_000, CPU)
    list(decode_in_strips(vae, torch.randn(1, 4, 9, 7), workspace))
    assert workspace.reserve(30_000_000) == CPU


@torch.inference_mode()
def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OmgsrError, match="No space left"):
        list(decode_in_strips(build_vae(), torch.randn(1, 4, 2, 2), Workspace(1, CPU, folder=tmp_path)))


def test_an_unknown_part_is_refused() -> None:
    vae = build_vae()
    check_tiling(vae)
    vae.decoder.mid_block = AutoencoderTiny()
    with pytest.raises(ModelError, match="mid_block, AutoencoderTiny"):
        check_tiling(vae)
