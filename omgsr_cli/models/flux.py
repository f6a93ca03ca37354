"""The FLUX family: FluxTransformer2DModel and AutoencoderKL, as in FLUX.1-dev.

The module defines the transformer with its conventions, loads and saves the model, and encodes its prompt.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, UsageError, reason_of
from omgsr_cli.files.atomic import partial_folder
from omgsr_cli.files.remembered import Remembered, cache_folder
from omgsr_cli.models.adapter_files import FLUX_PARTS, FLUX_RANKS
from omgsr_cli.models.autoencoders import bytes_per_px_of, check_vae_config, latent_px_of, load_tiny_decoder
from omgsr_cli.models.base import RestorerInfo, StageInfo
from omgsr_cli.models.devices import PRECISIONS
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.flow import PATCH, FlowRestorer, FlowTrainable, pack, position_ids, unpack
from omgsr_cli.models.large import (
    Footprint,
    build_quantizer,
    choose_offload,
    measure_footprint,
    offload_network,
    read_network,
    write_merged_part,
)
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.lora import LoraOptions, inject_adapters, merge_lora, open_adapter
from omgsr_cli.models.record import read_json, write_record
from omgsr_cli.models.weight_files import (
    check_finite,
    load_part,
    part_entries,
    read_prompt_features,
    weight_files,
    weight_variant,
)
from omgsr_cli.options import Quantize
from omgsr_cli.schedules import FlowSchedule

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

FLUX_LORA = LoraOptions(
    *FLUX_RANKS,
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

PROMPT_FEATURES = "prompt_embeds.safetensors"
_SEQUENCE, _POOLED = "prompt_embeds", "pooled_prompt_embeds"
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_T5_TOKENS = 512

_GUIDANCE = 1.0
"""The published guidance; a guidance-distilled transformer takes it as an input."""

_STEP_TENSORS = 20
"""Number of float32 tensors of the inner width that the step needs at its peak. With FLUX.1-dev's widths at 1024 px, 17
tensors were counted in a single block; attention needs additional workspace."""


@dataclass(frozen=True)
class TextFeatures:
    """The features of a prompt, for the transformer.

    Attributes:
        sequence: (1, tokens, width) float, T5's last hidden state.
        pooled: (1, width) float, CLIP's pooled output.
    """

    sequence: Tensor
    pooled: Tensor


class FluxModel:
    """A `FlowModel`: FLUX takes sigma as the time, predicts noise - clean, and counts rows and columns from 0.

    Args:
        network: diffusers' transformer.
        features: features of the prompt.
        prompt: text of the prompt.
        device, dtype: device and number format in which the network computes.
    """

    def __init__(
        self,
        network: FluxTransformer2DModel,
        features: TextFeatures,
        prompt: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.network: nn.Module = network
        self.features, self._prompt, self._dtype = features, prompt, dtype
        self._is_guided = bool(network.config["guidance_embeds"])
        self.move(device)

    def velocity(self, noisy_latent: Tensor, sigma: Tensor) -> Tensor:
        """Predict noise - clean in the shape and dtype of the latent, (B, C, h, w), for (B,) sigmas.

        diffusers multiplies the time by 1000 in the transformer's number format: in bf16, 0.5051 becomes 504.
        """
        batch, _, height, width = noisy_latent.shape
        sequence, pooled = self.features.sequence, self.features.pooled
        device = noisy_latent.device
        (tokens,) = self.network(
            hidden_states=pack(noisy_latent).to(self._dtype),
            encoder_hidden_states=sequence.expand(batch, -1, -1),
            pooled_projections=pooled.expand(batch, -1),
            timestep=sigma,
            guidance=torch.full((batch,), _GUIDANCE, device=device) if self._is_guided else None,
            img_ids=position_ids(height, width, (0, 0), device),
            txt_ids=torch.zeros(sequence.shape[1], 3, device=device),
            return_dict=False,
        )
        return unpack(tokens, height, width).to(noisy_latent.dtype)

    def move(self, device: torch.device) -> None:
        """Move the prompt's features."""
        self.features = TextFeatures(
            self.features.sequence.to(device, self._dtype), self.features.pooled.to(device, self._dtype)
        )

    def save_features(self, folder: Path) -> None:
        """Write the prompt's features to a folder."""
        save_features(self.features, self._prompt, folder)


