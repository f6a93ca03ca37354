"""Stage 2: OMGSR. Encode the low-quality picture, take one step at the mid-timestep, decode.

    python recipes/omgsr_tiny/finetune.py --photos photos.u8 --features features --pretrained runs/pretrain/state.pt \
        --out runs/finetune --minutes 90 --validate benchmarks/realsr

Losses: L1 on pixels, LRR (the encoder's latent v. the noisy latent of the clean picture, arXiv:2508.08227), DISTS and
an LPIPS-like distance on one shared VGG16, LPIPS-AlexNet at random offsets, and optionally a GAN whose heads read the
VGG features (`--weights '{"gan": 0.02}'`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from evaluate import evaluate_pairs, find_pairs, load_measures, mean_scores, to_image, to_tensor
from features import DISTS_CHANNELS, Dists, Lpips, Vgg16Features, dists_layer_similarity, lpips_layer_distance
from photos import Photos
from PIL import Image
from state import Ema, State, load_state, save_state
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from omgsr_cli.degradation import degrade, load_degradation
from omgsr_cli.models.record import ModelRecord
from omgsr_cli.models.tiny import TinyConfig, TinyNetwork, TinyRestorer, build_info
from omgsr_cli.models.wavelet import remove_lines
from omgsr_cli.schedules import DdpmSchedule

CROP_PX, MARGIN_PX = 128, 16


class DegradedCrops(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an enlarged low-quality crop and its sharp original, drawn from (seed, index) alone."""

    def __init__(self, photos: Path, seed: int, start: int, count: int) -> None:
        self.photos, self.seed, self.start, self.count = Photos(photos), seed, start, count
        # Half the crops are as bad as the published pipeline makes them, half are like a cheap camera's or a phone's.
        self.configs = [load_degradation("light"), load_degradation("reference")]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(1)
        index = self.start + position
        rng = np.random.default_rng([self.seed, index])
        size = CROP_PX + MARGIN_PX
        hq = self.photos.crop(rng, size)[None].float() / 255
        scale = 4 if rng.random() < 0.8 else int(rng.integers(2, 4))
        config = self.configs[int(rng.random() < 0.5)]
        lq = degrade(hq, scale, config, seed=self.seed, epoch=0, indices=[index])
        lq = F.interpolate(lq, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        # Any offset, not a multiple of the latent's 4 pixels: the grid of latents must not show.
        y, x = rng.integers(MARGIN_PX + 1, size=2)
        window = (0, slice(None), slice(y, y + CROP_PX), slice(x, x + CROP_PX))
        return lq[window] * 2 - 1, hq[window] * 2 - 1


class Head(nn.Module):
    """A patch discriminator on one feature map: (B, C, h, w) to logits (B, 1, h/4, w/4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(64, channels // 4)
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, width, 3, 2, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, width, 3, 2, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 1, 1)),
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(features)
        return logits


class Perception(nn.Module):
    """DISTS and an LPIPS-like distance from one pass of VGG16 with L2 pooling; the features serve the GAN too."""

    def __init__(self, features: Path, dtype: torch.dtype) -> None:
        super().__init__()
        dists, lpips = Dists(features), Lpips(features, "vgg")
        self.vgg = Vgg16Features(features, pooling="l2", dtype=dtype)
        self.vgg.to(memory_format=torch.channels_last)
        self.alphas = torch.split(dists.alpha, DISTS_CHANNELS)
        self.betas = torch.split(dists.beta, DISTS_CHANNELS)
        self.weights = [lpips.get_buffer(f"weight{i}").clone() for i in range(5)]

    def maps(self, image: Tensor) -> list[Tensor]:
        """The pixels in [0, 1] and the five feature maps of (B, 3, H, W) in [-1, 1]."""
        return [image / 2 + 0.5, *self.vgg(image.contiguous(memory_format=torch.channels_last))]

    def dists(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Batch mean of DISTS, statistics in float32."""
        layers = zip(first, second, self.alphas, self.betas, strict=True)
        return 1 - torch.stack([dists_layer_similarity(*layer) for layer in layers]).sum(0).mean()

    def lpips(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Batch mean of LPIPS-VGG's distance on L2-pooled features."""
        layers = zip(first[1:], second[1:], self.weights, strict=True)
        return torch.stack([lpips_layer_distance(*layer) for layer in layers]).sum(0).mean()

    def compare(self, first: list[Tensor], second: list[Tensor]) -> dict[str, Tensor]:
        """Both distances of what `maps` returned."""
        return {"dists": self.dists(first, second), "lpips": self.lpips(first, second)}


def shifted_lpips(alex: Lpips, restored: Tensor, hq: Tensor) -> Tensor:
    """LPIPS-AlexNet at a random offset: its first layer strides by 4 pixels, and one offset would hide a grid of 4."""
    y, x = (int(torch.randint(0, 8, ())) for _ in range(2))
    return alex(restored[..., y:, x:], hq[..., y:, x:]).mean()


def line_loss(restored: Tensor, target: Tensor) -> Tensor:
    """How far the running means of the bands are from the photograph's: they are the grids that flat areas show."""
    difference = restored.float() - target
    return torch.stack([(difference - remove_lines(difference, reach)).abs().mean() for reach in (1, 4)]).sum()


def gan_loss(heads: nn.ModuleList, features: list[Tensor], target: float) -> Tensor:
    """Binary cross-entropy of every head's logits with `target`, summed over the levels."""
    losses = []
    for head, level in zip(heads, features, strict=True):
        logits = head(level.float())
        losses.append(F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target)))
    return torch.stack(losses).sum()


