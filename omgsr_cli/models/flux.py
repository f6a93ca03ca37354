"""The FLUX family: FluxTransformer2DModel and AutoencoderKL, as in FLUX.1-dev.

Other flow-matching transformers differ in the time input, the sign of the prediction, the positions of tokens and the
features of the prompt: all of this is in `FluxRestorer.predict`.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, ShapeError, UsageError, reason_of
from omgsr_cli.files.atomic import partial_folder
from omgsr_cli.files.remembered import Remembered, cache_folder
from omgsr_cli.models.adapter_files import FLUX_PARTS
from omgsr_cli.models.base import RestorerInfo
from omgsr_cli.models.devices import PRECISIONS
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.large import (
    Footprint,
    build_quantizer,
    choose_offload,
    measure_footprint,
    offload_network,
    read_network,
    write_merged_part,
)
from omgsr_cli.models.latent import (
    POOLED,
    SEQUENCE,
    LatentRestorer,
    LatentTrainable,
    check_texts,
    check_widths,
    describe_latents,
    read_features,
    refuse_unchanged,
    run_text_encoder,
    save_features,
    write_merged_rest,
)
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.lora import LoraOptions, merge_lora, open_adapter
from omgsr_cli.models.record import read_json
from omgsr_cli.models.weight_files import check_finite, load_part, part_entries, weight_files
from omgsr_cli.options import Quantize
from omgsr_cli.presets import PRESETS
from omgsr_cli.schedules import FlowSchedule
from omgsr_cli.transfer import upload

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

PATCH = 2
"""Latent elements per token, on each side."""

_PUBLISHED = PRESETS["omgsr-f-1024"]
FLUX_LORA = LoraOptions(
    _PUBLISHED.vae_rank,
    _PUBLISHED.backbone_rank,
    vae_targets=(
        *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
        *("to_k", "to_q", "to_v", "to_out.0"),
    ),
    backbone_targets=(
        *("x_embedder", "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"),
        *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    ),
)
"""The published adapters of the family; in single blocks, they change only the attention."""

_FEATURES = {SEQUENCE: "joint_attention_dim", POOLED: "pooled_projection_dim"}
"""T5's last hidden state and CLIP's pooled output, and their widths in the transformer's configuration."""
_TEXTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_T5_TOKENS = 512

_GUIDANCE = 1.0
"""The published guidance; a guidance-distilled transformer takes it as an input."""

_STEP_TENSORS = 20
"""Number of float32 tensors of the inner width that the step needs at its peak. With FLUX.1-dev's widths at 1024 px, 17
tensors were counted in a single block; attention needs additional workspace."""


