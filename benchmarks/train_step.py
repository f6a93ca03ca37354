"""Compare a training step of the SD family with a plain loop written from the formulas, in one run on one machine.

Both take the same steps with the same random draws: all four losses, the discriminator, AdamW. The plain loop keeps a
second encoder for the clean latents, computes the features of an image again for each use, and degrades between steps.
The losses of the first step are compared, to verify that both do the same work.

    python benchmarks/sd_size.py --make /tmp/toy --shape toy
    python benchmarks/train_step.py /tmp/toy --size 128 --batch 2 --steps 10
    python benchmarks/sd_size.py --make /tmp/sd_size
    python benchmarks/train_step.py /tmp/sd_size --size 512 --steps 1 --only ours --no-features --checkpointing

CPU seconds include all threads of the process; on a busy machine, compare these.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import stages
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from stages import peak_memory_gib
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.data import Batch, Purpose, draw_generator, draw_generators, load_batches, number_batches
from omgsr_cli.training.discriminator import CHANGES, augment
from omgsr_cli.training.distributed import build_accelerator
from omgsr_cli.training.loop import Run, load_run
from omgsr_cli.training.step import Stepper

SEED, LR = 0, 5e-5
Losses = dict[str, float]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own omission
    """Counts the bytes of live tensors, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own omission
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def hold(self, network: nn.Module | None) -> None:
        """Count existing weights and buffers."""
        for tensor in [] if network is None else [*network.parameters(), *network.buffers()]:
            self._count(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count its new tensors."""
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


@dataclass
class Waiting:
    """Batches, with the time spent waiting for them."""

    batches: Iterator[Batch]
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begun = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - begun
        return batch


@dataclass
class Timed:
    """A measured loop; `take` makes a step and returns its losses."""

    name: str
    take: Callable[[int], Losses]
    waiting: Waiting
    networks: list[nn.Module]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)

    def step(self, number: int) -> None:
        stages.synchronise()
        begun, cpu, waited = time.perf_counter(), time.process_time(), self.waiting.seconds
        self.losses.append(self.take(number))
        stages.synchronise()
        self.cpu_seconds.append(time.process_time() - cpu)
        self.seconds.append(time.perf_counter() - begun)
        self.waited.append(self.waiting.seconds - waited)

    def peak_bytes(self, number: int) -> int:
        """Return the peak bytes of a step's tensors, including weights and the optimisers' averages."""
        with LiveBytes() as live:
            for network in self.networks:
                live.hold(network)
            self.take(number)
        return live.peak


def build_run(options: argparse.Namespace, folder: Path) -> Run:
    losses: dict[str, Any] = {"dv3cd": 0.0, "gan": 0.0}
    if not options.no_features:
        losses = {"backbone": str(options.features or write_features(folder / "features"))}
    photos = options.photos or write_photos(folder / "photos", options.size)
    config = TrainConfig.model_validate(
        {
            "model": {"base": str(options.folder), "mid_timestep": 273},
            "data": {"train": [str(photos)], "resolution": options.size, "batch_size": options.batch},
            "loss": losses,
            "optim": {"accumulate": 1, "lr": LR},
            "train": {
                "precision": options.precision,
                "gradient_checkpointing": options.checkpointing,
                "threads": options.threads,
            },
            "save": {"out": str(folder / "run")},
        }
    )
    return load_run(config, build_accelerator(folder), resumed=False)


def build_ours(run: Run, workers: int) -> Timed:
    stepper = Stepper(build_accelerator(Path(run.config.save.out)), run.learner, run.config)
    waiting = Waiting(
        load_batches(run.crops, number_batches(run.config.data.batch_size, 0, 0, 1), workers, stages.device)
    )
    judge = [] if run.learner.adversary is None else [run.learner.adversary.discriminator]
    networks = [run.trainable.networks, run.learner.losses, *judge]
    return Timed("ours", lambda number: stepper.take(number, waiting, 0).losses, waiting, networks)


def build_plain(run: Run) -> Timed:
    """Build a plain loop from the formulas, with the same networks, images and draws."""
    vae, unet = (run.trainable.networks.get_submodule(name) for name in ("vae", "unet"))
    restorer, config = run.trainable.restorer, run.config
    # The adapters are still zero, so this copy is the base encoder.
    first_encoder = copy.deepcopy(vae.encoder).requires_grad_(False)
    scaling, alpha_bar = vae.config["scaling_factor"], restorer.schedule.alpha_bar(273)
    weights = list(run.trainable.trained().values())
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.999), weight_decay=1e-4)
    adversary = run.learner.adversary
    features, heads = (None, None) if adversary is None else (adversary.discriminator.features, adversary.discriminator)
    judge = [] if heads is None else list(heads.heads.parameters())
    second = torch.optim.AdamW(judge, lr=LR, betas=(0.9, 0.999), weight_decay=1e-4) if judge else None

    def sample(encoder: nn.Module, image: Tensor, draws: list[torch.Generator]) -> Tensor:
        moments = vae.quant_conv(encoder(image.to(next(encoder.parameters()).dtype)))
        mean, logvar = moments.float().chunk(2, 1)
        noise = torch.cat([torch.randn(1, *mean.shape[1:], generator=draw) for draw in draws]).to(mean.device)
        return (mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise) * scaling

    def logits(image: Tensor, purpose: Purpose, numbers: Sequence[int]) -> list[Tensor]:
        maps = features(augment(image, CHANGES, draw_generators(SEED, purpose, numbers)))
        return [head(each.float()) for head, each in zip(heads.heads.children(), maps, strict=True)]

    def bce(levels: list[Tensor], label: float) -> Tensor:
        return sum(F.binary_cross_entropy_with_logits(each, torch.full_like(each, label)) for each in levels)

    def take(number: int) -> Losses:
        batch = next(waiting)
        draws = [draw_generator(SEED, Purpose.LATENT, each) for each in batch.numbers]
        with torch.autocast(stages.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            with torch.no_grad():
                target = sample(first_encoder, batch.hq, draws)
            latent = sample(vae.encoder, batch.lq, draws)
            steps = torch.full((len(latent),), 273, device=latent.device)
            prompt = restorer.features["prompt_embeds"].expand(len(latent), -1, -1)
            noise = unet(latent.to(prompt.dtype), steps, prompt).sample.float()
            clean = (latent - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
            restored = vae.decoder(vae.post_quant_conv((clean / scaling).to(vae.dtype))).float()
            # The published script of the S variant clamps too.
            restored = restored.clamp(-1, 1)
        fresh = torch.cat([torch.randn(1, *target.shape[1:], generator=draw) for draw in draws]).to(target.device)
        noisy = alpha_bar**0.5 * target + (1 - alpha_bar) ** 0.5 * fresh
        losses = {"lrr": F.mse_loss(latent, noisy), "l1": F.l1_loss(restored, batch.hq)}
        total = 5 * losses["lrr"] + 0.5 * losses["l1"]
        if features is not None:
            losses["dv3cd"] = plain_dists(features, restored, batch.hq)
            losses["gan"] = bce(logits(restored, Purpose.JUDGEMENT, batch.numbers), 0.8)
            total = total + 5 * losses["dv3cd"] + 0.5 * losses["gan"]
        total.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if second is not None:
            second.zero_grad()
            draws = draw_generators(SEED, Purpose.AUGMENT, batch.numbers)
            loss = torch.zeros((), device=stages.device)
            for image, label in ((batch.hq, 0.8), (restored.detach(), 0.0)):
                maps = features(augment(image, CHANGES, draws))
                loss = loss + bce([h(m.float()) for h, m in zip(heads.heads.children(), maps, strict=True)], label)
            loss.backward()
            nn.utils.clip_grad_norm_(judge, 1.0)
            second.step()
            losses["discriminator"] = loss
        return {name: float(value.detach()) for name, value in losses.items()}

    waiting = Waiting(load_batches(run.crops, number_batches(config.data.batch_size, 0, 0, 1), 0, stages.device))
    networks = [run.trainable.networks, first_encoder, run.learner.losses, *([] if heads is None else [heads])]
    return Timed("plain", take, waiting, networks)


def plain_dists(features: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """DISTS with equal weights, arXiv:2004.07728: 1 - mean over 3 + c channels of (texture + structure) / 2."""
    maps = [[image / 2 + 0.5, *features(image, pooled=True)] for image in (first, second)]
    similarity, channels = torch.zeros(len(first), device=first.device), 0
    for x, y in zip(*maps, strict=True):
        x, y = x.float(), y.float()
        x_mean, y_mean = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
        x_var, y_var = ((x - x_mean) ** 2).mean((2, 3)), ((y - y_mean) ** 2).mean((2, 3))
        both = (x * y).mean((2, 3)) - (x_mean * y_mean)[..., 0, 0]
        texture = (2 * x_mean * y_mean + 1e-6) / (x_mean**2 + y_mean**2 + 1e-6)
        structure = (2 * both + 1e-6) / (x_var + y_var + 1e-6)
        similarity = similarity + (texture[..., 0, 0] + structure).sum(1) / 2
        channels += x.shape[1]
    return (1 - similarity / channels).mean()


def write_photos(folder: Path, size: int, count: int = 8) -> Path:
    """Write images with edges and noise that are large enough to be cropped."""
    folder.mkdir(parents=True)
    side, rng = size + 64, np.random.default_rng(0)
    for number in range(count):
        rows, columns = np.mgrid[0:side, 0:side]
        board = 60 * ((rows // (16 + number) + columns // 23) % 2)[:, :, None]
        pixels = board + 100 + rng.normal(0, 12, (side, side, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def write_features(folder: Path) -> Path:
    """Write a random DINOv3 ConvNeXt with a quarter of the smallest model's channels."""
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    torch.manual_seed(0)
    config = DINOv3ConvNextConfig(hidden_sizes=[24, 48, 96, 192], depths=[2, 2, 2, 1])
    DINOv3ConvNextModel(config).save_pretrained(folder)
    return folder


def report(loops: list[Timed], peaks: dict[str, int]) -> None:
    print("\n| loop | step, s | CPU, s | waits for data | tensors, MiB |\n|---|---:|---:|---:|---:|")
    for loop in loops:
        share = sum(loop.waited[1:] or loop.waited) / sum(loop.seconds[1:] or loop.seconds)
        cells = (statistics.median(loop.seconds), statistics.median(loop.cpu_seconds))
        peak = f"{peaks[loop.name] / 2**20:.0f}" if loop.name in peaks else ""
        print(f"| {loop.name} | {cells[0]:.3f} | {cells[1]:.3f} | {100 * share:.1f} % | {peak} |")
    print(f"\npeak: {peak_memory_gib():.1f} GiB")
    if len(loops) == 2:
        ours, plain = loops
        times = statistics.median(plain.seconds) / statistics.median(ours.seconds)
        cpu = statistics.median(plain.cpu_seconds) / statistics.median(ours.cpu_seconds)
        memory = f", tensors {peaks['plain'] / peaks['ours']:.2f}" if peaks else ""
        print(f"plain / ours: time {times:.2f}, CPU {cpu:.2f}{memory}")
        names = ours.losses[0].keys() & plain.losses[0].keys()
        worst = max(abs(ours.losses[0][n] - plain.losses[0][n]) / abs(plain.losses[0][n]) for n in names)
        print(f"largest relative difference of the first step's {len(names)} losses: {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the base model")
    parser.add_argument("--photos", type=Path, help="sharp images [drawn ones]")
    parser.add_argument("--features", type=Path, help="a DINOv3 folder [a small random one]")
    parser.add_argument("--no-features", action="store_true", help="L1 and LRR alone")
    parser.add_argument("--size", type=int, default=512, help="side of the images in px")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=8, help="of each loop; the first one is not in the medians")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true", help="compute activations twice")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("ours", "plain"))
    stages.add_device(parser)
    options = parser.parse_args()
    # accelerate uses an existing GPU by default.
    os.environ["ACCELERATE_USE_CPU"] = str(stages.use_device(options.device).type == "cpu").lower()
    with tempfile.TemporaryDirectory() as name:
        kinds = ("ours", "plain") if options.only is None else (options.only,)
        loops = []
        for kind in kinds:
            run = build_run(options, Path(name) / kind)
            loops.append(build_ours(run, options.workers) if kind == "ours" else build_plain(run))
        for number, loop in itertools.product(range(options.steps), loops):
            loop.step(number)
            print(f"step {number + 1}, {loop.name}: {loop.seconds[-1]:.2f} s, CPU {loop.cpu_seconds[-1]:.2f} s", end="")
            print(f", peak {peak_memory_gib():.1f} GiB", flush=True)
        peaks = {loop.name: loop.peak_bytes(options.steps) for loop in loops} if options.steps > 1 else {}
        for loop in loops:
            for times in (loop.seconds, loop.cpu_seconds):
                del times[: 1 if options.steps > 1 else 0]
        report(loops, peaks)


if __name__ == "__main__":
    main()
