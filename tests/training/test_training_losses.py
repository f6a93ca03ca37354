"""Losses: published scores and gradients, other implementations, and unused parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from places import GOLDEN
from safetensors.torch import save_file
from scipy.ndimage import convolve
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.training import perceptual as lpips_module
from omgsr_cli.training.config import LossConfig
from omgsr_cli.training.losses import (
    Losses,
    build_losses,
    cut_window,
    discriminator_loss,
    generator_gan_loss,
    latent_loss,
)
from omgsr_cli.training.model import GeneratorOutput
from omgsr_cli.training.perceptual import (
    AlexNet,
    Dists,
    FeatureNet,
    Lpips,
    Vgg16,
    load_dinov3,
    load_dists,
    load_lpips,
    pool_l2,
)

GOLDEN_DV3CD = GOLDEN / "dv3cd"

Array = NDArray[np.float64]


class SmallNet(FeatureNet):
    """Two stages of random convolutions."""

    channels = (4, 6)
    strides = (2, 4)
    min_px = 8

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)])
        self.freeze(dtype)

    def _maps(self, image: Tensor, pooled: bool) -> list[Tensor]:
        maps, hidden = [], image
        for stage in self.stages:
            hidden = stage(hidden).relu()
            hidden = pool_l2(hidden, 1) if pooled else hidden
            maps.append(hidden)
        return maps


def draw_images(count: int = 2, height: int = 37, width: int = 50, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def build_output(restored: Tensor, channels: int = 48) -> GeneratorOutput:
    torch.manual_seed(5)
    first, second, third, fourth = torch.randn(4, len(restored), channels, 9, 12)
    return GeneratorOutput(first, second, third, fourth, restored)


def test_dv3cd_meets_the_golden_scores_maps_and_gradient() -> None:
    kit = np.load(GOLDEN_DV3CD / "dv3cd.npz", allow_pickle=False)
    distance = Dists(load_dinov3(GOLDEN_DV3CD / "backbone"))
    x, y, z = (torch.from_numpy(kit[name]) for name in "xyz")
    x.requires_grad_()
    score = distance(x, y).mean()
    assert score.item() == pytest.approx(float(kit["score_xy"]), abs=1e-6)
    assert distance(x, z).mean().item() == pytest.approx(float(kit["score_xz"]), abs=1e-6)
    assert distance(x, x).abs().max().item() == 0
    (gradient,) = torch.autograd.grad(score, x)
    # The largest element is 1.7e-3.
    np.testing.assert_allclose(gradient.numpy(), kit["grad_x_of_score_xy"], atol=1e-7)
    maps = distance.maps(x)
    np.testing.assert_allclose(maps[1].detach().numpy(), kit["feat1"], atol=1e-5)
    np.testing.assert_allclose(maps[3].detach().numpy(), kit["feat3"], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (13, 8)])
@pytest.mark.parametrize("stride", [1, 2])
def test_l2_pooling_is_a_blur_of_squares(size: tuple[int, int], stride: int) -> None:
    features = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    window = np.hanning(5)[1:-1]
    kernel = np.outer(window, window) / window.sum() ** 2
    found = pool_l2(features, stride).numpy()
    for plane, expected in zip(found.reshape(-1, *found.shape[2:]), features.numpy().reshape(-1, *size), strict=True):
        blurred = convolve(expected.astype(np.float64) ** 2, kernel, mode="constant")[::stride, ::stride]
        np.testing.assert_allclose(plane, np.sqrt(blurred + 1e-12), atol=1e-6)


def dists_by_hand(first: list[Tensor], second: list[Tensor], alpha: Array, beta: Array) -> Array:
    """Eq. 6 to 8 of the paper in float64, with the moments in their other form."""
    result, offset = np.ones(len(first[0])), 0
    for a_map, b_map in zip(first, second, strict=True):
        for channel in range(a_map.shape[1]):
            for number in range(len(result)):
                a = a_map[number, channel].double().numpy().ravel()
                b = b_map[number, channel].double().numpy().ravel()
                covariance = (a * b).mean() - a.mean() * b.mean()
                texture = (2 * a.mean() * b.mean() + 1e-6) / (a.mean() ** 2 + b.mean() ** 2 + 1e-6)
                structure = (2 * covariance + 1e-6) / (a.var() + b.var() + 1e-6)
                result[number] -= alpha[offset] * texture + beta[offset] * structure
            offset += 1
    return result


@pytest.mark.parametrize("learned", [False, True])
def test_dists_is_the_papers_formula(learned: bool) -> None:
    net = SmallNet()
    rng = np.random.default_rng(0)
    alpha, beta = rng.random((2, 13)) if learned else np.ones((2, 13))
    weights = [torch.from_numpy(values).float().view(1, -1, 1, 1) for values in (alpha, beta)] if learned else []
    distance = Dists(net, *weights)
    first, second = draw_images(), draw_images(seed=1)
    total = alpha.sum() + beta.sum()
    expected = dists_by_hand(distance.maps(first), distance.maps(second), alpha / total, beta / total)
    np.testing.assert_allclose(distance(first, second).numpy(), expected, atol=1e-6)
    assert distance.maps(first)[0].min() >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dists_of_an_image_with_itself_is_zero_under_autocast(dtype: torch.dtype) -> None:
    distance, image = Dists(SmallNet(dtype)), draw_images()
    with torch.autocast("cpu", torch.bfloat16):
        same, other = distance(image, image.clone()), distance(image, draw_images(seed=1))
    assert same.dtype == other.dtype == torch.float32
    assert same.abs().max() == 0
    torch.testing.assert_close(other, distance(image, draw_images(seed=1)), atol=0, rtol=0)
    assert other.min() > 0.1


def test_dists_of_flat_images_has_finite_gradients() -> None:
    flat = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)
    for other in (torch.full((1, 3, 16, 16), -1.0), draw_images(1, 16, 16)):
        (gradient,) = torch.autograd.grad(Dists(SmallNet())(flat, other).sum(), flat)
        assert gradient.isfinite().all()


def test_compiled_statistics_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph; with the backend that only captures it, as the other one takes half a minute to build code."""
    compiled = []

    def capture(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append(options)
        return original(function, backend="eager", fullgraph=True, **options)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", capture)
    distance = Dists(SmallNet())
    first, second = draw_images(), draw_images(seed=1)
    expected = distance(first, second)
    distance.compile_statistics()
    assert torch.equal(distance(first, second), expected)
    assert len(compiled) == 1


def test_learned_weights_are_found_beside_the_network(tmp_path: Path) -> None:
    net = SmallNet()
    assert torch.equal(load_dists(net, tmp_path).texture, load_dists(net, None).structure)
    alpha, beta = torch.rand(1, 13, 1, 1), torch.rand(1, 13, 1, 1)
    torch.save({"alpha": nn.Parameter(alpha), "beta": nn.Parameter(beta)}, tmp_path / "dists.pt")
    found = load_dists(net, tmp_path)
    torch.testing.assert_close(found.texture * (alpha.sum() + beta.sum()), alpha.flatten())
    assert not found.texture.requires_grad
    (tmp_path / "vgg16.pth").touch()
    assert torch.equal(load_dists(net, tmp_path / "vgg16.pth").texture, found.texture)
    torch.save({"alpha": alpha[:, :7], "beta": beta}, tmp_path / "dists.pt")
    with pytest.raises(ModelError, match=r"the network needs 13"):
        load_dists(net, tmp_path)
    torch.save({"alpha": alpha}, tmp_path / "dists.pt")
    with pytest.raises(ModelError, match=r"dists\.pt has no weights of DISTS"):
        load_dists(net, tmp_path)


def fill_randomly(net: nn.Module) -> nn.Module:
    torch.manual_seed(4)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.05)
    return net


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet and LPIPS's linear weights as published, with random numbers."""
    folder = tmp_path_factory.mktemp("lpips")
    net = fill_randomly(AlexNet())
    places = dict(enumerate((0, 3, 6, 8, 10)))
    tensors = {
        f"features.{places[int(name.split('.')[1])]}.{name.split('.')[2]}": value
        for name, value in net.state_dict().items()
    }
    torch.save(tensors, folder / "alexnet-owt-7be5be79.pth")
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(AlexNet.channels)}
    torch.save(linear, folder / "alex.pth")
    save_file(tensors | linear, folder / "both.safetensors")
    return folder