def pack(latent: Tensor) -> Tensor:
    """Convert (B, C, h, w) to tokens (B, h/2 * w/2, 4 C), row by row; a token has each channel's 2x2 elements."""
    batch, channels, height, width = latent.shape
    split = latent.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Convert tokens (B, h/2 * w/2, 4 C) back to a latent (B, C, h, w) of the given height and width."""
    batch, channels = len(tokens), tokens.shape[-1] // PATCH**2
    split = tokens.reshape(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def position_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Compute the positions of the tokens of a latent, row by row: (h/2 * w/2, 3) float32 of 0, row and column."""
    sides = (torch.arange(side // PATCH, dtype=torch.float32, device=device) for side in (height, width))
    grid = torch.cartesian_prod(*sides)
    return torch.cat((torch.zeros_like(grid[:, :1]), grid), dim=1)


class FluxRestorer(LatentRestorer):
    """A `LatentRestorer`: FLUX takes sigma as the time, predicts noise - clean, and counts rows and columns from 0."""

    backbone_part = "transformer"

    def predict(self, noisy_latent: Tensor, timesteps: int | Tensor) -> Tensor:
        """Predict noise - clean; see `LatentRestorer`. Both sides of the latent must be even.

        diffusers multiplies the time by 1000 in the transformer's number format: in bf16, 0.5051 becomes 504.
        """
        batch, _, height, width = noisy_latent.shape
        if height % PATCH or width % PATCH:
            raise ShapeError(
                f"latent {tuple(noisy_latent.shape)} has an odd side; "
                f"images of this model have sides that are multiples of {self.info.multiple_of_px}"
            )
        device, sequence = noisy_latent.device, self.features[SEQUENCE]
        steps = [timesteps] * batch if isinstance(timesteps, int) else timesteps.tolist()
        sigmas = torch.tensor([self.schedule.level(step) for step in steps], dtype=torch.float32)
        is_guided = bool(self.backbone.config["guidance_embeds"])
        (tokens,) = self.backbone(
            hidden_states=pack(noisy_latent).to(self.dtype),
            encoder_hidden_states=sequence.expand(batch, -1, -1),
            pooled_projections=self.features[POOLED].expand(batch, -1),
            timestep=upload(sigmas, device),
            guidance=torch.full((batch,), _GUIDANCE, device=device) if is_guided else None,
            img_ids=position_ids(height, width, device),
            txt_ids=torch.zeros(sequence.shape[1], 3, device=device),
            return_dict=False,
        )
        return unpack(tokens, height, width).to(noisy_latent.dtype)


def describe_flux(source: ModelSource) -> RestorerInfo:
    """Describe a model of the FLUX family from its configuration, without reading weights.

    Raises:
        ModelError: the parts do not match, or the files for the prompt are missing.
    """
    folder = source.folder
    transformer, vae = (read_json(folder / part / "config.json") for part in ("transformer", "vae"))
    channels, patch = transformer.get("in_channels", 64), transformer.get("patch_size", 1)
    latent_channels = vae.get("latent_channels", 4)
    if patch != 1 or channels != PATCH**2 * latent_channels or transformer.get("out_channels") not in (None, channels):
        raise ModelError(
            f"{folder}: the transformer takes {channels} channels and gives "
            f"{transformer.get('out_channels') or channels}, the VAE gives {latent_channels}",
            "give FLUX.1-dev or a fine-tuned copy: models that fill, or take another image, are not supported",
        )
    heads, width = transformer.get("num_attention_heads", 24), transformer.get("attention_head_dim", 128)
    info = describe_latents(source, "flux", "transformer", vae, PATCH, _STEP_TENSORS * 4 * heads * width)
    if _find_features(source) is None:
        check_texts(source, _TEXTS)
    if source.quantize == "none":
        return info
    size = footprint_of(source, info, "bf16", source.quantize)
    return replace(info, bytes_per_weight=(size.backbone + size.codec) / info.parameters)


def _schedule_of(source: ModelSource) -> FlowSchedule:
    config = source.record.schedule or read_json(source.folder / "scheduler" / "scheduler_config.json")
    name = str(config.get("_class_name", ""))
    if not name.startswith("FlowMatch"):
        raise ModelError(f"{source.folder}: the scheduler {name} does not go with a model of the FLUX family")
    schedule = FlowSchedule.from_config(config)
    schedule.check_timestep(source.record.mid_timestep)
    return schedule


def footprint_of(source: ModelSource, info: RestorerInfo, precision: str, quantize: Quantize) -> Footprint:
    """Estimate the memory that a model needs, from the headers of its files."""
    size = PRECISIONS[precision].itemsize
    codec = sum(entry.elements for _, entry in part_entries(source.folder, "vae")) * (2 if precision == "bf16" else 4)
    working = info.step.bytes_per_px * info.native_tile_px**2
    return measure_footprint(part_entries(source.folder, "transformer"), size, quantize, codec, working)


def load_flux(source: ModelSource, device: torch.device, precision: str) -> FluxRestorer:
    """Load a model of the FLUX family, merge its adapter if it has one, and place it where it fits.

    Args:
        source: from `find_model`, with `quantize` and `offload`.
        device: device that the model runs on.
        precision: "fp32", "bf16" or "fp16", for weights that are not quantised.
    Raises:
        ModelError: the files are not a complete model, or the adapter does not match or changes no weight.
        DeviceError: the model does not fit with the allowed quantisation and offloading; no weights were read.
    """
    info, schedule, folder = describe_flux(source), _schedule_of(source), source.folder
    size = partial(footprint_of, source, info, precision)
    offload = choose_offload(size, source.name, device, source.quantize, source.offload)
    features, dtype = load_features(source), PRECISIONS[precision]
    with quiet_libraries(), ExitStack() as stack:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        network = _empty(FluxTransformer2DModel, folder / "transformer")
        check_widths(source, features, network, _FEATURES)
        vae: AutoencoderKL = load_part(AutoencoderKL, folder, "vae", torch.float32 if source.adapter else dtype)
        part, changed = None, 0
        if source.adapter is not None:
            changed = merge_lora(vae.encoder, source.adapter / FLUX_PARTS[0])
            part = stack.enter_context(open_adapter(network, source.adapter / FLUX_PARTS[1]))
        quantizer = build_quantizer(source.quantize, dtype)
        # Weights are quantised on the device that computes, and moved to the host afterwards.
        place = torch.device("cpu") if offload == "group" or (offload == "model" and quantizer is None) else device
        read_network(network, weight_files(folder, "transformer"), place, dtype, adapter=part, quantizer=quantizer)
        if part is not None:
            refuse_unchanged(source.adapter, changed + part.changed)
        release = offload_network(network, device, offload)
        # The VAE's decoder overflows in fp16.
        place_vae: nn.Module = vae
        place_vae.to(device, torch.float32 if precision == "fp16" else dtype)
    return FluxRestorer(network, vae, schedule, features, info, precision, source, release)


def _empty(kind: Any, folder: Path) -> Any:
    """Create a network of diffusers from its configuration, without weights."""
    try:
        with torch.device("meta"):
            return kind.from_config(kind.load_config(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason_of(error)}") from error


def save_flux(source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
    """Write a model with its adapter merged, file by file; same arguments as `Family.save_merged`."""
    describe_flux(source)
    if text_encoder:
        check_texts(source, _TEXTS)
    features = load_features(source)
    with quiet_libraries(), ExitStack() as stack:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        encoder = backbone = None
        if source.adapter is not None:
            vae = _empty(AutoencoderKL, source.folder / "vae")
            network = _empty(FluxTransformer2DModel, source.folder / "transformer")
            encoder = stack.enter_context(open_adapter(vae.encoder, source.adapter / FLUX_PARTS[0]))
            backbone = stack.enter_context(open_adapter(network, source.adapter / FLUX_PARTS[1]))
        write_merged_part(source.folder, folder, "vae", encoder, prefix="encoder.", narrow=half)
        write_merged_part(source.folder, folder, "transformer", backbone, narrow=half)
    if encoder is not None and backbone is not None:
        refuse_unchanged(source.adapter, encoder.changed + backbone.changed)
    # In bfloat16, FLUX.1-dev's have 4.2 MB.
    write_merged_rest(source, folder, features, torch.bfloat16, _TEXTS if text_encoder else ())


def load_flux_trainable(
    source: ModelSource, device: torch.device, precision: str, options: LoraOptions | None, start: Path | None
) -> LatentTrainable:
    """Load the base model and add adapters: new ones, or those in `start`.

    Raises:
        ModelError: the files are not a complete model, or the adapters do not match it.
        UsageError: the training resolution is not a multiple of a token's size.
    """
    native, multiple = source.record.native_tile_px, describe_flux(source).multiple_of_px
    if native % multiple:
        raise UsageError(f"data.resolution {native} is not a multiple of {multiple}", "the model needs that")
    restorer = load_flux(replace(source, quantize="none", offload="none"), device, precision)
    return LatentTrainable(restorer, FLUX_PARTS, options, FLUX_LORA, start, stores_features=True)


def load_features(source: ModelSource) -> dict[str, Tensor]:
    """Read the features of a model's prompt from the adapter's or the model's folder or the cache, or compute them.

    Returns:
        Float32 on the CPU, always rounded to bfloat16, by name.
    Raises:
        ModelError: the features are not stored, and the folder has no text encoders.
    """
    prompt, found = source.record.prompt or "", _find_features(source)
    if found is None:
        check_texts(source, _TEXTS)
        weights = Remembered().contents([source.folder / part for part in _TEXTS])
        place = cache_folder() / "prompts" / hashlib.sha256(f"{weights}\n{prompt}".encode()).hexdigest()
        found = read_features([place], prompt, list(_FEATURES))
        if found is None:
            found = _encode(source)
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with partial_folder(place) as beside:
                    save_features(found, prompt, beside, torch.bfloat16)
                    os.rename(beside, place)
            except OSError:
                # Another process stored them first, or the cache is not writable and the next run computes them again.
                pass
    return {name: value.bfloat16().float() for name, value in found.items()}


def _find_features(source: ModelSource) -> dict[str, Tensor] | None:
    return read_features([source.adapter, source.folder], source.record.prompt or "", list(_FEATURES))


def _encode(source: ModelSource) -> dict[str, Tensor]:
    """Run CLIP and T5 like FLUX's pipeline, with 512 tokens and without a mask."""
    with explained_imports():
        from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
    pooled = run_text_encoder(source, CLIPTextModel, "text_encoder", AutoTokenizer).pooler_output
    # The published T5-XXL has 9.5 GB in bfloat16, so it is not converted to a wider format.
    t5 = run_text_encoder(source, T5EncoderModel, "text_encoder_2", AutoTokenizer, length=_T5_TOKENS)
    features = {SEQUENCE: t5.last_hidden_state.float(), POOLED: pooled.float()}
    check_finite(features.items(), source.folder)
    return features
