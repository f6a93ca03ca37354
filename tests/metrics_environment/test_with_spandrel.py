"""Networks of real shapes: results equal spandrel's own call, whole and in tiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from omgsr_cli import load
from omgsr_cli.geometry import Size
from omgsr_cli.options import RestoreOptions
from omgsr_cli.upscaling import upscale_image


def compact() -> nn.Module:
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=64, num_conv=32, upscale=4)


def esrgan() -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=64, num_blocks=4, scale=2)


def span() -> nn.Module:
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=4)


@pytest.mark.parametrize("build", [compact, esrgan, span])
def test_results_equal_spandrels_own_call(
    build: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spandrel

    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(3)
    path = tmp_path / "network.safetensors"
    save_file({name: value.contiguous() for name, value in build().state_dict().items()}, path)
    network = spandrel.ModelLoader("cpu").load_from_file(path).eval()
    image = torch.rand(3, 140, 118, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = network(image[None])[0].clamp(0, 1)
    model = load(str(path), device="cpu")
    output = Size(140, 118).times(model.info.scale)
    whole = upscale_image(model, image, output)
    assert float((whole - wanted).abs().max()) <= 1 / 255
    assert model.info.step.tiling == "exact"
    tiled = upscale_image(model, image, output, RestoreOptions(tile=64))
    assert float((tiled - whole).abs().max()) <= 2 / 255