def test_lpips_is_the_papers_formula(lpips_folder: Path) -> None:
    distance = load_lpips(lpips_folder)
    linear = torch.load(lpips_folder / "alex.pth", weights_only=True)
    first, second = draw_images(height=45), draw_images(height=45, seed=1)
    expected = np.zeros(2)
    for number, (a_map, b_map) in enumerate(zip(distance.features(first), distance.features(second), strict=True)):
        a, b = a_map.double().numpy(), b_map.double().numpy()
        a, b = (each / np.sqrt((each**2).sum(1, keepdims=True) + 1e-10) for each in (a, b))
        weight = linear[f"lin{number}.model.1.weight"].double().numpy()
        expected += (weight * (a - b) ** 2).sum(1).mean((1, 2))
    np.testing.assert_allclose(distance(first, second).numpy(), expected, rtol=1e-4)
    assert distance(first, first.clone()).abs().max() == 0
    one_file = load_lpips(lpips_folder / "both.safetensors")
    assert torch.equal(one_file(first, second), distance(first, second))


def test_lpips_names_missing_weights(lpips_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights of alexnet"):
        load_lpips(tmp_path)
    with pytest.raises(ModelError, match=r"no weights of LPIPS: lin0\.model\.1\.weight"):
        load_lpips(lpips_folder / "alexnet-owt-7be5be79.pth")
    with pytest.raises(ModelError, match="the network has channels"):
        Lpips(Vgg16(), [torch.zeros(1, channels, 1, 1) for channels in AlexNet.channels])


def seeds(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(9 + number) for number in range(count)]


def test_lpips_sees_a_grid_at_every_offset() -> None:
    offsets = set()
    for seed in range(400):
        rows = torch.arange(40.0).view(1, 1, 40, 1).expand(1, 1, 40, 30)
        columns = torch.arange(30.0).view(1, 1, 1, 30).expand(1, 1, 40, 30)
        first, second = cut_window(rows, columns, (33, 23), [torch.Generator().manual_seed(seed)])
        assert first.shape == second.shape == (1, 1, 33, 23)
        offsets.add((int(first[0, 0, 0, 0]), int(second[0, 0, 0, 0])))
    assert offsets == {(y, x) for y in range(8) for x in range(8)}
    # Each pair has its own, wherever it is in a batch.
    first, _ = cut_window(rows.repeat(9, 1, 1, 1), rows.repeat(9, 1, 1, 1), (33, 23), seeds(9))
    alone = [cut_window(rows, rows, (33, 23), [own])[0] for own in seeds(9)]
    assert torch.equal(first, torch.cat(alone))
    assert len(set(first[:, 0, 0, 0].tolist())) > 1


def test_every_loss_is_named_weighted_and_its_own(lpips_folder: Path, tmp_path: Path) -> None:
    config = LossConfig(
        lrr=5.0, l1=0.5, dv3cd=3.0, gan=0.25, lpips=2.0, backbone="vgg16", backbone_path=str(tmp_path),
        lpips_path=str(lpips_folder),
    )  # fmt: skip
    torch.save({"alpha": torch.rand(13), "beta": torch.rand(13)}, tmp_path / "dists.pt")
    losses = build_losses(config, SmallNet(), tmp_path)
    assert losses.names == ("lrr", "l1", "dv3cd", "lpips")
    restored, hq = draw_images(height=45), draw_images(height=45, seed=1)
    output = build_output(restored)
    found = losses(output, hq, seeds())
    assert tuple(found) == losses.names
    assert losses.dists is not None
    assert losses.lpips is not None
    learned = torch.load(tmp_path / "dists.pt", weights_only=True)["alpha"]
    torch.testing.assert_close(losses.dists.texture / losses.dists.texture[0], learned / learned[0])
    expected = {
        "lrr": (output.lq_latent - output.noisy_latent).square().mean(),
        "l1": (restored - hq).abs().mean(),
        "dv3cd": losses.dists(restored, hq).mean(),
        "lpips": losses.lpips(*cut_window(restored, hq, (38, hq.shape[3] - 7), seeds())).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        assert found[name].dtype == torch.float32
    weights = {"lrr": 5, "l1": 0.5, "dv3cd": 3, "lpips": 2, "gan": 0.25}
    gan = torch.tensor(1.5)
    total = sum(weights[name] * value.item() for name, value in (found | {"gan": gan}).items())
    assert losses.total(found | {"gan": gan}).item() == pytest.approx(total, rel=1e-6)
    assert set(losses.measures()) == {"dv3cd", "lpips"}
    assert losses.measures()["dv3cd"](restored, hq).shape == (2,)
    # Without a draw, LPIPS is measured where the image is.
    torch.testing.assert_close(losses(output, hq)["lpips"], losses.lpips(restored, hq).mean())


def test_a_loss_without_weight_is_not_computed(lpips_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> Tensor:
        raise AssertionError("computed")

    config = LossConfig(lrr=1.0, l1=0.0, dv3cd=0.0, gan=0.5, lpips=0.0, lpips_path=str(lpips_folder))
    losses = build_losses(config, SmallNet())
    monkeypatch.setattr(Dists, "forward", forbidden)
    monkeypatch.setattr(lpips_module, "feature_distance", forbidden)
    found = losses(build_output(draw_images()), draw_images(seed=1))
    assert tuple(found) == losses.names == ("lrr",)
    # They are there for validation.
    assert set(losses.measures()) == {"dv3cd", "lpips"}


def test_a_teachers_dists_is_measured_now_and_then_in_a_window() -> None:
    dists = load_dists(SmallNet(), None)
    losses = Losses({"teacher": 1.0, "teacher_dists": 2.0}, dists, teacher_dists_every=3, teacher_dists_px=20)
    restored, target = draw_images(height=45), draw_images(height=45, seed=1)
    output = build_output(restored)
    found = [losses(output, restored, seeds(), target, step) for step in range(4)]
    assert [tuple(each) for each in found] == [losses.names, ("teacher",), ("teacher",), losses.names]
    windows = cut_window(restored, target, (20, 20), seeds())
    assert windows[0].shape[-2:] == (20, 20)
    torch.testing.assert_close(found[0]["teacher_dists"], dists(*windows).mean())
    first, second = cut_window(target, target, (20, 20), [torch.Generator().manual_seed(n) for n in (1, 2)])
    assert torch.equal(first, second)
    assert not torch.equal(first, windows[1])
    assert cut_window(restored, target, (1000, 1000), seeds())[1].shape == target.shape
    alone = cut_window(restored[1:], target[1:], (20, 20), seeds()[1:])
    assert torch.equal(alone[0], windows[0][1:])


def test_without_a_feature_network_the_other_losses_remain() -> None:
    losses = build_losses(LossConfig(lrr=1.0, l1=1.0, dv3cd=0.0, gan=0.0), None)

    assert losses.names == ("lrr", "l1")
    assert losses.measures() == {}
    with pytest.raises(UsageError, match="dv3cd has a weight"):
        Losses({"dv3cd": 1.0})


def test_lrr_of_a_perfect_encoder_is_the_unpredictable_noise() -> None:
    torch.manual_seed(0)
    alpha_bar = 0.6
    clean = torch.randn(1, 4, 200, 200)
    noisy = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * torch.randn_like(clean)
    found = latent_loss(noisy.bfloat16(), (alpha_bar**0.5 * clean).bfloat16())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1 - alpha_bar, rel=0.02)


def test_the_gan_losses_are_cross_entropies() -> None:
    torch.manual_seed(0)
    real = [torch.randn(2, 1, 3, 4), torch.randn(2, 1, 1, 1)]
    fake = [torch.randn(2, 1, 3, 4), torch.randn(2, 1, 1, 1)]

    def entropy(levels: list[Tensor], label: float) -> float:
        total = 0.0
        for level in levels:
            chance = 1 / (1 + np.exp(-level.double().numpy()))
            total += -(label * np.log(chance) + (1 - label) * np.log(1 - chance)).mean((1, 2, 3)).mean()
        return total

    assert generator_gan_loss(fake).item() == pytest.approx(entropy(fake, 0.8), rel=1e-5)
    assert discriminator_loss(real, fake).item() == pytest.approx(entropy(real, 0.8) + entropy(fake, 0.0), rel=1e-5)
    assert discriminator_loss(real, fake, (0.9, 0.1)).item() == pytest.approx(
        entropy(real, 0.9) + entropy(fake, 0.1), rel=1e-5
    )
