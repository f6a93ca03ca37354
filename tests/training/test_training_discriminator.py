"""The discriminator: published layout, blur, augmentation and gradients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import convolve2d
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from omgsr_cli.errors import UsageError
from omgsr_cli.training.config import GanConfig
from omgsr_cli.training.discriminator import (
    CHANGES,
    BlurPool,
    FeatureDiscriminator,
    augment,
    build_discriminator,
    change_color,
    cut_out,
    plan_heads,
    translate,
)
from omgsr_cli.training.losses import discriminator_loss, generator_gan_loss
from omgsr_cli.training.perceptual import FeatureNet
from omgsr_cli.training.step import Adversary


class SmallNet(FeatureNet):
    """The strides of VGG16, with hardly a channel."""

    channels = (2, 3, 4, 6, 8)
    strides = (1, 2, 4, 8, 16)
    min_px = 16

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((3, *self.channels)))
        self.freeze()

    def _maps(self, image: Tensor, pooled: bool) -> list[Tensor]:
        maps, hidden = [], image
        for stage in self.stages:
            hidden = nn.functional.max_pool2d(hidden, 2) if maps else hidden
            hidden = stage(hidden).relu()
            maps.append(hidden)
        return maps


def build(resolution: int = 64, seed: int = 0) -> FeatureDiscriminator:
    built = build_discriminator(SmallNet(), resolution, GanConfig(), seed)
    assert isinstance(built, FeatureDiscriminator)
    return built


def draws(count: int = 2, seed: int = 0) -> list[torch.Generator]:
    """One for each image."""
    return [draw(seed * 1000 + number) for number in range(count)]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=draw(seed)) * 2 - 1


# As published: for each resolution and level, the ratios of the channels and the strides.
PUBLISHED = {
    512: (((0.5, 1, 1), (2, 2, 2)), ((0.5, 0.5, 1), (1, 2, 2)), ((0.5, 0.5, 0.5), (1, 1, 2))),
    1024: (
        ((0.5, 1, 1, 1), (1, 2, 2, 2)),
        ((0.5, 0.5, 1, 1), (1, 1, 2, 2)),
        ((0.5, 0.5, 0.5, 1), (1, 1, 1, 2)),
    ),
}


@pytest.mark.parametrize("resolution", PUBLISHED)
def test_the_heads_have_the_published_sizes(resolution: int) -> None:
    for head, channels, (ratios, strides) in zip(
        plan_heads(resolution, (192, 384, 768)), (192, 384, 768), PUBLISHED[resolution], strict=True
    ):
        inputs = channels
        for block, ratio, stride in zip(head, ratios, strides, strict=True):
            assert (block.inputs, block.outputs, block.stride) == (inputs, int(inputs * ratio), stride)
            inputs = block.outputs


def test_the_layers_of_a_head() -> None:
    names = [type(layer).__name__ for layer in build(512).heads[0]]
    assert names == [*["BlurPool", "ParametrizedConv2d", "LeakyReLU"] * 3, "BlurPool", "ParametrizedConv2d"]
    plain = build_discriminator(SmallNet(), 64, GanConfig(blur_pool=False))
    assert not any(isinstance(module, BlurPool) for module in plain.modules())
    assert [tuple(level.shape) for level in plain(images(), draws())] == [
        tuple(level.shape) for level in build()(images(), draws())
    ]


@pytest.mark.parametrize("resolution", [64, 127, 255, 384, 1024])
def test_every_level_has_logits(resolution: int) -> None:
    discriminator = build(resolution)
    for head, channels, stride in zip(discriminator.heads, (4, 6, 8), (4, 8, 16), strict=True):
        side = resolution // stride
        level = head(torch.zeros(1, channels, side, side))
        assert level.shape[:2] == (1, 1)
        assert 1 <= level.shape[2] == level.shape[3] <= 4


def test_a_resolution_that_is_too_small_is_refused() -> None:
    plan_heads(64)
    with pytest.raises(UsageError, match="resolution of 63 px") as told:
        plan_heads(63)
    assert "64" in str(told.value.hint)
    with pytest.raises(UsageError, match="1, 2, 4"):
        plan_heads(128, (1, 2, 4))


def test_every_resolution_is_planned_or_refused() -> None:
    depths = []
    for resolution in range(1, 1200):
        try:
            depths.append(len(plan_heads(resolution, (8, 8, 8))[0]))
        except UsageError:
            depths.append(0)
    assert depths[:63] == [0] * 63
    assert depths[63:] == sorted(depths[63:])
    assert [depths.index(blocks) + 1 for blocks in (1, 2, 3, 4)] == [64, 128, 384, 768]


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (7, 4), (16, 9)])
def test_the_blur_is_a_convolution(size: tuple[int, int]) -> None:
    features = torch.randn(2, 3, *size, generator=draw())
    found = BlurPool(3)(features)
    assert found.shape == (2, 3, size[0] // 2, size[1] // 2)
    taps = np.array((1, 3, 3, 1)) / 8
    for number in range(2):
        for channel in range(3):
            whole = convolve2d(np.pad(features[number, channel].double().numpy(), 1), np.outer(taps, taps), "valid")
            np.testing.assert_allclose(found[number, channel].numpy(), whole[::2, ::2], atol=1e-6)
    assert not BlurPool(3).state_dict()


def test_the_u_net_equals_that_of_real_esrgan() -> None:
    """Layers, shapes and skips as written down by hand; spectral norms on all but the first and the last."""
    judge = build_discriminator(None, 64, GanConfig(width=4, augment=()), seed=3).eval()
    (net,) = judge.heads
    image = images(2, 24, 40)
    (logits,) = judge(image, draws(len(image)))
    assert logits.shape == (2, 1, 24, 40)
    weights = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    shapes = [tuple(conv.weight.shape) for conv in weights]
    assert shapes == [
        (4, 3, 3, 3), (8, 4, 4, 4), (16, 8, 4, 4), (32, 16, 4, 4), (16, 32, 3, 3), (8, 16, 3, 3), (4, 8, 3, 3),
        (4, 4, 3, 3), (4, 4, 3, 3), (1, 4, 3, 3),
    ]  # fmt: skip
    assert sum(is_parametrized(conv) for conv in weights) == 8

    def apply(conv: nn.Conv2d, x: Tensor, stride: int = 1) -> Tensor:
        return nn.functional.leaky_relu(nn.functional.conv2d(x, conv.weight, conv.bias, stride, 1), 0.2)

    def double(x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    x0 = apply(weights[0], image)
    x1 = apply(weights[1], x0, 2)
    x2 = apply(weights[2], x1, 2)
    x3 = apply(weights[3], x2, 2)
    x = apply(weights[4], double(x3)) + x2
    x = apply(weights[5], double(x)) + x1
    x = apply(weights[6], double(x)) + x0
    x = apply(weights[8], apply(weights[7], x))
    torch.testing.assert_close(logits, nn.functional.conv2d(x, weights[9].weight, weights[9].bias, 1, 1))


@pytest.mark.parametrize("px", [0, 16])
def test_only_the_window_is_judged(px: int) -> None:
    """Gradients reach one square of the images, the same of both and another at another number."""
    adversary = Adversary(build_discriminator(None, 64, GanConfig(px=px, width=4, augment=())), GanConfig(px=px), 0.0)
    seen = set()
    for number in range(6):
        real, restored = (images(1, 64, 64, seed).requires_grad_() for seed in (1, 2))
        adversary.discriminator_loss(real, restored, 0, (number,)).backward()
        boxes = [_reached(image) for image in (real, restored)]
        assert boxes[0] == boxes[1]
        assert boxes[0][2:] == ((px, px) if px else (64, 64))
        judged = images(1, 64, 64, 3).requires_grad_()
        adversary.generator_loss(judged, 0, (number,)).backward()
        assert _reached(judged)[2:] == boxes[0][2:]
        seen.add(boxes[0])
    assert (len(seen) > 1) == bool(px)


def _reached(image: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of where an image has gradients."""
    assert image.grad is not None
    places = image.grad.abs().sum((0, 1)).nonzero()
    (top, left), (bottom, right) = places.amin(0).tolist(), places.amax(0).tolist()
    return top, left, bottom - top + 1, right - left + 1


