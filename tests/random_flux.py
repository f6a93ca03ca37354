"""Write small random models of the FLUX family to folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model
from random_sd import write_text_encoder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from omgsr_cli.models.latent import POOLED, SEQUENCE, save_features

#: FLUX.1-dev's scheduler.
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
TOKENS, WIDTH, POOLED_WIDTH = 5, 12, 12
#: FLUX.1-dev's transformer, from its config.json.
DEV_CONFIG = {
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
#: FLUX.1-dev's VAE, from its config.json.
DEV_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


def write_flux_model(folder: Path, *, guidance: bool = True, features: bool = True) -> Path:
    """Write a small random FLUX model in diffusers' layout, in two shards, with the empty prompt's features."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer.save_pretrained(folder / "transformer", max_shard_size="80KB")
    vae.save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    if features:
        features = {SEQUENCE: torch.randn(1, TOKENS, WIDTH), POOLED: torch.randn(1, POOLED_WIDTH)}
        save_features(features, "", folder, torch.bfloat16)
    return folder


def write_flux_adapter(base: Path, folder: Path, *, rank: int = 2, trained: bool = True) -> Path:
    """Write an adapter of the published layout for the base."""
    parts: dict[str, tuple[nn.Module, list[str]]] = {
        "vae_encoder_adapter": (AutoencoderKL.from_pretrained(base / "vae").encoder, ["conv1", "to_q", "conv_in"]),
        "flux_adapter": (
            FluxTransformer2DModel.from_pretrained(base / "transformer"),
            ["x_embedder", "attn.to_q", "attn.add_q_proj", "ff.net.0.proj"],
        ),
    }
    for name, (network, targets) in parts.items():
        wrapped = get_peft_model(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        for key, parameter in wrapped.named_parameters():
            if "lora_B" in key and trained:
                nn.init.normal_(parameter, std=0.1)
        wrapped.save_pretrained(folder / name)
    return folder


def write_text_encoders(folder: Path) -> Path:
    """Add CLIP and T5 to a model, each with a tokenizer of few words, and remove the prompt's features."""
    write_text_encoder(folder)
    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    config = T5Config(vocab_size=len(words), d_model=WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).to(torch.bfloat16).save_pretrained(folder / "text_encoder_2")
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "tokenizer_2")
    (folder / "prompt_embeds.safetensors").unlink(missing_ok=True)
    return folder