def describe_flux(source: ModelSource) -> RestorerInfo:
    """Describe a model of the FLUX family from its configuration, without reading weights.

    Raises:
        ModelError: the parts do not match.
    """
    folder = source.folder
    transformer, vae = (read_json(folder / part / "config.json") for part in ("transformer", "vae"))
    check_vae_config(vae, folder / "vae")
    channels, patch = transformer.get("in_channels", 64), transformer.get("patch_size", 1)
    latent_channels = vae.get("latent_channels", 4)
    if patch != 1 or channels != PATCH**2 * latent_channels or transformer.get("out_channels") not in (None, channels):
        raise ModelError(
            f"{folder}: the transformer takes {channels} channels and gives "
            f"{transformer.get('out_channels') or channels}, the VAE gives {latent_channels}",
            "give FLUX.1-dev or a fine-tuned copy: models that fill, or take another image, are not supported",
        )
    latent_px = latent_px_of(vae)
    heads, width = transformer.get("num_attention_heads", 24), transformer.get("attention_head_dim", 128)
    info = RestorerInfo(
        name=source.name,
        family="flux",
        scale=source.record.scale,
        mid_timestep=source.record.mid_timestep,
        multiple_of_px=PATCH * latent_px,
        native_tile_px=source.record.native_tile_px,
        latent_px=latent_px,
        codec=StageInfo("internal", 0, bytes_per_px_of(vae)),
        step=StageInfo("blended", 0, max(1, _STEP_TENSORS * 4 * heads * width // (PATCH * latent_px) ** 2)),
        border_px=0,
        color_fix="adain",
        prompt=source.record.prompt or "",
        parameters=sum(e.elements for part in ("transformer", "vae") for _, e in part_entries(folder, part)),
    )
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


def load_flux(source: ModelSource, device: torch.device, precision: str) -> FlowRestorer:
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
    features = load_features(source)
    dtype = PRECISIONS[precision]
    with quiet_libraries(), ExitStack() as stack:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        network = _empty(FluxTransformer2DModel, folder / "transformer")
        _check_widths(folder, features, network)
        vae: AutoencoderKL = load_part(AutoencoderKL, folder, "vae", torch.float32 if source.adapter else dtype)
        part, changed = None, 0
        if source.adapter is not None:
            changed = merge_lora(vae.encoder, source.adapter / FLUX_PARTS[0])
            part = stack.enter_context(open_adapter(network, source.adapter / FLUX_PARTS[1]))
        quantizer = build_quantizer(source.quantize, dtype)
        # Weights are quantised on the device that computes, and moved to the host afterwards.
        place = torch.device("cpu") if offload == "group" or (offload == "model" and quantizer is None) else device
        read_network(network, weight_files(folder, "transformer"), place, dtype, adapter=part, quantizer=quantizer)
        if part is not None and not changed + part.changed:
            raise _unchanged(source.adapter)
        release = offload_network(network, device, offload)
        # The VAE's decoder overflows in fp16.
        place_vae: nn.Module = vae
        place_vae.to(device, torch.float32 if precision == "fp16" else dtype)
        decoder = None
        if source.vae is not None:
            decoder = load_tiny_decoder(source.vae, int(vae.config["latent_channels"]), device, dtype)
    model = FluxModel(network, features, info.prompt or "", device, dtype)
    return FlowRestorer(model, vae, schedule, info, precision, source, device, decoder, release)


def _empty(kind: Any, folder: Path) -> Any:
    """Create a network of diffusers from its configuration, without weights."""
    try:
        with torch.device("meta"):
            return kind.from_config(kind.load_config(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason_of(error)}") from error


def _unchanged(adapter: Path | None) -> ModelError:
    return ModelError(f"the adapter {adapter} changes no weight", hint="it was never trained; give another one")


def _check_widths(folder: Path, features: TextFeatures, network: Any) -> None:
    for found, key in ((features.sequence, "joint_attention_dim"), (features.pooled, "pooled_projection_dim")):
        if found.shape[-1] != network.config[key]:
            raise ModelError(
                f"{folder}: the prompt's features are {found.shape[-1]} wide, the transformer's {key} is "
                f"{network.config[key]}"
            )


def save_flux(source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
    """Write a model with its adapter merged, file by file; same arguments as `Family.save_merged`."""
    info = describe_flux(source)
    if text_encoder:
        _check_text_encoders(source.folder, info.prompt or "")
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
    if encoder is not None and backbone is not None and not encoder.changed + backbone.changed:
        raise _unchanged(source.adapter)
    save_features(features, info.prompt or "", folder)
    base = source.record.base or source.name
    made_from = (base,) if source.adapter is None else (base, source.adapter.name)
    write_record(source.record.model_copy(update={"made_from": made_from, "base": None}), folder)
    for part in ("scheduler", *(_TEXT_PARTS if text_encoder else ())):
        shutil.copytree(source.folder / part, folder / part)


def load_flux_trainable(
    source: ModelSource, device: torch.device, precision: str, options: LoraOptions | None, start_from: Path | None
) -> FlowTrainable:
    """Load the base model and add adapters: new ones, or those in `start_from`.

    Raises:
        ModelError: the files are not a complete model, or the adapters do not match it.
        UsageError: the training resolution is not a multiple of a token's size.
    """
    native, multiple = source.record.native_tile_px, describe_flux(source).multiple_of_px
    if native % multiple:
        raise UsageError(f"data.resolution {native} is not a multiple of {multiple}", "the model needs that")
    restorer = load_flux(replace(source, quantize="none", offload="none"), device, precision)
    networks: tuple[Any, ...] = (restorer.vae.encoder, restorer.model.network)
    adapters = inject_adapters(networks, FLUX_PARTS, options, FLUX_LORA)
    made_from = source.record.model_copy(update={"made_from": (source.name,), "base": source.location})
    trainable = FlowTrainable(restorer, adapters, made_from)
    if start_from is not None:
        trainable.load(start_from)
    return trainable


def save_features(features: TextFeatures, prompt: str, folder: Path) -> None:
    """Write features and their prompt to the folder of a model or an adapter, in bfloat16: 4.2 MB for FLUX.1-dev."""
    tensors = {_SEQUENCE: features.sequence, _POOLED: features.pooled}
    tensors = {key: value.detach().to("cpu", torch.bfloat16).contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / PROMPT_FEATURES, metadata={"prompt": prompt})


def load_features(source: ModelSource) -> TextFeatures:
    """Read the features of a model's prompt from the adapter's or the model's folder or the cache, or compute them.

    Returns:
        Float32 on the CPU, always rounded to bfloat16.
    Raises:
        ModelError: the features are not stored, and the folder has no text encoders.
    """
    prompt = source.record.prompt or ""
    kept = _find_kept(source, prompt)
    if kept is not None:
        return kept
    _check_text_encoders(source.folder, prompt)
    weights = Remembered().contents([source.folder / part for part in _TEXT_PARTS])
    place = cache_folder() / "prompts" / hashlib.sha256(f"{weights}\n{prompt}".encode()).hexdigest()
    kept = _read_kept(place / PROMPT_FEATURES, prompt)
    if kept is not None:
        return kept
    features = _encode(source.folder, prompt)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(place) as beside:
            save_features(features, prompt, beside)
            os.rename(beside, place)
    except OSError:
        # Another process stored them first, or the cache is not writable and the next run computes them again.
        return _rounded(features)
    return _rounded(features)


def check_prompt(source: ModelSource) -> None:
    """Check that `load_features` has its files, with the same errors, but without running a text encoder."""
    prompt = source.record.prompt or ""
    if _find_kept(source, prompt) is None:
        _check_text_encoders(source.folder, prompt)


def _find_kept(source: ModelSource, prompt: str) -> TextFeatures | None:
    places = (source.adapter, source.folder) if source.adapter is not None else (source.folder,)
    found = (_read_kept(place / PROMPT_FEATURES, prompt) for place in places)
    return next((features for features in found if features is not None), None)


def _read_kept(path: Path, prompt: str) -> TextFeatures | None:
    """Read the stored features; None if the file is missing or stores another prompt."""
    found = read_prompt_features(path, prompt, [_SEQUENCE, _POOLED])
    if found is None:
        return None
    features = TextFeatures(*found)
    if features.sequence.ndim != 3 or features.pooled.ndim != 2 or len(features.sequence) != 1:
        shapes = tuple(features.sequence.shape), tuple(features.pooled.shape)
        raise ModelError(f"{path}: shapes {shapes[0]} and {shapes[1]} are not (1, tokens, width) and (1, width)")
    check_finite(((_SEQUENCE, features.sequence), (_POOLED, features.pooled)), path)
    return _rounded(features)


def _rounded(features: TextFeatures) -> TextFeatures:
    return TextFeatures(features.sequence.bfloat16().float(), features.pooled.bfloat16().float())


def _check_text_encoders(folder: Path, prompt: str) -> None:
    absent = [part for part in _TEXT_PARTS if not (folder / part).is_dir()]
    if absent:
        raise ModelError(
            f"{folder} has no {absent[0]} for the prompt {prompt!r}",
            hint=f"copy {absent[0]}/ of the base, or {PROMPT_FEATURES} of another copy of this model, into it"
            if not prompt
            else "leave --prompt out, or give the base model and its adapter with --base and --adapter",
        )


@torch.no_grad()
def _encode(folder: Path, prompt: str) -> TextFeatures:
    """Run CLIP and T5 on the CPU like FLUX's pipeline, with 512 tokens and without a mask, and discard them."""
    with explained_imports():
        from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
    kinds: tuple[tuple[Any, str, str, int], ...] = (
        (CLIPTextModel, "text_encoder", "tokenizer", 0),
        (T5EncoderModel, "text_encoder_2", "tokenizer_2", _T5_TOKENS),
    )
    results = []
    for kind, part, tokenizer_part, most in kinds:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder / tokenizer_part, local_files_only=True)
            encoder, report = kind.from_pretrained(
                folder / part,
                # The published T5-XXL has 9.5 GB in bfloat16, so it is not converted to a wider format.
                dtype="auto",
                variant=weight_variant(folder, part, stem="model"),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"the {part} of {folder} cannot be loaded: {reason_of(error)}") from error
        if report["missing_keys"]:
            raise ModelError(f"the {part} of {folder} lacks weights: {sorted(report['missing_keys'])[0]}")
        length = most or tokenizer.model_max_length
        ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        results.append(encoder(ids))
        del encoder
    features = TextFeatures(results[1].last_hidden_state.float(), results[0].pooler_output.float())
    check_finite(((_SEQUENCE, features.sequence), (_POOLED, features.pooled)), folder)
    return features
