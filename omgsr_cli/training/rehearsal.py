"""What a step will cost, told before any weight is read: the step is run on tensors that have shapes but no values."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from omgsr_cli.models.families import family_of
from omgsr_cli.models.record import read_json
from omgsr_cli.models.sources import ModelSource
from omgsr_cli.models.trainable import Trainable
from omgsr_cli.training.assembly import build_generator, build_lora_options
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.dists import Dists
from omgsr_cli.training.draws import Purpose, draw_generator
from omgsr_cli.training.features import find_features
from omgsr_cli.training.features.base import FeatureNet
from omgsr_cli.training.features.dinov3 import DinoV3
from omgsr_cli.training.features.imagenet import AlexNet, Vgg16
from omgsr_cli.training.loss_sections import LossConfig
from omgsr_cli.training.losses import Losses, loss_weights
from omgsr_cli.training.lpips import Lpips

_FLOAT_BYTES = 4
_ADAMW_BYTES = 8
_ADAMW_8BIT_BYTES = 2
_MEASURED_S = 0.4

_DINOV3_WIDTHS = {
    "convnext-tiny": (96, 192, 384, 768),
    "convnext-small": (96, 192, 384, 768),
    "convnext-base": (128, 256, 512, 1024),
    "convnext-large": (192, 384, 768, 1536),
}
_DINOV3_DEPTHS = {"convnext-tiny": (3, 3, 9, 3)}
"""Those of the other sizes are 3, 3, 27, 3."""


@dataclass(frozen=True)
class Cost:
    """Of training, in each process.

    Attributes:
        parameters: weights of the model, with those that learn.
        trained: weights that learn.
        flop: floating-point operations of one step, all of its forward passes and backward passes.
        memory_bytes: most that the tensors of a step take at once, with weights and optimiser.
        checkpoint_bytes: of one checkpoint.
    """

    parameters: int
    trained: int
    flop: float
    memory_bytes: int
    checkpoint_bytes: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own omission
    """Counts the bytes of the tensors that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own omission
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def hold(self, network: nn.Module | None) -> None:
        """Count what is there already: weights and buffers."""
        for tensor in [] if network is None else [*network.parameters(), *network.buffers()]:
            self._count(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def rehearse(config: TrainConfig, source: ModelSource, device: torch.device) -> Cost:
    """Run one step of training on shapes.

    Args:
        config: of the run.
        source: of the model, from `find_run_model`.
        device: where it is going to be trained.
    Raises:
        ModelError: the configuration of the model or the feature network cannot be read.
    """
    # What is built is on the device at once: these tensors cannot be moved.
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), device:
        # torch asks itself for the address of values that are not there.
        warnings.simplefilter("ignore", UserWarning)
        family = family_of(source.record, source.name)
        trainable = family.outline(source, device, config.train.precision, build_lora_options(config))
        if config.train.gradient_checkpointing:
            trainable.checkpoint_gradients()
        features = build_features_outline(config)
        losses = _outline_losses(config.loss, features)
        heads = None if features is None or not config.loss.gan else _build_heads(config, features)

        def count(number: int) -> int:
            with FlopCounterMode(display=False) as counter:
                _step(config, trainable, losses, features, heads, device, number)
            return int(counter.get_total_flops())

        with LiveBytes() as live:
            for network in (trainable.networks, losses, features, heads):
                live.hold(network)
            # The first step has all losses, the second not those that come every few steps.
            most, least = count(0), count(1)
    every = config.loss.teacher.dists_every if config.loss.teacher else 1
    flop = least + (most - least) / every
    judged = 0 if heads is None else sum(weight.numel() for weight in heads.parameters())
    weights = sum(weight.numel() for weight in trainable.networks.parameters())
    trained = sum(weight.numel() for weight in trainable.trained().values())
    averages = _ADAMW_8BIT_BYTES if config.optim.eight_bit else _ADAMW_BYTES
    average = _FLOAT_BYTES if config.train.ema else 0
    return Cost(
        parameters=weights,
        trained=trained,
        flop=flop * config.optim.accumulate,
        memory_bytes=live.peak + trained * (averages + average) + judged * _ADAMW_BYTES,
        # The weights are there twice: as they are used, and as they are trained on.
        checkpoint_bytes=trained * (2 * _FLOAT_BYTES + averages + average) + judged * (_FLOAT_BYTES + _ADAMW_BYTES),
    )