def test_heads_are_laid_out_for_the_window() -> None:
    windowed = build_discriminator(SmallNet(), 512, GanConfig(px=64))
    assert str(windowed.heads) == str(build(64).heads)


def test_only_the_heads_learn() -> None:
    discriminator = build()
    learning = {name for name, weight in discriminator.named_parameters() if weight.requires_grad}
    assert learning
    assert all(name.startswith("heads.") for name in learning)
    discriminator.train()
    discriminator_loss(discriminator(images(), draws()), discriminator(images(seed=1), draws(seed=1))).backward()
    assert all(weight.grad is None for weight in discriminator.features.parameters())
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in discriminator.heads.parameters())


def test_the_generator_learns_through_frozen_heads() -> None:
    discriminator = build()
    discriminator.heads.requires_grad_(False)
    restored = images().requires_grad_()
    generator_gan_loss(discriminator(restored, draws(len(restored)))).backward()
    assert restored.grad is not None
    assert restored.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in discriminator.parameters())


def test_two_passes_may_come_before_one_backward_pass() -> None:
    """Spectral normalisation changes its buffers in each pass, which must not spoil the other's gradients."""
    discriminator = build().train()
    first, second = (discriminator(images(seed=seed), draws(seed=seed)) for seed in range(2))
    (generator_gan_loss(first) + generator_gan_loss(second)).backward()
    buffers = dict(discriminator.heads.named_buffers())
    assert any(name.endswith("_u") for name in buffers)


