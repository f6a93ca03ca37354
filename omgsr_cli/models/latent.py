"""Models that take the step in the latents of an AutoencoderKL: what Stable Diffusion and FLUX share.

These are the restorer, the trainable with adapters, the features of a prompt, which are computed once and stored, and
what a description and a merged folder have in common.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.autoencoders import (
    KlCodec,
    TinyDecoder,
    bytes_per_px_of,
    check_vae_config,
    latent_px_of,
    load_tiny_decoder,
)
from omgsr_cli.models.base import ImageRows, Restorer, RestorerInfo, StageInfo, TilesItself, Trainable, Workspace
from omgsr_cli.models.devices import PRECISIONS
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.lora import LoraOptions, adapter_weights, inject_adapters, load_lora
from omgsr_cli.models.record import write_record
from omgsr_cli.models.weight_files import check_finite, part_entries, weight_variant
from omgsr_cli.schedules import Schedule

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

PROMPT_FEATURES = "prompt_embeds.safetensors"
SEQUENCE, POOLED = "prompt_embeds", "pooled_prompt_embeds"
"""Features of a prompt: (1, tokens, width), the last hidden state of a text encoder, and (1, width), its pooled one."""
_DIMENSIONS = {SEQUENCE: 3, POOLED: 2}


class LatentRestorer(Restorer, TilesItself):
    """A `Restorer` whose subclasses implement `predict`. Latents are float32; networks compute in their own formats.

    Args:
        backbone: network of diffusers that takes the step, on its device or offloaded.
        vae: VAE whose latents have the channels of the backbone.
        schedule: schedule that the backbone was trained with.
        features: features of the prompt, float, by name.
        info: properties of the model, for the user and the planner.
        precision: number format of the backbone; the VAE's may be wider.
        source: files that the model was loaded from; `source.vae` replaces the VAE's decoder.
        release: called before the codec runs, to move a completely offloaded backbone off the device.
    """

    backbone_part: str
    """The backbone's folder in a model."""

    def __init__(
        self,
        backbone: nn.Module,
        vae: AutoencoderKL,
        schedule: Schedule,
        features: Mapping[str, Tensor],
        info: RestorerInfo,
        precision: str,
        source: ModelSource,
        release: Callable[[], None] | None = None,
    ) -> None:
        self.backbone: Any = backbone
        self.vae, self.schedule, self.info, self.precision = vae, schedule, info, precision
        self.source, self.notes = source, source.notes
        self.dtype, self.features = PRECISIONS[precision], dict(features)
        self._release = release
        self._codec = KlCodec(vae)
        self._decoder: KlCodec | TinyDecoder = self._codec
        if source.vae is not None:
            self._decoder = load_tiny_decoder(source.vae, int(vae.config["latent_channels"]), vae.device, self.dtype)
        self.follow_vae()

    def compile(self) -> None:
        """Compile the backbone for its one tile size, and the VAE's encoder and decoder for any image size.

        Layers that the VAE computes in strips are not compiled.
        """
        own = self._decoder.network if isinstance(self._decoder, TinyDecoder) else self.vae.decoder
        self.backbone.compile(dynamic=False)
        for network in (self.vae.encoder, own):
            network.compile(dynamic=True)

    def encode(self, image: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Map (B, 3, H, W) float32 in [-1, 1] to (B, C, H/8, W/8) float32; generators as for `KlCodec.encode`."""
        self._make_room()
        return self._codec.encode(image, generator)

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        """Like `encode` for one image, in bounded memory: in strips if the image does not fit."""
        self._make_room()
        return self._codec.encode_within(image, workspace, generator)

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the single step: map (B, C, h, w) float to the clean latent, same shape and dtype.

        The published code averages the predictions of overlapping tiles. Averaging their clean latents is equivalent,
        because each is its tile of the same latent and its prediction in fixed shares.
        """
        step = self.info.mid_timestep
        return self.schedule.clean_latent(lq_latent, self.predict(lq_latent, step), step)

    def predict(self, noisy_latent: Tensor, timesteps: int | Tensor) -> Tensor:
        """What the schedule expects of the backbone, such as noise, in the shape and dtype of the latents.

        Args:
            noisy_latent: (B, C, h, w) float, scaled.
            timesteps: one for all, or (B,) int64.
        Raises:
            ShapeError: the backbone does not support the size.
        """
        raise NotImplementedError

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, C, h, w) float, scaled as by `encode`, to (B, 3, 8h, 8w) float32, nominally in [-1, 1]."""
        self._make_room()
        return self._decoder.decode(latent)

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """Like `decode` for one latent, in bounded memory: in strips if the image does not fit."""
        self._make_room()
        return self._decoder.decode_within(latent, workspace)

    def follow_vae(self) -> None:
        """Take the device of the VAE, which is never offloaded, for images and the features of the prompt."""
        self.device = self.vae.device
        self.features = {name: value.to(self.device, self.dtype) for name, value in self.features.items()}

    def _make_room(self) -> None:
        if self._release is not None:
            self._release()


class LatentTrainable(Trainable):
    """A `Trainable` with LoRA in the VAE's encoder and in the backbone; all other weights stay unchanged.

    Args:
        restorer: restorer of the base model, on the device for training.
        parts: names of the adapters on disk.
        options: the adapters that the user asked for.
        published: the adapters of the family.
        start: folder of initial weights; None draws new ones.
        stores_features: whether an adapter's folder gets the features of the prompt, which take long to compute.
    Raises:
        ModelError: the adapters do not match the model.
    """

    def __init__(
        self,
        restorer: LatentRestorer,
        parts: Sequence[str],
        options: LoraOptions | None,
        published: LoraOptions,
        start: Path | None,
        *,
        stores_features: bool = False,
    ) -> None:
        self.restorer: Restorer = restorer
        self._model, self._stores_features = restorer, stores_features
        self._adapters = inject_adapters((restorer.vae.encoder, restorer.backbone), parts, options, published)
        self.networks: nn.Module = nn.ModuleDict({"vae": restorer.vae, restorer.backbone_part: restorer.backbone})
        if start is not None:
            self.load(start)

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights of the adapters."""
        return adapter_weights(self._adapters)

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, C, H/8, W/8), sampled from the posterior."""
        return self._model.encode(image, list(draws))

    @torch.no_grad()
    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Sample the posterior of the encoder without its adapter."""
        encoder = next(iter(self._adapters.values()))
        with encoder.disable_adapter():
            return self._model.encode(image, list(draws))

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Recover clean latents with the backbone and its adapter."""
        prediction = self._model.predict(noisy_latent, timesteps)
        return self._model.schedule.clean_latent(noisy_latent, prediction, timesteps)

    def checkpoint_gradients(self) -> None:
        """Store only the inputs of blocks, in both networks."""
        networks: tuple[Any, ...] = (self._model.backbone, self._model.vae)
        for network in networks:
            network.enable_gradient_checkpointing()

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Shard the backbone's weights, except its adapter's; the VAE moves to the device completely."""
        share(self._model.backbone)
        self.networks.to(device)
        self._model.follow_vae()

    def save(self, folder: Path) -> None:
        """Write the adapters in the published layout, and `omgsr.json`."""
        source = self._model.source
        for part, adapter in self._adapters.items():
            adapter.save_pretrained(str(folder / part))
        if self._stores_features:
            save_features(self._model.features, source.record.prompt or "", folder, torch.bfloat16)
        made_from = {"made_from": (source.name,), "base": source.location}
        write_record(source.record.model_copy(update=made_from), folder)

    def load(self, folder: Path) -> None:
        """Load adapters with the same ranks and layers."""
        for part, adapter in self._adapters.items():
            load_lora(adapter, folder / part)


