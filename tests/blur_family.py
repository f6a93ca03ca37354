"""A blur with one parameter, as an example of a newcomer's family of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError
from omgsr_cli.models.base import ImageEncoder, RestorerInfo, StageInfo
from omgsr_cli.models.family import Family, ModelSource
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import ModelRecord, write_record
from omgsr_cli.schedules import DdpmSchedule


class Blur(nn.Module):
    """A model whose latents are pixels; `restore` moves each pixel by a share towards the mean of its neighbours."""

    def __init__(self, info: RestorerInfo, share: Tensor, source: ModelSource) -> None:
        super().__init__()
        self.info, self.share, self.notes = info, nn.Parameter(share), source.notes
        self.schedule, self.device, self.precision = DdpmSchedule(), share.device, "fp32"

    def compile(self) -> None:  # type: ignore[override] # a restorer's, not nn.Module's
        pass

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return image

    def restore(self, lq_latent: Tensor) -> Tensor:
        mean = F.avg_pool2d(F.pad(lq_latent, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return torch.lerp(lq_latent, mean, self.share)

    def decode(self, latent: Tensor) -> Tensor:
        return latent


class BlurTrainable:
    def __init__(self, blur: Blur, record: ModelRecord) -> None:
        self.restorer, self.networks, self.record = blur, blur, record

    def trained(self) -> dict[str, nn.Parameter]:
        return {"share": self.restorer.share}

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        return self.restorer.encode(image)

    encode_clean = encode

    def checkpoint_gradients(self) -> None:
        pass

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        return self.restorer.restore(noisy_latent)

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        raise ModelError("blur has no frozen weights to share out")

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"share": self.restorer.share.detach()}, folder / "blur.safetensors")
        write_record(self.record, folder)

    def load(self, folder: Path) -> None:
        self.restorer.share.data = load_file(folder / "blur.safetensors")["share"]


class BlurFamily(Family):
    name = "blur"
    step_tiling = "exact"

    def find_files(self, path: Path) -> tuple[Path, ...]:
        return (path / "blur.safetensors",)

    def describe(self, source: ModelSource) -> RestorerInfo:
        whole = StageInfo("exact", 0, 12), StageInfo("exact", 1, 60)
        sizes = {"multiple_of_px": 1, "native_tile_px": source.record.native_tile_px, "latent_px": 1, "border_px": 0}
        return RestorerInfo(
            source.name, self.name, 2.0, source.record.mid_timestep, **sizes, codec=whole[0], step=whole[1],
            color_fix="none", prompt=None, parameters=1,
        )  # fmt: skip

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Blur:
        share = load_file(source.folder / "blur.safetensors")["share"]
        return Blur(self.describe(source), share.to(device), source)

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        return ImageEncoder(source.name, lambda image: image, DdpmSchedule(), 1, device)

    def load_trainable(
        self, source: ModelSource, device: torch.device, precision: str, lora: LoraOptions | None, start: Path | None
    ) -> BlurTrainable:
        return BlurTrainable(self.load(source, device, "fp32"), source.record)


def write_blur(folder: Path, share: float) -> Path:
    """Write a model folder of the family."""
    folder.mkdir()
    save_file({"share": torch.tensor(share)}, folder / "blur.safetensors")
    write_record(ModelRecord(family="blur", mid_timestep=20, native_tile_px=16, scale=2.0), folder)
    return folder
