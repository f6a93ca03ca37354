"""The FLUX family against the published formula, written out here with diffusers' own modules."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxPipeline, FluxTransformer2DModel
from peft import PeftModel
from random_flux import DEV_CONFIG, DEV_VAE, TOKENS, write_flux_adapter, write_flux_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from omgsr_cli.errors import DeviceError, ModelError, ShapeError, UsageError
from omgsr_cli.geometry import Size, plan_tiles
from omgsr_cli.models import flux, large
from omgsr_cli.models.adapter_files import FLUX_PARTS
from omgsr_cli.models.base import StageInfo
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.flux import FLUX_LORA, FluxRestorer, pack, position_ids, unpack
from omgsr_cli.models.large import Footprint, choose_offload, measure_footprint
from omgsr_cli.models.loading import describe_model, load_restorer, save_merged
from omgsr_cli.models.lora import inject_adapters
from omgsr_cli.models.sources import find_base_folder, find_model
from omgsr_cli.models.weight_files import TensorEntry
from omgsr_cli.options import ModelOptions, RestoreOptions, build_options
from omgsr_cli.planning import plan_restoration
from omgsr_cli.store import hub
from omgsr_cli.upscaling import upscale_image

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SIGMA = {244: 0.505112, 173: 0.398120, 433: 0.707266}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_model(tmp_path_factory.mktemp("flux") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return write_flux_adapter(base, base.parent / "adapter")


def load(base: Path, adapter: Path | None = None, **options: object) -> FluxRestorer:
    chosen = {"device": "cpu", "precision": "fp32", "process_size": 64} | options
    restorer = load_restorer(base=base, adapter=adapter, **chosen)  # type: ignore[arg-type]  # each of its own type
    assert isinstance(restorer, FluxRestorer)
    return restorer


def find(base: Path, adapter: Path | None = None, **options: object) -> ModelSource:
    return find_model(build_options(ModelOptions, base=str(base), adapter=adapter, **options))


@pytest.fixture(scope="module")
def restorer(base: Path) -> FluxRestorer:
    return load(base)


def sigma_of(timestep: int) -> float:
    """As published: the timestep counts from the clean end, and the shift is that of 4096 tokens at any size."""
    return math.exp(1.15) / (math.exp(1.15) + 1 / (timestep / 999) - 1)


def published_velocity(base: Path, latent: Tensor, sigma: float) -> Tensor:
    """With diffusers' transformer, packing and ids."""
    transformer = FluxTransformer2DModel.from_pretrained(base / "transformer").eval()
    features = load_file(base / "prompt_embeds.safetensors")
    batch, channels, height, width = latent.shape
    ids = torch.zeros(height // 2, width // 2, 3)
    ids[..., 1] += torch.arange(height // 2)[:, None]
    ids[..., 2] += torch.arange(width // 2)[None, :]
    tokens = transformer(
        hidden_states=FluxPipeline._pack_latents(latent, batch, channels, height, width),
        timestep=torch.full((batch,), sigma),
        guidance=torch.full((batch,), 1.0),
        pooled_projections=features["pooled_prompt_embeds"].float().expand(batch, -1),
        encoder_hidden_states=features["prompt_embeds"].float().expand(batch, -1, -1),
        txt_ids=torch.zeros(TOKENS, 3),
        img_ids=ids.reshape(-1, 3),
        return_dict=False,
    )[0]
    return FluxPipeline._unpack_latents(tokens, height * 8, width * 8, 8)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (10, 2)])
def test_packing_equals_diffusers(size: tuple[int, int]) -> None:
    latent = torch.randn(3, 16, *size)
    packed = pack(latent)
    assert torch.equal(packed, FluxPipeline._pack_latents(latent, 3, 16, *size))
    assert torch.equal(unpack(packed, *size), latent)
    expected = FluxPipeline._prepare_latent_image_ids(1, size[0] // 2, size[1] // 2, CPU, torch.float32)
    assert torch.equal(position_ids(*size, CPU), expected)


@pytest.mark.parametrize(("mid_timestep", "sigma"), SIGMA.items())
def test_one_step_follows_the_published_formula(base: Path, mid_timestep: int, sigma: float) -> None:
    assert sigma_of(mid_timestep) == pytest.approx(sigma, abs=1e-6)
    model = load(base, mid_timestep=mid_timestep)
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    vae = AutoencoderKL.from_pretrained(base / "vae").eval()
    with torch.inference_mode():
        latent = (vae.encode(image).latent_dist.mean - 0.1159) * 0.3611
        clean = latent - sigma_of(mid_timestep) * published_velocity(base, latent, sigma_of(mid_timestep))
        expected = vae.decode(clean / 0.3611 + 0.1159).sample
        torch.testing.assert_close(model.encode(image), latent, **CLOSE)
        torch.testing.assert_close(model.restore(latent), clean, **CLOSE)
        torch.testing.assert_close(model.decode(clean), expected, **CLOSE)


def test_tiles_blend_the_velocity_and_the_whole_latent_is_updated_once(base: Path, restorer: FluxRestorer) -> None:
    """Ids begin at (0, 0) in every tile, and the Gaussian has a variance of .01."""
    image, output = torch.rand(3, 96, 160), Size(96, 160)
    plan = plan_restoration(restorer.info, output, output, RestoreOptions(process_scale=1, tile=64), 1 << 30)
    assert (plan.canvas.padded, plan.step.side_px, plan.step.margin_px) == ((96, 160), 64, 32)
    vae = AutoencoderKL.from_pretrained(base / "vae").eval()
    sigma, total, weights = sigma_of(244), torch.zeros(1, 16, 12, 20), torch.zeros(12, 20)
    centred = (torch.arange(8) - 3.5) / 8
    window = torch.exp(-centred[:, None].square() / 0.02) * torch.exp(-centred[None, :].square() / 0.02)
    with torch.inference_mode():
        latent = (vae.encode(image[None] * 2 - 1).latent_dist.mean - 0.1159) * 0.3611
        for tile in plan_tiles(Size(12, 20), 8, 4):
            velocity = published_velocity(base, latent[..., tile.rows, tile.columns].clone(), sigma)
            total[..., tile.rows, tile.columns] += velocity * window
            weights[tile.rows, tile.columns] += window
        decoded = vae.decode((latent - sigma * total / weights) / 0.3611 + 0.1159).sample[0]
    options = RestoreOptions(process_scale=1, tile=64, color_fix="none")
    actual = upscale_image(restorer, image, output, options, bit_depth=16)
    torch.testing.assert_close(actual, (decoded * 0.5 + 0.5).clamp(0, 1), **CLOSE)


def test_guidance_follows_the_configuration(tmp_path: Path) -> None:
    model = load(write_flux_model(tmp_path / "schnell", guidance=False))
    latent = torch.randn(1, 16, 4, 4)
    with torch.inference_mode():
        assert model.restore(latent).isfinite().all()


def test_info_describes_the_model(base: Path, restorer: FluxRestorer) -> None:
    info = restorer.info
    assert (info.latent_px, info.multiple_of_px, info.native_tile_px) == (8, 16, 64)
    assert (info.mid_timestep, info.prompt, info.color_fix) == (244, "", "adain")
    assert info.codec == StageInfo("internal", 0, 20 * 4)
    networks = (restorer.backbone, restorer.vae)
    assert info.parameters == sum(weight.numel() for network in networks for weight in network.parameters())
    assert describe_model(find(base, process_size=64)) == info
    # Without a size of its own it is OMGSR-F's.
    assert describe_model(find(base)).native_tile_px == 1024


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (17, 17, {}),
        (18, 131, {}),
        (200, 63, {"tile": 128}),
        (97, 34, {"tile": "off"}),
        (35, 200, {"process_scale": 1}),
        (64, 80, {"process_scale": 1, "tile": 64, "overlap": 8, "batch": 3}),
    ],
)
def test_every_size_is_kept(restorer: FluxRestorer, height: int, width: int, options: dict[str, object]) -> None:
    image = torch.rand(3, height, width)
    result = upscale_image(restorer, image, Size(height, width), build_options(RestoreOptions, **options))
    assert result.shape == image.shape
    assert result.isfinite().all()