def describe_latents(
    source: ModelSource, family: str, backbone: str, vae: Mapping[str, Any], patch: int, step_bytes: int
) -> RestorerInfo:
    """Build the description of a model from its configurations and the headers of its weights.

    Args:
        backbone: folder of the network that takes the step.
        vae: configuration of the VAE.
        patch: latent elements per token, on each side; 1 for a UNet.
        step_bytes: working memory of the step per token.
    Raises:
        ModelError: the VAE is not supported, or weights are missing.
    """
    check_vae_config(vae, source.folder / "vae")
    latent_px = latent_px_of(vae)
    return RestorerInfo(
        name=source.name,
        family=family,
        scale=source.record.scale,
        mid_timestep=source.record.mid_timestep,
        multiple_of_px=patch * latent_px,
        native_tile_px=source.record.native_tile_px,
        latent_px=latent_px,
        codec=StageInfo("internal", 0, bytes_per_px_of(vae)),
        step=StageInfo("blended", 0, max(1, step_bytes // (patch * latent_px) ** 2)),
        border_px=0,
        color_fix="adain",
        prompt=source.record.prompt or "",
        parameters=sum(e.elements for part in (backbone, "vae") for _, e in part_entries(source.folder, part)),
    )


def refuse_unchanged(adapter: Path | None, changed: int) -> None:
    """Raise a ModelError if an adapter changed no weight."""
    if adapter is not None and not changed:
        raise ModelError(f"the adapter {adapter} changes no weight", hint="it was never trained; give another one")


def write_merged_rest(
    source: ModelSource, folder: Path, features: Mapping[str, Tensor], dtype: torch.dtype, texts: Sequence[str]
) -> None:
    """Write what a merged folder has beside its networks: features, record, scheduler, and perhaps text encoders."""
    save_features(features, source.record.prompt or "", folder, dtype)
    base = source.record.base or source.name
    made_from = (base,) if source.adapter is None else (base, source.adapter.name)
    write_record(source.record.model_copy(update={"made_from": made_from, "base": None}), folder)
    for part in ("scheduler", *texts):
        if (source.folder / part).is_dir():  # a record may contain the schedule instead
            (folder / part).mkdir()
            for path in filter(Path.is_file, (source.folder / part).iterdir()):
                shutil.copyfile(path, folder / part / path.name)


def save_features(
    features: Mapping[str, Tensor], prompt: str, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write features and their prompt to the folder of a model or an adapter."""
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in features.items()}
    save_file(tensors, folder / PROMPT_FEATURES, metadata={"prompt": prompt})


def read_features(places: Iterable[Path | None], prompt: str, names: Sequence[str]) -> dict[str, Tensor] | None:
    """Read the stored features of a prompt from the first folder that has them.

    Args:
        places: folders; None is skipped.
        prompt: a file that stores another prompt is skipped.
        names: of the features.
    Returns:
        Float32 on the CPU, by name; None if no folder has them.
    Raises:
        ModelError: a file cannot be read, or its features have other shapes or are not finite.
    """
    for path in (place / PROMPT_FEATURES for place in places if place is not None):
        try:
            if not path.is_file():
                continue
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("prompt") != prompt:
                    continue
                found: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        for name, value in found.items():
            if value.ndim != _DIMENSIONS[name] or len(value) != 1:
                wanted = "(1, tokens, width)" if name == SEQUENCE else "(1, width)"
                raise ModelError(f"{path}: the shape of {name} is {tuple(value.shape)}, not {wanted}")
        check_finite(found.items(), path)
        return {name: value.float() for name, value in found.items()}
    return None


def check_widths(source: ModelSource, features: Mapping[str, Tensor], backbone: Any, keys: Mapping[str, str]) -> None:
    """Raise a ModelError if a feature is not as wide as the backbone's configuration says, by the feature's key."""
    for name, key in keys.items():
        found, wanted = features[name].shape[-1], backbone.config[key]
        if found != wanted:
            raise ModelError(f"{source.folder}: the prompt's features are {found} wide, but {key} is {wanted}")


def check_texts(source: ModelSource, parts: Sequence[str]) -> None:
    """Raise a ModelError if a part that the prompt needs is missing: a text encoder or a tokenizer."""
    prompt, needed = source.record.prompt or "", {part: source.folder / part for part in parts}
    # The folder of a text encoder may exist without files, for example after an interrupted download.
    needed |= {part: path / "config.json" for part, path in needed.items() if part.startswith("text_encoder")}
    absent = [part for part, path in needed.items() if not path.exists()]
    if absent:
        raise ModelError(
            f"{source.folder} has no {absent[0]} for the prompt {prompt!r}",
            hint=f"copy {absent[0]}/ of the base, or {PROMPT_FEATURES} of another copy of this model, into it"
            if not prompt
            else "leave --prompt out, or give the base model and its adapter with --base and --adapter",
        )


def run_text_encoder(
    source: ModelSource,
    kind: Any,
    part: str,
    tokenizer_kind: Any,
    *,
    length: int | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Run one text encoder of transformers on a model's prompt, on the CPU for equal results on every machine.

    Args:
        part: the encoder's folder, such as "text_encoder"; its tokenizer's is then "tokenizer".
        length: number of tokens; None uses the tokenizer's own.
        dtype: number format; None uses that of the files.
    Raises:
        ModelError: a file is missing or does not match.
    """
    folder = source.folder / part
    try:
        tokenizer = tokenizer_kind.from_pretrained(
            source.folder / part.replace("text_encoder", "tokenizer"), local_files_only=True
        )
        encoder, report = kind.from_pretrained(
            folder,
            dtype=dtype or "auto",
            variant=weight_variant(source.folder, part, stem="model"),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the text encoder {folder} cannot be loaded: {reason_of(error)}") from error
    if report["missing_keys"]:
        raise ModelError(f"the text encoder {folder} lacks weights: {sorted(report['missing_keys'])[0]}")
    most = length or tokenizer.model_max_length
    tokens = tokenizer(
        source.record.prompt or "", padding="max_length", max_length=most, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return encoder(tokens.input_ids)