def wrap(network: TinyNetwork, schedule: DdpmSchedule, mid_timestep: int) -> TinyRestorer:
    """The network as the Restorer that users run: training takes the very same path."""
    record = ModelRecord(family="tiny", mid_timestep=mid_timestep, native_tile_px=64)
    info = build_info(network.config, record, "omgsr-tiny")
    return TinyRestorer(network, schedule, info, torch.device("cpu"), "fp32")


def validate(restorer: TinyRestorer, data: Path, measures: dict[str, object], limit: int | None) -> dict[str, float]:
    """Mean scores on the pairs of `data`."""

    def restore(image: Image.Image) -> Image.Image:
        enlarged = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
        decoded = restorer.decode(restorer.restore(restorer.encode(to_tensor(enlarged) * 2 - 1)))
        return to_image((decoded / 2 + 0.5).clamp(0, 1))

    return mean_scores(evaluate_pairs(restore, find_pairs(data)[:limit], measures))


@torch.no_grad()
def measure_mid_timestep(network: TinyNetwork, schedule: DdpmSchedule, pairs: Iterator[tuple[Tensor, Tensor]]) -> int:
    """argmin_t of mean_i |SNR(z_t^i) - SNR(z_L^i)| over 512 crops: DESIGN, arXiv:2508.08227."""
    powers, ratios = [], []
    while sum(map(len, powers)) < 512:
        lq, hq = next(pairs)
        clean, degraded = network.latents.encode(hq), network.latents.encode(lq)
        power = clean.square().mean((1, 2, 3))
        powers.append(power)
        ratios.append(power / (degraded - clean).square().mean((1, 2, 3)))
    curve = (torch.cat(powers)[:, None] * schedule.snr().float() - torch.cat(ratios)[:, None]).abs().mean(0)
    return int(curve.argmin())


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photos", "features", "pretrained", "out", "validate"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gan-from", type=int, default=800)
    parser.add_argument("--weights", type=json.loads, default={})
    parser.add_argument("--fp32", action="store_true", help="for machines that do not multiply in bf16")
    return parser.parse_args()