def test_a_batch_equals_single_images(restorer: FluxRestorer) -> None:
    images = torch.rand(4, 3, 16, 48) * 2 - 1
    with torch.inference_mode():
        together = restorer.decode(restorer.restore(restorer.encode(images)))
        alone = torch.cat([restorer.decode(restorer.restore(restorer.encode(image[None]))) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape == images.shape


def test_odd_latents_are_refused(restorer: FluxRestorer) -> None:
    with pytest.raises(ShapeError, match="multiples of 16"):
        restorer.restore(torch.zeros(1, 16, 3, 4))


def test_little_memory_gives_the_same_image(restorer: FluxRestorer) -> None:
    image = torch.rand(3, 160, 170)
    options = RestoreOptions(process_scale=1, memory=16)
    assert plan_restoration(restorer.info, Size(160, 170), Size(160, 170), options, 0).in_strips is False
    few = replace(restorer.info, codec=StageInfo("internal", 0, 4000))
    little = load(restorer.source.folder)
    little.info = few
    assert plan_restoration(few, Size(160, 170), Size(160, 170), options, 0).in_strips
    strips, whole = (upscale_image(model, image, Size(160, 170), options) for model in (little, restorer))
    assert ((strips - whole).abs() <= 1.01 / 255).float().mean() >= 0.999


def test_published_adapters_are_added_to_both_networks(base: Path, adapter: Path) -> None:
    model = load(base, adapter)
    encoder, transformer = (
        PeftModel.from_pretrained(network, adapter / part).merge_and_unload()
        for part, network in zip(
            FLUX_PARTS,
            (
                AutoencoderKL.from_pretrained(base / "vae").encoder,
                FluxTransformer2DModel.from_pretrained(base / "transformer"),
            ),
            strict=True,
        )
    )
    for own, peft in ((model.vae.encoder, encoder), (model.backbone, transformer)):
        for name, weight in peft.named_parameters():
            torch.testing.assert_close(own.get_parameter(name), weight, **CLOSE)
    assert not torch.allclose(model.backbone.x_embedder.weight, load(base).backbone.x_embedder.weight)


def test_an_untrained_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    untrained = write_flux_adapter(base, tmp_path / "adapter", trained=False)
    with pytest.raises(ModelError, match="changes no weight"):
        load(base, untrained)


@pytest.mark.parametrize("half", [False, True])
def test_a_merged_folder_equals_base_and_adapter(base: Path, adapter: Path, tmp_path: Path, half: bool) -> None:
    source = find(base, adapter, process_size=64, mid_timestep=300)
    save_merged(source, tmp_path / "merged", half=half)
    both = load(base, adapter, mid_timestep=300, precision="bf16" if half else "fp32")
    merged = load_restorer(tmp_path / "merged", device="cpu", precision=both.precision)
    assert (merged.info.mid_timestep, merged.info.native_tile_px, merged.notes) == (300, 64, ())
    files = sorted(path.name for path in (tmp_path / "merged" / "transformer").iterdir())
    assert files == sorted(path.name for path in (base / "transformer").iterdir())
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    latent = torch.randn(1, 16, 4, 6)
    with torch.inference_mode():
        torch.testing.assert_close(merged.restore(latent), both.restore(latent), rtol=1e-4, atol=1e-5)


def test_bf16_is_close_to_fp32(base: Path, adapter: Path, restorer: FluxRestorer) -> None:
    half, whole = load(base, adapter, precision="bf16"), load(base, adapter)
    assert {weight.dtype for weight in half.backbone.parameters()} == {torch.bfloat16}
    latent = torch.randn(1, 16, 8, 8)
    with torch.inference_mode():
        exact, near = whole.restore(latent), half.restore(latent)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().mean() < 0.05 * exact.std()


def test_published_adapters_have_the_published_number_of_weights() -> None:
    """With FLUX.1-dev's own configuration, of which nothing is allocated, and as many blocks as tell their sizes."""

    def count(double: int, single: int) -> list[int]:
        with torch.device("meta"):
            encoder = AutoencoderKL(**DEV_VAE).encoder
            transformer = FluxTransformer2DModel(**DEV_CONFIG | {"num_layers": double, "num_single_layers": single})
        frozen = sum(weight.numel() for weight in transformer.parameters())
        adapters = inject_adapters((encoder, transformer), FLUX_PARTS, None, FLUX_LORA)
        names = {name for name, _ in transformer.named_parameters() if "lora_A" in name and "single" in name}
        assert {name.split(".")[-4] for name in names} == {"to_q", "to_k", "to_v"}, "of a single block the attention's"
        trained = [sum(w.numel() for w in part.parameters() if w.requires_grad) for part in adapters.values()]
        return [*trained, frozen]

    first, of_double, of_single = count(1, 1), count(2, 1), count(1, 2)
    blocks = DEV_CONFIG["num_layers"] - 1, DEV_CONFIG["num_single_layers"] - 1
    counts = [
        one + blocks[0] * (double - one) + blocks[1] * (single - one)
        for one, double, single in zip(first, of_double, of_single, strict=True)
    ]
    assert [round(number / 1e6, 3) for number in counts[:2]] == [5.910, 179.507]
    assert counts[2] > 11.9e9


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def forget_a_weight(folder: Path) -> None:
    path = next((folder / "transformer").glob("*.safetensors"))
    weights = load_file(path)
    del weights[next(iter(weights))]
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: change(folder / "transformer" / "config.json", _class_name="Other"), "Other"),
        (lambda folder: change(folder / "transformer" / "config.json", in_channels=384), "takes 384 channels"),
        (lambda folder: change(folder / "transformer" / "config.json", joint_attention_dim=13), "features are 12 wide"),
        (lambda folder: change(folder / "transformer" / "config.json", num_layers=1), "unexpected keys"),
        (lambda folder: change(folder / "transformer" / "config.json", attention_head_dim=16), "transformer"),
        (forget_a_weight, "1 missing keys"),
        (lambda folder: change(folder / "scheduler" / "scheduler_config.json", _class_name="DDPM"), "scheduler DDPM"),
        (lambda folder: (folder / "prompt_embeds.safetensors").unlink(), "no text_encoder for the prompt ''"),
        (lambda folder: shutil.rmtree(folder / "vae"), r"vae"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(base: Path, tmp_path: Path, damage: object, message: str) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    damage(folder)  # type: ignore[operator]  # one of the functions above
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_another_prompt_needs_the_text_encoders(base: Path) -> None:
    with pytest.raises(ModelError, match="no text_encoder for the prompt 'a cat'"):
        describe_model(find(base, prompt="a cat"))


def test_weights_of_unknown_transformers_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    asked: list[list[str]] = []

    def download(repository: str, revision: str | None, patterns: list[str]) -> Path:
        asked.append(patterns)
        return tmp_path

    monkeypatch.setattr(hub, "download_files", download)
    with pytest.raises(ModelError, match="WanTransformer3DModel"):
        find_base_folder("owner/name")
    assert not [pattern for patterns in asked for pattern in patterns if "safetensors" in pattern and "/" in pattern]


def test_a_small_decoder_takes_the_place_of_the_vaes(base: Path, tmp_path: Path, restorer: FluxRestorer) -> None:
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "taef1")
    model, latent = load(base, vae=str(tmp_path / "taef1")), torch.randn(1, 16, 4, 6)
    with torch.inference_mode():
        assert model.decode(latent).shape == restorer.decode(latent).shape == (1, 3, 32, 48)
        assert not torch.allclose(model.decode(latent), restorer.decode(latent))


GIB, CARD = 1 << 30, torch.device("cuda")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """GiB that are free on a card with memory of its own, and on the host."""
    found: dict[str, int] = {}
    monkeypatch.setattr(large, "shares_host_memory", lambda device: device.type == "cpu")
    monkeypatch.setattr(large, "free_memory_bytes", lambda device: found[device.type] * GIB)
    return found


def sizes(**quantised: int) -> object:
    """FLUX.1-dev's figures, roughly."""
    return lambda kind: Footprint(quantised.get(kind, 24 * GIB), GIB // 2, GIB // 4, GIB // 4, GIB)


@pytest.mark.parametrize(
    ("device_gib", "host_gib", "offload", "expected"),
    [(80, 8, "auto", "none"), (16, 64, "auto", "group"), (80, 64, "model", "model"), (80, 64, "group", "group")],
)
def test_weights_are_placed_where_they_fit(
    free: dict[str, int], device_gib: int, host_gib: int, offload: str, expected: str
) -> None:
    free |= {"cuda": device_gib, "cpu": host_gib}
    chosen = choose_offload(sizes(), "flux", CARD, "none", offload)  # type: ignore[arg-type]  # literals
    assert chosen == expected


def test_models_that_cannot_fit_are_refused_with_figures(free: dict[str, int]) -> None:
    free |= {"cuda": 12, "cpu": 16}
    with pytest.raises(DeviceError, match=r"2\.5 GiB .* 12\.0 GiB are free and 24\.0 GiB .* 16\.0 GiB") as caught:
        choose_offload(sizes(int8=12 * GIB, nf4=7 * GIB), "flux", CARD, "none", "auto")  # type: ignore[arg-type]  # a function
    assert "--quantize nf4" in str(caught.value.hint)
    with pytest.raises(UsageError, match="own memory"):
        choose_offload(sizes(), "flux", CPU, "none", "group")  # type: ignore[arg-type]  # a function


def test_models_that_cannot_fit_are_not_read(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "free_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(flux, "load_part", None)
    with pytest.raises(DeviceError, match="GiB"):
        load(base)


def test_the_footprint_is_that_of_the_headers(base: Path) -> None:
    entries = [
        ("blocks.0.a.weight", TensorEntry("BF16", (8, 4))),
        ("blocks.0.a.bias", TensorEntry("BF16", (8,))),
        ("blocks.1.a.weight", TensorEntry("BF16", (2, 4))),
        ("proj.weight", TensorEntry("BF16", (3, 4))),
    ]
    assert measure_footprint(entries, 2, "none", 7, 9) == Footprint(120, 80, 24, 7, 9)
    assert measure_footprint(entries, 2, "int8", 7, 9) == Footprint(68, 48, 12, 7, 9)


def test_a_plan_counts_quantised_weights(base: Path) -> None:
    whole = describe_model(find(base))
    small = describe_model(replace(find(base), quantize="nf4"))
    assert whole.weight_bytes(2) == 2 * whole.parameters
    assert small.weight_bytes(2) < 0.6 * whole.weight_bytes(2)


class Halving:
    """A quantiser that leaves a trace of what it was given."""

    def __init__(self) -> None:
        self.given: dict[str, Tensor] = {}

    def preprocess_model(self, **options: object) -> None: ...

    def postprocess_model(self, network: torch.nn.Module) -> None: ...

    def check_if_quantized_param(self, network: torch.nn.Module, value: Tensor, name: str, state: object) -> bool:
        return name.endswith("to_q.weight")

    def create_quantized_param(
        self, network: torch.nn.Module, value: Tensor, name: str, device: torch.device, *others: object
    ) -> None:
        self.given[name] = value
        network.get_submodule(name.removesuffix(".weight"))._parameters["weight"] = torch.nn.Parameter(value)


def test_an_adapter_is_added_before_weights_are_quantised(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = Halving()
    monkeypatch.setattr(flux, "build_quantizer", lambda *_: quantizer)
    load(base, adapter)
    merged = load(base, adapter).backbone
    assert len(quantizer.given) == 4
    plain = FluxTransformer2DModel.from_pretrained(base / "transformer")
    for name, value in quantizer.given.items():
        torch.testing.assert_close(value, merged.get_parameter(name).detach())
        assert not torch.allclose(value, plain.get_parameter(name))


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_gives_the_same(base: Path, offload: str) -> None:
    model = load(base)
    latent = torch.randn(1, 16, 4, 6)
    with torch.inference_mode():
        expected = model.restore(latent)
        release = large.offload_network(model.backbone, CPU, offload)  # type: ignore[arg-type]  # a literal
        torch.testing.assert_close(model.restore(latent), expected)
        if release is not None:
            release()
        torch.testing.assert_close(model.restore(latent), expected)
    assert (release is None) == (offload == "group")


def test_a_missing_quantiser_is_one_line(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omgsr_cli.models.sources.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="bitsandbytes is not installed") as caught:
        find(base, quantize="nf4")
    assert "quantize" in str(caught.value.hint)
