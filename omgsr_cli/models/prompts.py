"""The text that a model is conditioned on, as the embedding that its text encoder gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.libraries import explained_imports
from omgsr_cli.models.weight_files import check_finite, weight_variant

PROMPT_EMBEDS = "prompt_embeds.safetensors"

_KEY = "prompt_embeds"


def load_prompt_embeds(folder: Path, prompt: str) -> Tensor:
    """The embedding of a prompt: the one that lies beside the model, or from the text encoder if it is another prompt.

    Args:
        folder: of the model.
        prompt: any text, also the empty one.
    Returns:
        (1, tokens, width) float32 on the CPU: the text encoder's last hidden state.
    Raises:
        ModelError: the prompt is not the kept one and the folder has no text encoder.
    """
    kept = _read_kept(folder / PROMPT_EMBEDS, prompt)
    if kept is not None:
        return kept
    _check_text_encoder(folder, prompt)
    return _encode(folder, prompt)


def check_prompt(folder: Path, prompt: str) -> None:
    """See that `load_prompt_embeds` has what it needs, without running a text encoder; errors are the same."""
    if _read_kept(folder / PROMPT_EMBEDS, prompt) is None:
        _check_text_encoder(folder, prompt)


def _check_text_encoder(folder: Path, prompt: str) -> None:
    if not (folder / "text_encoder" / "config.json").is_file() or not (folder / "tokenizer").is_dir():
        raise ModelError(
            f"{folder} has no text encoder for the prompt {prompt!r}",
            hint="leave --prompt out, or give the base model and its adapter with --base and --adapter",
        )


def save_prompt_embeds(embeds: Tensor, prompt: str, folder: Path) -> None:
    """Write an embedding beside a model, with its prompt, as `prompt_embeds.safetensors`."""
    save_file({_KEY: embeds.float().cpu().contiguous()}, folder / PROMPT_EMBEDS, metadata={"prompt": prompt})


def _read_kept(path: Path, prompt: str) -> Tensor | None:
    """The embedding in the file if it is of this prompt, else None."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("prompt") != prompt:
                return None
            embeds: Tensor = file.get_tensor(_KEY)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if embeds.ndim != 3 or len(embeds) != 1:
        raise ModelError(f"{path}: shape {tuple(embeds.shape)} is not (1, tokens, width)")
    check_finite([(_KEY, embeds)], path)
    return embeds.float()


@torch.no_grad()
def _encode(folder: Path, prompt: str) -> Tensor:
    """Run the text encoder, in float32 on the CPU: once, and the same on every machine; it is dropped afterwards."""
    with explained_imports():
        from transformers import CLIPTextModel, CLIPTokenizer
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        loaded: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            dtype=torch.float32,
            variant=weight_variant(folder, "text_encoder", stem="model"),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = reason_of(error)
        raise ModelError(f"the text encoder of {folder} cannot be loaded: {reason}") from error
    encoder, report = loaded
    if report["missing_keys"]:
        raise ModelError(f"the text encoder of {folder} lacks weights: {sorted(report['missing_keys'])[0]}")
    tokens = tokenizer(
        prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    embeds: Tensor = encoder(tokens.input_ids)[0]
    check_finite([("last_hidden_state", embeds)], folder / "text_encoder")
    return embeds.float()
