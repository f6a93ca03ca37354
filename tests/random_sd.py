"""Write small random models of the Stable Diffusion family to folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from omgsr_cli.models.latent import SEQUENCE, save_features
from omgsr_cli.models.sd import SdRestorer

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
WIDTH = 12


def write_sd_model(folder: Path, *, prediction_type: str = "epsilon", shift_factor: float | None = None) -> Path:
    """Write a small random diffusers folder without a text encoder, with the empty prompt's embedding."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        shift_factor=shift_factor,
        scaling_factor=0.5,
    )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    config = SCHEDULER | {"prediction_type": prediction_type}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    save_features({SEQUENCE: torch.randn(1, 5, 12)}, "", folder)
    return folder


def write_base(folder: Path) -> Path:
    """Write a small random diffusers folder with a text encoder whose vocabulary is the bytes."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler | {"beta_end": 0.012}))
    write_text_encoder(folder)
    return folder


def write_text_encoder(folder: Path) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=7,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=0,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 7, "pad_token": "!"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))


def write_adapter(base: Path, folder: Path, *, trained: bool = True) -> Path:
    """Write an adapter of the published layout for the base."""
    parts: dict[str, nn.Module] = {
        "vae_encoder_lora_adapter": AutoencoderKL.from_pretrained(base / "vae").encoder,
        "unet_lora_adapter": UNet2DConditionModel.from_pretrained(base / "unet"),
    }
    for name, network in parts.items():
        wrapped = get_peft_model(network, LoraConfig(r=2, lora_alpha=2, target_modules=["conv1", "to_q", "conv_in"]))
        for key, parameter in wrapped.named_parameters():
            if "lora_B" in key and trained:
                nn.init.normal_(parameter, std=0.1)
        wrapped.save_pretrained(folder / name)
    return folder


def restore_random(restorer: SdRestorer) -> Tensor:
    """Restore the same random image with any model of the family."""
    image = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        return restorer.decode(restorer.restore(restorer.encode(image)))