def main() -> None:
    """Train until the minutes are over; a second call goes on where the first one stopped."""
    args = parse()
    weight = {"l1": 0.5, "lrr": 0.5, "dists": 1.5, "lpips": 0.5, "alex": 1.0, "lines": 1.0, "gan": 0.0} | args.weights
    torch.manual_seed(0)
    dtype = torch.float32 if args.fp32 else torch.bfloat16
    network = TinyNetwork(TinyConfig()).to(memory_format=torch.channels_last)
    network.load_state_dict(torch.load(args.pretrained, weights_only=True)["ema"])
    schedule = DdpmSchedule()
    perception = Perception(args.features, dtype)
    # Compiled, the statistics of large feature maps take a seventh of the time; the rest gains nothing.
    compare = torch.compile(perception.compare, dynamic=False)
    alex = Lpips(args.features, "alex")
    heads = nn.ModuleList(Head(c) for c in (64, 128, 256))
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    critic = torch.optim.AdamW(heads.parameters(), lr=2e-4, betas=(0.5, 0.99), weight_decay=1e-4)
    state = State(network, Ema(network, 0.998), {"network": optimizer, "critic": critic}, 0, heads)
    load_state(args.out / "state.pt", state)

    data = DegradedCrops(args.photos, seed=2, start=state.step * args.batch, count=10**9)
    loader = iter(torch.utils.data.DataLoader(data, args.batch, num_workers=args.workers, prefetch_factor=8))
    mid_file = args.out / "mid_timestep.json"
    if not mid_file.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        mid_file.write_text(json.dumps(measure_mid_timestep(network, schedule, loader)))
    mid_timestep = json.loads(mid_file.read_text())
    print(f"mid_timestep {mid_timestep} alpha_bar {schedule.alpha_bar(mid_timestep):.4f}", flush=True)
    restorer = wrap(network, schedule, mid_timestep)
    measures = load_measures(args.features, ("psnr_y", "lpips_alex", "dists"))

    started, running = time.time(), {}
    while (elapsed := time.time() - started) < args.minutes * 60:
        share = elapsed / (args.minutes * 60)
        optimizer.param_groups[0]["lr"] = args.lr * min(1, (state.step + 1) / 100) * max(0.02, (1 - share) ** 0.7)
        lq, hq = next(loader)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not args.fp32):
            lq_latent = restorer.encode(lq)
            clean_latent = restorer.restore(lq_latent)
            restored = restorer.decode(clean_latent)
        with torch.no_grad():
            target = network.latents.encode(hq)
            real = perception.maps(hq)
        noisy = schedule.add_noise(target, torch.randn_like(target), mid_timestep)
        fake = perception.maps(restored)
        losses = {
            "l1": (restored - hq).abs().mean(),
            # An epsilon is expected to remain: the noise in the target has the variance 1 - alpha_bar.
            "lrr": F.mse_loss(lq_latent, noisy) - (1 - schedule.alpha_bar(mid_timestep)),
            **compare(fake, real),
            "lines": line_loss(clean_latent, target),
            "alex": shifted_lpips(alex, restored, hq),
        }
        if weight["gan"] and state.step >= args.gan_from:
            heads.requires_grad_(False)
            losses["gan"] = gan_loss(heads, fake[1:4], 1.0)
            heads.requires_grad_(True)
        total = torch.stack([weight[name] * value for name, value in losses.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        state.ema.update(network)
        if weight["gan"] and state.step >= args.gan_from - 200:
            critic.zero_grad(set_to_none=True)
            losses["critic"] = gan_loss(heads, [f.detach() for f in fake[1:4]], 0.0) + gan_loss(heads, real[1:4], 0.8)
            losses["critic"].backward()
            critic.step()
        state.step += 1
        for name, value in losses.items():
            running[name] = running.get(name, value.item()) * 0.98 + value.item() * 0.02
        if state.step % 50 == 0:
            means = " ".join(f"{name} {value:.4f}" for name, value in running.items())
            print(f"step {state.step} minutes {elapsed / 60:.1f} {means}", flush=True)
        if state.step % 500 == 0:
            report(args, state, restorer, measures)
    report(args, state, restorer, measures)


def report(args: argparse.Namespace, state: State, restorer: TinyRestorer, measures: dict[str, object]) -> None:
    """Save, and measure the averaged weights."""
    save_state(args.out / "state.pt", state)
    averaged = TinyNetwork(TinyConfig()).to(memory_format=torch.channels_last)
    averaged.load_state_dict(state.ema.weights)
    scores = validate(
        wrap(averaged, restorer.schedule, restorer.info.mid_timestep), args.validate, measures, limit=None
    )
    print(f"validation {state.step} " + json.dumps({k: round(v, 4) for k, v in scores.items()}), flush=True)


if __name__ == "__main__":
    main()