def build_features_outline(config: TrainConfig) -> FeatureNet | None:
    """Build the feature network without its weights; None where nothing needs one."""
    source = find_features(config.loss)
    if source is None:
        return None
    if source.kind == "vgg16":
        return Vgg16().requires_grad_(False)
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    widths, depths = _dinov3_sizes(source.place)
    model = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=list(widths), depths=list(depths)))
    encoder = getattr(model, "model", model)
    return DinoV3(list(encoder.get_submodule("stages").children())[:3], widths[:3]).requires_grad_(False)


def _dinov3_sizes(place: str) -> tuple[Sequence[int], Sequence[int]]:
    """Widths and depths of a DINOv3: a folder's own, or by the name of a repository or file."""
    own = read_json(Path(place) / "config.json") if Path(place).is_dir() else {}
    # What the name does not tell, OMGSR's own choice does: a prediction needs no more.
    path = place.replace("_", "-")
    size = next((name for name in _DINOV3_WIDTHS if name in path), "convnext-large")
    widths, depths = _DINOV3_WIDTHS[size], _DINOV3_DEPTHS.get(size, (3, 3, 27, 3))
    return own.get("hidden_sizes", widths), own.get("depths", depths)


def _outline_losses(config: LossConfig, features: FeatureNet | None) -> Losses:
    """The losses, without what their networks have learned."""
    lpips = Lpips(AlexNet(), [torch.ones(width) for width in AlexNet.channels]) if config.needs_lpips else None
    teacher = config.teacher
    return Losses(
        loss_weights(config),
        None if features is None else Dists(features),
        lpips,
        teacher_dists_every=1 if teacher is None else teacher.dists_every,
        teacher_dists_px=0 if teacher is None else teacher.dists_px,
    ).requires_grad_(False)


def _step(
    config: TrainConfig,
    trainable: Trainable,
    losses: Losses,
    features: FeatureNet | None,
    heads: nn.Module | None,
    device: torch.device,
    number: int,
) -> None:
    """One forward and one backward pass of everything in step `number`."""
    batch, side = config.data.batch_size, config.data.resolution
    hq = torch.zeros(batch, 3, side, side, device=device)
    # What is drawn is drawn on the CPU.
    with torch.device("cpu"):
        if config.loss.denoise:
            torch.autograd.backward(_denoise(config, trainable, hq))
            return
        output = build_generator(config, trainable)(hq, hq, config.train.seed, range(batch))
    total = losses.total(losses(output, hq, target=hq, step=number))
    if features is None or heads is None:
        torch.autograd.backward(total)
        return
    restored = output.restored
    heads.requires_grad_(False)
    torch.autograd.backward(total + _judge(heads, features, restored))
    heads.requires_grad_(True)
    torch.autograd.backward(_judge(heads, features, hq) + _judge(heads, features, restored.detach()))


def _denoise(config: TrainConfig, trainable: Trainable, hq: Tensor) -> Tensor:
    """As `Denoising` does, at one timestep: others cost the same, and tensors without values cannot say theirs."""
    draws = [draw_generator(config.train.seed, Purpose.LATENT, number) for number in range(len(hq))]
    with torch.autocast(hq.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        clean_latent = trainable.encode_clean(hq, draws).float()
        return (trainable.restorer.restore(clean_latent).float() - clean_latent).square().mean()


def _build_heads(config: TrainConfig, features: FeatureNet) -> nn.Module:
    from omgsr_cli.training.discriminator import build_discriminator

    return build_discriminator(features, config.data.resolution, config.gan).heads


def _judge(heads: nn.Module, features: FeatureNet, image: Tensor) -> Tensor:
    maps = features(image, pooled=False)[-len(list(heads.children())) :]
    logits = [head(each) for head, each in zip(heads.children(), maps, strict=True)]
    return torch.stack([each.mean() for each in logits]).sum()


def measure_speed(device: torch.device, precision: str) -> float:
    """Measure what the device computes in a convolution like those of training, in operations a second."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    image = torch.randn(1, 128, 96, 96, device=device, dtype=dtype)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype)

    def convolve() -> float:
        return float(torch.nn.functional.conv2d(image, weight, padding=1)[0, 0, 0, 0])

    convolve()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _MEASURED_S:
        convolve()
        count += 1
    return count * 2.0 * 9 * 128 * 128 * 96 * 96 / (time.perf_counter() - began)