def test_weights_have_a_largest_singular_value_of_one() -> None:
    convolutions = [module for module in build().heads.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 6
    for convolution in convolutions:
        # In training, each use of the weight comes nearer to its singular vector.
        weights = [convolution.weight for _ in range(50)]
        assert torch.linalg.svdvals(weights[-1].detach().flatten(1))[0].item() == pytest.approx(1, abs=0.02)


def test_initialisation_and_augmentation_depend_on_the_seeds_only() -> None:
    torch.manual_seed(1)
    one = build(seed=4)
    state = torch.get_rng_state()
    other = build(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    different = build(seed=5)
    names = [name for name, _ in one.heads.named_parameters()]
    assert all(torch.equal(one.heads.get_parameter(name), other.heads.get_parameter(name)) for name in names)
    assert any(not torch.equal(one.heads.get_parameter(name), different.heads.get_parameter(name)) for name in names)
    one.eval(), other.eval()
    torch.manual_seed(2)
    for a, b in zip(one(images(), draws(seed=7)), other(images(), draws(seed=7)), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one(images(), draws(seed=7))[0], one(images(), draws(seed=8))[0])


def test_heads_resume_from_their_state() -> None:
    one, other = build(seed=1).train(), build(seed=2).train()
    one(images(), draws())
    other.heads.load_state_dict(one.heads.state_dict())
    for a, b in zip(one(images(), draws()), other(images(), draws()), strict=True):
        assert torch.equal(a, b)


Array = NDArray[np.float64]


def as_array(batch: Tensor) -> Array:
    result: Array = batch.double().numpy()
    return result


def test_colour_is_changed_as_published() -> None:
    batch = images(3, 7, 10)
    found = as_array(change_color(batch, draws(3, 5)))
    # Three numbers of each image's own.
    numbers = torch.stack([torch.rand(3, generator=own) for own in draws(3, 5)]).double().numpy()
    brightness, saturation, contrast = numbers.T.reshape(3, 3, 1, 1, 1)
    expected = as_array(batch) + brightness - 0.5
    grey = expected.mean(1, keepdims=True)
    expected = grey + (expected - grey) * 2 * saturation
    mean = expected.mean((1, 2, 3), keepdims=True)
    expected = mean + (expected - mean) * (contrast + 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def shifts_of(moved: Array, original: Array, most: tuple[int, int]) -> set[tuple[int, int]]:
    """Every shift by which one image would become the other, looked for element by element."""
    height, width = original.shape[1:]
    found = set()
    for y in range(-most[0], most[0] + 1):
        for x in range(-most[1], most[1] + 1):
            expected = np.zeros_like(original)
            for row in range(max(0, -y), min(height, height - y)):
                for column in range(max(0, -x), min(width, width - x)):
                    expected[:, row, column] = original[:, row + y, column + x]
            if np.array_equal(expected, moved):
                found.add((y, x))
    return found


def test_translation_is_by_up_to_an_eighth_with_zeros() -> None:
    batch = images(1, 11, 20)
    # 11 / 8 and 20 / 8, rounded half up: 1 and 3.
    seen = [shifts_of(as_array(translate(batch, [draw(seed)]))[0], as_array(batch)[0], (2, 4)) for seed in range(150)]
    assert all(len(shifts) == 1 for shifts in seen)
    assert set.union(*seen) == {(y, x) for y in (-1, 0, 1) for x in range(-3, 4)}


@pytest.mark.parametrize(("height", "width"), [(8, 13), (7, 6), (1, 2)])
def test_cutout_is_a_rectangle_of_half_the_sides(height: int, width: int) -> None:
    batch = torch.ones(1, 3, height, width)
    sizes = [int(side / 2 + 0.5) for side in (height, width)]
    masks = {}
    for y in range(height + (1 - sizes[0] % 2)):
        for x in range(width + (1 - sizes[1] % 2)):
            mask = np.ones((height, width))
            # As published: indices beyond the border are moved to it.
            rows = np.clip(np.arange(sizes[0]) + y - sizes[0] // 2, 0, height - 1)
            columns = np.clip(np.arange(sizes[1]) + x - sizes[1] // 2, 0, width - 1)
            mask[np.ix_(rows, columns)] = 0
            masks[mask.tobytes()] = (y, x)
    seen = set()
    for seed in range(900):
        found = as_array(cut_out(batch, [draw(seed)]))[0]
        assert (found[0] == found[1]).all()
        seen.add(found[0].tobytes())
    assert seen == set(masks)


def test_each_image_is_augmented_alone_and_gradients_pass() -> None:
    one = images(1, 24, 32)
    batch = one.repeat(4, 1, 1, 1).requires_grad_()
    found = augment(batch, CHANGES, draws(4))
    assert found.shape == batch.shape
    assert len({row.detach().numpy().tobytes() for row in found}) == 4
    found.sum().backward()
    assert batch.grad is not None
    assert (batch.grad.abs().sum((1, 2, 3)) > 0).all()
    assert torch.equal(augment(one, (), draws(1)), one)


def test_augmentation_does_not_depend_on_the_batch() -> None:
    batch = images(5, 24, 32)
    together = augment(batch, CHANGES, draws(5))
    alone = [augment(batch[n : n + 1], CHANGES, [own]) for n, own in enumerate(draws(5))]
    torch.testing.assert_close(torch.cat(alone), together)
    judge = build().eval()
    whole = judge(batch[:, :, :, :24].repeat(1, 1, 4, 4), draws(5))
    for number, own in enumerate(draws(5)):
        one = judge(batch[number : number + 1, :, :, :24].repeat(1, 1, 4, 4), [own])
        for level, logits in zip(whole, one, strict=True):
            torch.testing.assert_close(level[number : number + 1], logits, atol=1e-4, rtol=1e-3)
