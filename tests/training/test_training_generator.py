"""The trained networks: what learns, what stays, and what is saved."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import write_tiny_model
from random_sd import write_sd_model
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.models.base import Trainable
from omgsr_cli.models.loading import load_restorer, load_trainable
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import load_record
from omgsr_cli.models.sd import SD_LORA
from omgsr_cli.models.sources import find_trainable
from omgsr_cli.models.wavelet import WaveletLatents
from omgsr_cli.training.config import GanConfig, TrainConfig, read_preset_config
from omgsr_cli.training.data import Purpose, draw_generator
from omgsr_cli.training.discriminator import build_discriminator
from omgsr_cli.training.model import Denoising, Generator, build_generator, draw_timestep
from omgsr_cli.training.step import WeightAverage

CPU = torch.device("cpu")
LORA = LoraOptions(vae_rank=3, backbone_rank=5, backbone_alpha=2.5)


def generators(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def images(count: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd_model(tmp_path_factory.mktemp("sd"))


def load_tiny(folder: Path) -> Trainable:
    return load_trainable(find_trainable(start_from=str(folder)), CPU, start_from=str(folder))


def load_sd(folder: Path, lora: LoraOptions = LORA, **options: object) -> Trainable:
    source = find_trainable(base=str(folder), lora=lora)
    return load_trainable(source, CPU, lora=lora, native_px=32, **options)  # type: ignore[arg-type]  # test's shorthand


def shake(trainable: Trainable, std: float = 0.1) -> None:
    """Give every weight that learns a visible change."""
    draw = torch.Generator().manual_seed(7)
    for weight in trainable.trained().values():
        weight.data += torch.randn(weight.shape, generator=draw) * std


@pytest.mark.parametrize("family", ["tiny", "sd"])
def test_training_restores_as_upscale_does(family: str, tiny_folder: Path, sd_folder: Path) -> None:
    trainable = load_tiny(tiny_folder) if family == "tiny" else load_sd(sd_folder)
    assert isinstance(trainable, Trainable)
    shake(trainable, 0.01)
    generator, lq, hq = Generator(trainable), images(), images(seed=1)
    output = generator(lq, hq, 5, (40, 41))
    restorer = trainable.restorer
    torch.testing.assert_close(output.restored, restorer.decode(restorer.restore(output.lq_latent)))
    with torch.no_grad():
        users = restorer.decode(restorer.restore(restorer.encode(lq)))
    torch.testing.assert_close(generator.restore(lq), users)
    assert output.restored.shape == hq.shape
    assert output.restored.dtype == output.lq_latent.dtype == torch.float32
    assert not output.noisy_latent.requires_grad
    assert not output.target_latent.requires_grad


def test_the_target_of_lrr_is_the_pretrained_noisy_latent(tiny_folder: Path) -> None:
    trainable = load_tiny(tiny_folder)
    lq, hq = images(64, 16), images(64, 16, seed=1)
    output = Generator(trainable)(lq, hq, 0, range(64))
    alpha_bar = trainable.restorer.schedule.level(trainable.restorer.info.mid_timestep)
    noise = (output.noisy_latent - alpha_bar**0.5 * output.target_latent) / (1 - alpha_bar) ** 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    correlation = (noise[:-1] * noise[1:]).mean()
    assert abs(float(correlation)) < 0.01, "two samples have the same noise"


@pytest.mark.parametrize("family", ["tiny", "sd"])
def test_draws_depend_on_the_sample_number_only(family: str, tiny_folder: Path, sd_folder: Path) -> None:
    generator = Generator(load_tiny(tiny_folder) if family == "tiny" else load_sd(sd_folder))
    lq, hq = images(3), images(3, seed=1)
    torch.manual_seed(1)
    together = generator(lq, hq, 5, (7, 8, 9))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    alone = generator(lq[1:2], hq[1:2], 5, (8,))
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used"
    for name in ("target_latent", "noisy_latent", "lq_latent"):
        torch.testing.assert_close(getattr(alone, name), getattr(together, name)[1:2], rtol=1e-4, atol=1e-5)
    other_seed = generator(lq[1:2], hq[1:2], 6, (8,))
    assert not torch.allclose(other_seed.noisy_latent, alone.noisy_latent)
    purposes = {draw_generator(5, purpose, 8).initial_seed() for purpose in Purpose}
    assert len(purposes) == len(Purpose)


def test_bf16_does_not_reach_the_wavelets() -> None:
    latents, image = WaveletLatents(), images()
    with torch.autocast("cpu", torch.bfloat16):
        back = latents.decode(latents.encode(image))
    torch.testing.assert_close(back, image, rtol=0, atol=1e-5)


def test_all_weights_of_tiny_learn_and_its_latent_space_stays(tiny_folder: Path) -> None:
    trainable = load_tiny(tiny_folder)
    kept = trainable.encode_clean(images(), [])
    output = Generator(trainable)(images(), images(seed=1), 0, (0, 1))
    (output.restored.square().mean() + output.lq_latent.square().mean()).backward()
    weights = trainable.trained()
    assert all(weight.grad is not None for weight in weights.values())
    assert {name.partition(".")[0] for name in weights} == {"encoder", "unet"}
    shake(trainable)
    assert torch.equal(kept, trainable.encode_clean(images(), []))


def test_a_saved_tiny_model_is_the_trained_one(tiny_folder: Path, tmp_path: Path) -> None:
    trainable = load_tiny(tiny_folder)
    shake(trainable, 0.02)
    trainable.save(tmp_path / "out")
    with torch.no_grad():
        expected = Generator(trainable).restore(images())
        loaded = load_restorer(tmp_path / "out", precision="fp32")
        torch.testing.assert_close(loaded.decode(loaded.restore(loaded.encode(images()))), expected, rtol=0, atol=0)
    assert load_record(tmp_path / "out") == load_record(tiny_folder)


def test_new_weights_of_tiny_come_from_the_seed(tiny_folder: Path) -> None:
    source = find_trainable(base=str(tiny_folder))
    first, again, other = (load_trainable(source, CPU, seed=seed) for seed in (1, 1, 2))
    began = load_tiny(tiny_folder)
    for name in ("unet.blocks.0.conv.weight", "encoder.conv_in.weight"):
        assert torch.equal(first.trained()[name], again.trained()[name])
        assert not torch.equal(first.trained()[name], other.trained()[name])
        assert not torch.equal(first.trained()[name], began.trained()[name])
    # The step of new weights adds nothing, in the latent space of the folder.
    image = images()
    torch.testing.assert_close(Generator(first).restore(image), image, rtol=0, atol=1e-4)


def test_weights_of_another_shape_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    trainable = load_trainable(find_trainable("omgsr-tiny"), CPU)
    with pytest.raises(ModelError, match="another shape"):
        trainable.load(tiny_folder)
    with pytest.raises(ModelError, match="not a model of the tiny family"):
        trainable.load(tmp_path)


def test_the_lora_starts_as_the_base_and_both_parts_learn(sd_folder: Path) -> None:
    trainable = load_sd(sd_folder)
    image = images()
    base = load_restorer(sd_folder, precision="fp32")
    with torch.no_grad():
        expected = base.decode(base.restore(base.encode(image)))
    torch.testing.assert_close(Generator(trainable).restore(image), expected, rtol=1e-4, atol=1e-5)
    shake(trainable)
    output = Generator(trainable)(image, images(seed=1), 0, (0, 1))
    (output.restored.square().mean() + output.lq_latent.square().mean()).backward()
    weights = trainable.trained()
    assert {name.partition(".")[0] for name in weights} == {"vae_encoder_lora_adapter", "unet_lora_adapter"}
    assert all(weight.grad is not None and weight.dtype == torch.float32 for weight in weights.values())
    others = [weight for name, weight in trainable.networks.named_parameters() if "lora_" not in name]
    assert not any(weight.requires_grad or weight.grad is not None for weight in others)
    assert len(weights) == sum("lora_" in name for name, _ in trainable.networks.named_parameters())


def test_the_target_comes_from_the_encoder_without_its_adapter(sd_folder: Path) -> None:
    trainable, image = load_sd(sd_folder), images()
    before = trainable.encode_clean(image, generators(1, 2))
    torch.testing.assert_close(trainable.encode(image, generators(1, 2)), before)
    shake(trainable)
    assert torch.equal(trainable.encode_clean(image, generators(1, 2)), before)
    assert not torch.allclose(trainable.encode(image, generators(1, 2)), before, atol=1e-2)
    assert all(weight.requires_grad for weight in trainable.trained().values())


def test_a_merged_adapter_is_the_live_one(sd_folder: Path, tmp_path: Path) -> None:
    trainable, image = load_sd(sd_folder), images(side=36)
    shake(trainable)
    live = Generator(trainable).restore(image)
    trainable.save(tmp_path / "adapter")
    merged = load_restorer(base=sd_folder, adapter=tmp_path / "adapter", precision="fp32")
    with torch.no_grad():
        torch.testing.assert_close(merged.decode(merged.restore(merged.encode(image))), live, rtol=1e-3, atol=1e-4)
    assert (merged.info.native_tile_px, merged.info.mid_timestep) == (32, 273)
    for part, rank, alpha in (("vae_encoder_lora_adapter", 3, 3), ("unet_lora_adapter", 5, 2.5)):
        config = json.loads((tmp_path / "adapter" / part / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["peft_type"]) == (rank, alpha, "LORA")
    again = load_sd(sd_folder, start_from=str(tmp_path / "adapter"))
    for name, weight in trainable.trained().items():
        assert torch.equal(again.trained()[name], weight)
    with pytest.raises(ModelError, match="rank 3 differs from 4"):
        load_sd(sd_folder, LoraOptions(4, 5, backbone_alpha=2.5), start_from=str(tmp_path / "adapter"))
    fewer = LoraOptions(3, 5, backbone_alpha=2.5, vae_targets=("conv1", "conv2"))
    with pytest.raises(ModelError, match="do not match the adapters to train"):
        load_sd(sd_folder, fewer, start_from=str(tmp_path / "adapter"))


def test_published_ranks_are_the_default() -> None:
    options = SD_LORA
    assert (options.vae_rank, options.backbone_rank, options.vae_alpha) == (16, 32, None)
    expected = "conv1 conv2 conv_in conv_shortcut conv conv_out to_k to_q to_v to_out.0"
    assert options.vae_targets is not None
    assert options.backbone_targets is not None
    assert set(options.vae_targets) == set(options.backbone_targets) == set(expected.split())


def test_gradient_checkpointing_changes_no_gradient(sd_folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        trainable = load_sd(sd_folder)
        shake(trainable)
        if checkpointing:
            trainable.checkpoint_gradients()
        Generator(trainable)(images(), images(seed=1), 0, (0, 1)).restored.square().mean().backward()
        found.append({name: weight.grad for name, weight in trainable.trained().items()})
    for name, gradient in found[0].items():
        assert gradient is not None
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_conflicting_settings_are_refused_before_weights_are_read(tiny_folder: Path, sd_folder: Path) -> None:
    with pytest.raises(UsageError, match="trained as a whole"):
        find_trainable(base=str(tiny_folder), lora=LORA)
    with pytest.raises(UsageError, match="no preset is called 'omgsr-xl'"):
        find_trainable("omgsr-xl")
    with pytest.raises(UsageError, match="no model to train"):
        find_trainable()
    with pytest.raises(ModelError, match="does not exist"):
        find_trainable("omgsr-tiny", start_from="nowhere")
    with pytest.raises(ModelError, match="'conv9' is not a convolution"):
        load_sd(sd_folder, LoraOptions(3, 5, vae_targets=("conv1", "conv9")))


def test_swapping_averages_in_and_out_is_exact() -> None:
    weight = nn.Parameter(torch.zeros(2, 3, 3, 3).to(memory_format=torch.channels_last))
    average = WeightAverage({"w": weight}, decay=0.9)
    expected, updates = torch.zeros(()), 60
    for step in range(updates):
        weight.data.fill_(step + 1 / 3)
        average.update()
        decay = min(0.9, (2 + step) / (11 + step))
        expected = expected * decay + weight.data.flatten()[0] * (1 - decay)
    torch.testing.assert_close(average.values["w"].flatten()[0], expected)
    own = weight.detach().clone()
    with average.applied():
        assert torch.equal(weight, average.values["w"])
        assert not torch.equal(weight, own)
    assert torch.equal(weight, own)


def test_unstepped_is_the_encoders_own_image(tiny_folder: Path) -> None:
    trainable, lq = load_tiny(tiny_folder), images()
    shake(trainable, 0.01)
    assert Generator(trainable)(lq, lq, 5, (0, 1)).unstepped is None
    found = Generator(trainable, shows_encoder=True)(lq, lq, 5, (0, 1)).unstepped
    network = trainable.restorer.network  # type: ignore[attr-defined]  # the tiny family's
    torch.testing.assert_close(found, lq + network.encoder(lq), atol=1e-4, rtol=0)
    found.square().mean().backward()
    assert all(weight.grad is not None for weight in network.encoder.parameters())
    assert all(weight.grad is None for weight in network.unet.parameters())


@pytest.mark.parametrize("family", ["tiny", "sd"])
def test_pre_training_predicts_the_noise(family: str, tiny_folder: Path, sd_folder: Path) -> None:
    trainable = load_tiny(tiny_folder) if family == "tiny" else load_sd(sd_folder)
    shake(trainable, 0.01)
    hq, numbers = images(), (40, 41)
    error = Denoising(trainable)(hq, hq, 5, numbers)
    assert error.shape == (2,)
    schedule = trainable.restorer.schedule
    for place, number in enumerate(numbers):
        draw = draw_generator(5, Purpose.LATENT, number)
        timestep = draw_timestep(number, draw)
        clean = trainable.encode_clean(hq[place : place + 1], [draw])
        noise = torch.randn(clean.shape[1:], generator=draw)[None]
        noisy = schedule.add_noise(clean, noise, timestep)
        predicted = trainable.restorer.predict(noisy, torch.tensor([timestep]))  # type: ignore[attr-defined]  # of both
        # Eq. 14 of DDPM: these schedules predict the noise.
        torch.testing.assert_close(error[place], (predicted - noise).square().mean(), rtol=2e-3, atol=1e-4)
    error.sum().backward()
    learned = [name for name, weight in trainable.trained().items() if weight.grad is not None]
    assert learned
    assert not any("encoder" in name for name in learned)


def test_timesteps_of_pre_training_favour_the_early_ones() -> None:
    draws = [draw_timestep(number, draw_generator(1, Purpose.LATENT, number)) for number in range(2000)]
    assert min(draws) < 3
    assert max(draws) > 990
    early = [share < 250 for share in draws]
    assert sum(early[1::2]) / 1000 == pytest.approx(0.25, abs=0.05)
    assert sum(early[::2]) / 1000 == pytest.approx(0.5, abs=0.05)


# As published


def formats_of(network: nn.Module, work: Callable[[], object]) -> set[torch.dtype]:
    """The number formats that a network's convolutions give while something works."""
    found: set[torch.dtype] = set()

    def note(_: nn.Module, __: object, made: Tensor) -> None:
        found.add(made.dtype)

    hooks = [each.register_forward_hook(note) for each in network.modules() if isinstance(each, nn.Conv2d)]
    work()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("precision", "vae", "unet"),
    [
        ("fp32", torch.float32, torch.float32),
        ("mixed", torch.float32, torch.bfloat16),
        ("bf16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_every_network_computes_in_its_precision(
    precision: str, vae: torch.dtype, unet: torch.dtype, sd_folder: Path
) -> None:
    trainable = load_sd(sd_folder, precision="bf16" if precision == "bf16" else "fp32")
    frozen = {weight.dtype for weight in trainable.networks.parameters() if not weight.requires_grad}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {weight.dtype for weight in trainable.trained().values()} == {torch.float32}
    generator, networks = Generator(trainable, precision), trainable.networks
    for work in (lambda: generator(images(), images(), 0, (0, 1)), lambda: generator.restore(images())):
        assert formats_of(networks["vae"], work) == {vae}  # type: ignore[index]  # a dictionary of modules
        assert formats_of(networks["unet"], work) == {unet}  # type: ignore[index]  # likewise
    # An adapter's own product is added to a frozen layer's.
    denoise = Denoising(trainable, precision)
    assert formats_of(networks["unet"], lambda: denoise(images(), images(), 0, (0, 1))) == {unet}  # type: ignore[index]  # likewise


def test_mixed_gradients_are_nearer_to_exact_ones(sd_folder: Path) -> None:
    gradients = {}
    for precision in ("fp32", "mixed", "bf16"):
        trainable = load_sd(sd_folder, precision="bf16" if precision == "bf16" else "fp32")
        shake(trainable, 0.05)
        output = Generator(trainable, precision)(images(4), images(4, seed=1), 0, range(4))
        (output.restored - images(4, seed=1)).square().mean().backward()
        gradients[precision] = torch.cat([weight.grad.flatten() for weight in trainable.trained().values()])
    exact = gradients["fp32"]
    errors = {name: float((each - exact).norm() / exact.norm()) for name, each in gradients.items()}
    assert 0 < errors["mixed"] < 0.7 * errors["bf16"]


@pytest.mark.parametrize("family", ["tiny", "sd"])
@pytest.mark.parametrize("clamp", [None, True, False])
def test_restored_images_are_clamped_as_each_family_publishes(
    family: str, clamp: bool | None, tiny_folder: Path, sd_folder: Path
) -> None:
    trainable = load_tiny(tiny_folder) if family == "tiny" else load_sd(sd_folder)
    shake(trainable, 1.0)
    tables = {"model": {"preset": "omgsr-tiny"}, "data": {"train": ["."]}, "loss": {}, "train": {"precision": "fp32"}}
    if clamp is not None:
        tables["loss"] = {"clamp": clamp}
    generator = build_generator(TrainConfig.model_validate(tables), trainable)
    restored = generator(images() * 20, images(), 0, (0, 1)).restored
    clamps = family == "sd" if clamp is None else clamp
    assert bool(restored.abs().max() > 1) != clamps


def test_the_discriminator_of_mixed_computes_in_bf16_and_keeps_its_weights() -> None:
    config, image = GanConfig(width=8), images(2, 32)
    plain, mixed = (build_discriminator(None, 32, config, autocast=autocast) for autocast in (False, True))
    assert formats_of(plain, lambda: plain.judge(image)) == {torch.float32}
    assert formats_of(mixed, lambda: mixed.judge(image)) == {torch.bfloat16}
    assert {weight.dtype for weight in mixed.parameters()} == {torch.float32}
    assert all(level.dtype == torch.float32 for level in mixed.judge(image))


def test_published_modes_are_the_default_of_omgsr_s() -> None:
    for text in (read_preset_config("omgsr-s-512"), '[model]\npreset = "omgsr-s-512"\n[data]\ntrain = ["x"]'):
        config = TrainConfig.model_validate(tomllib.loads(text))
        assert config.train.precision == "mixed"
        assert config.degradation.presets == {"omgsr": 1.0}
        assert config.loss.clamp in (None, True)
