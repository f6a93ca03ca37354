"""An AutoencoderTiny in place of the decoder, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from random_sd import write_sd_model
from safetensors.torch import load_file, save_file

from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.errors import ModelError, UnknownModelError, UsageError
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.autoencoders import TinyDecoder, load_tiny_decoder
from omgsr_cli.models.base import Workspace
from omgsr_cli.models.loading import describe_model, load_restorer
from omgsr_cli.models.sources import NOTE, find_model, find_tiny_vae
from omgsr_cli.options import ModelOptions, RestoreOptions, WriteOptions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderTiny of TAESD's shape with few channels, as diffusers writes it; it enlarges by four."""
    folder = tmp_path_factory.mktemp("vae") / "tiny"
    torch.manual_seed(0)
    network = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
    )
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def decoder(published: Path) -> TinyDecoder:
    return load_tiny_decoder(published, 4, CPU, torch.float32)


@torch.inference_mode()
def test_taesd_decodes_like_diffusers(published: Path, decoder: TinyDecoder) -> None:
    latent = torch.randn(2, 4, 5, 7)
    expected = AutoencoderTiny.from_pretrained(published).decode(latent).sample
    assert torch.equal(decoder.decode(latent), expected)
    assert decoder.latent_px == 4


@pytest.mark.parametrize("size", [(1, 1), (23, 40), (50, 18)])
@torch.inference_mode()
def test_tiles_equal_the_whole(decoder: TinyDecoder, size: tuple[int, int]) -> None:
    latent = torch.randn(1, 4, *size)
    bands = list(decoder.decode_within(latent, Workspace(1, CPU)))
    assert len(bands) == -(-size[0] // 16)
    torch.testing.assert_close(torch.cat(bands, dim=2), decoder.decode(latent), rtol=1e-5, atol=1e-5)
    assert len(list(decoder.decode_within(latent, Workspace(1 << 30, CPU)))) == 1


@torch.inference_mode()
def test_the_halo_is_no_larger_than_needed(decoder: TinyDecoder) -> None:
    """What changes one element changes pixels as far as the reach says, and not half as far alone."""
    latent = torch.randn(1, 4, 41, 1)
    changed = latent.clone()
    changed[:, :, 20] += 1
    rows = (decoder.decode(latent) - decoder.decode(changed)).abs().amax((0, 1, 3)).nonzero()[:, 0] // 4
    assert 20 - int(rows.min()) <= decoder.reach
    assert 20 - int(rows.min()) >= decoder.reach - 3


@torch.inference_mode()
def test_the_published_file_is_read(published: Path, decoder: TinyDecoder, tmp_path: Path) -> None:
    """A sequence whose first member, a clamp, has no weights; or diffusers' file. A file has TAESD's own shape."""
    large = AutoencoderTiny()
    weights = {name.removeprefix("layers."): value for name, value in large.decoder.state_dict().items()}
    counted = {f"{int(name.partition('.')[0]) + 1}.{name.partition('.')[2]}": value for name, value in weights.items()}
    save_file(counted, tmp_path / "decoder.safetensors")
    save_file(large.state_dict(), tmp_path / "both.safetensors")
    latent = torch.randn(1, 4, 3, 3)
    for name in ("decoder", "both"):
        read = load_tiny_decoder(find_tiny_vae(str(tmp_path / f"{name}.safetensors")), 4, CPU, torch.float32)
        assert torch.equal(read.decode(latent), large.decode(latent).sample)


def test_a_model_decodes_with_it_and_reports_it(published: Path, tmp_path: Path) -> None:
    folder = write_sd_model(tmp_path)
    plain = load_restorer(folder, device="cpu", precision="fp32")
    model = load_restorer(folder, device="cpu", precision="fp32", vae=str(published))
    assert NOTE in model.notes
    assert NOTE not in plain.notes
    latent = torch.randn(1, 4, 6, 6)
    with torch.inference_mode():
        expected = AutoencoderTiny.from_pretrained(published).decode(latent).sample
        assert torch.equal(model.decode(latent), expected)
        assert torch.equal(model.encode(torch.zeros(1, 3, 16, 16)), plain.encode(torch.zeros(1, 3, 16, 16)))


def test_its_results_are_separate_results(published: Path, tmp_path: Path) -> None:
    folder = write_sd_model(tmp_path)

    def record(vae: str | None) -> str:
        info = describe_model(find_model(ModelOptions(model=str(folder), vae=vae)))
        settings = Settings(ModelOptions(model=str(folder), vae=vae), RestoreOptions(), WriteOptions())
        return FinishedResults(settings, info, Remembered(tmp_path / "cache")).record(b"an image")

    first = record(str(published))
    assert first != record(None)
    weights = load_file(published / "diffusion_pytorch_model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    save_file({name: value + 1 for name, value in weights.items()}, other / "diffusion_pytorch_model.safetensors")
    (other / "config.json").write_bytes((published / "config.json").read_bytes())
    assert record(str(other)) != first


def test_another_file_is_not_accepted_as_a_tiny_autoencoder(published: Path, tmp_path: Path) -> None:
    folder = write_sd_model(tmp_path)
    with pytest.raises(UnknownModelError, match="no autoencoder is called 'teeny'"):
        find_tiny_vae("teeny")
    with pytest.raises(ModelError, match="is a AutoencoderKL, not an AutoencoderTiny"):
        find_tiny_vae(str(folder / "vae"))
    with pytest.raises(UsageError, match="has no VAE"):
        find_model(ModelOptions(model="omgsr-tiny", vae=str(published)))
    with pytest.raises(ModelError, match="latents with 4 channels"):
        load_tiny_decoder(published, 16, CPU, torch.float32)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    save_file({"decoder.layers.0.weight": torch.zeros(1)}, broken / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tiny_decoder(broken, 4, CPU, torch.float32)
