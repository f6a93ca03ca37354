"""Merging adapters: equality with peft, and refusal of everything that does not fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError
from omgsr_cli.models.adapter_files import check_adapter_folder
from omgsr_cli.models.lora import inject_lora, load_lora, merge_lora


class Block(nn.Module):
    """Layers of every kind that an adapter of the SD family reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 6, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(6, 8, 1)
        self.to_q = nn.Linear(8, 10, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(10, 5), nn.Dropout(0.0)])
        self.norm = nn.LayerNorm(5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.conv_shortcut(self.conv_in(image))
        result: Tensor = self.norm(self.to_out[0](self.to_q(features.movedim(1, -1))))
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.last = nn.Conv2d(5, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.last(self.block(image).movedim(-1, 1))
        return result


TARGETS = ["conv_in", "conv_shortcut", "to_q", "to_out.0"]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def write_adapter(net: nn.Module, folder: Path, **options: Any) -> Path:
    """Write a random adapter as peft writes it, without changing the network."""
    config = LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": TARGETS} | options))
    wrapped = get_peft_model(copy.deepcopy(net), config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    wrapped.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **options: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"to_q": 7}, "alpha_pattern": {"conv_in": 2, "block.conv_shortcut": 9}},
        {"target_modules": r"block\.(conv_in|to_out\.0)"},
        {"r": 16, "lora_alpha": 1},
        {"target_modules": ["conv_in", "to_q", "to_out.0"], "exclude_modules": r".*out\.0", "init_lora_weights": False},
        {"exclude_modules": ["conv_shortcut"], "init_lora_weights": "gaussian"},
        {"target_modules": ["to_q", "to_out.0"], "r": 4, "init_lora_weights": "orthogonal", "lora_dropout": 0.3},
        {"use_rslora": True, "rank_pattern": {r"^block\.to_q": 2}, "alpha_pattern": {"to_.*": 11}},
    ],
)
def test_merging_equals_peft(net: Net, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = write_adapter(net, tmp_path / "adapter", **options)
    expected = PeftModel.from_pretrained(copy.deepcopy(net), folder).merge_and_unload()
    before = copy.deepcopy(net.state_dict())
    changed = merge_lora(net, folder)
    assert changed == sum(not torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert changed >= 2
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-5, atol=1e-5)
    image = torch.rand(1, 3, 7, 9)
    torch.testing.assert_close(net(image), expected(image), rtol=1e-4, atol=1e-4)


def test_the_sum_of_half_weights_is_rounded_once(net: Net, tmp_path: Path) -> None:
    folder = write_adapter(net, tmp_path / "adapter")
    half = copy.deepcopy(net).bfloat16()
    exact = copy.deepcopy(half).float()
    merge_lora(half, folder)
    merge_lora(exact, folder)
    for key, value in half.state_dict().items():
        assert torch.equal(value, exact.state_dict()[key].bfloat16())


def test_an_untrained_adapter_is_reported(net: Net, tmp_path: Path) -> None:
    folder = write_adapter(net, tmp_path / "adapter")
    edit_weights(folder, lambda w: w.update({k: torch.zeros_like(v) for k, v in w.items() if "lora_B" in k}))
    assert merge_lora(net, folder) == 0


def rename_first(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if old in key]:
            weights[key.replace(old, new)] = weights.pop(key)

    return change


def drop(part: str) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if part in key]:
            del weights[key]

    return change


def shorten(part: str) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if part in key]:
            weights[key] = weights[key][:-1].clone()

    return change


def poison(weights: dict[str, Tensor]) -> None:
    weights[next(key for key in weights if "lora_B" in key)][0, 0] = float("nan")


def poison_zero(weights: dict[str, Tensor]) -> None:
    for key, value in weights.items():
        value.zero_()
        if "lora_A" in key:
            value.fill_(float("inf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_first("to_q", "to_queries"), r"1 of 4 entries have no place in the Net: block\.to_queries"),
        (
            rename_first("block", "blocks"),
            r"4 of 4 .*: blocks\.conv_in, blocks\.conv_shortcut, blocks\.to\S+, \.\.\.",
        ),
        (rename_first("to_q.lora_A", "to_q.alpha"), r"are not weights of a LoRA adapter: .*to_q\.alpha"),
        (rename_first("base_model.model.", ""), "are not weights of a LoRA adapter"),
        (drop("to_q.lora_B"), r"are missing: .*to_q\.lora_B"),
        (drop("to_q"), r"are targets without weights in the file: block\.to_q"),
        (drop(""), "has no weights"),
        (shorten("to_q.lora_B"), r"block\.to_q: shapes .* do not match \(3, 8\), \(10, 3\)"),
        (shorten("conv_in.lora_A"), r"block\.conv_in: shapes .* do not match \(3, 3, 3, 3\), \(6, 3, 1, 1\)"),
        (poison, "not finite"),
        (poison_zero, "not finite"),
        (lambda weights: weights.update({key: value.int() for key, value in weights.items()}), "int32"),
    ],
)
def test_an_adapter_that_does_not_fit_is_an_error_with_names(
    net: Net, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    folder = write_adapter(net, tmp_path / "adapter")
    edit_weights(folder, change)
    with pytest.raises(ModelError, match=message):
        merge_lora(net, folder)


UNMERGEABLE: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["last"]}, "modules_to_save"),
    ({"bias": "all"}, "bias"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not LORA"),
    ({"r": 0}, "r: should be greater than 0"),
    ({"r": True}, "r"),
    ({"r": -2}, "r"),
    ({"r": 2.5}, "r"),
    ({"lora_alpha": "much"}, "lora_alpha"),
    ({"lora_alpha": 0}, "lora_alpha"),
    ({"lora_alpha": -4}, "lora_alpha"),
    ({"lora_alpha": float("inf")}, "lora_alpha"),
    ({"rank_pattern": {"to_q": 0}}, "rank_pattern"),
    ({"alpha_pattern": {"to_q": -1}}, "alpha_pattern"),
    ({"alpha_pattern": {"to_(q": 1}}, "alpha_pattern"),
    ({"target_modules": "to_(q"}, "target_modules"),
    *(
        ({"init_lora_weights": init}, "init_lora_weights")
        for init in (
            "pissa",
            "pissa_niter_16",
            "PiSSA",
            "olora",
            "corda",
            "loftq",
            "lora_ga",
            "next_year's",
            1,
            None,
        )
    ),
    ({"layers_to_transform": 0}, "layers_to_transform"),
    ({"layers_to_transform": [1, 2]}, "layers_to_transform"),
    ({"layers_pattern": "blocks"}, "layers_pattern"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"lora_bias": True}, "lora_bias"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ({"target_parameters": ["weight"]}, "target_parameters"),
    ({"megatron_config": {"a": 1}}, "megatron_config"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config"),
    ({"alora_invocation_tokens": [0]}, "alora_invocation_tokens"),
    ({"use_next_years_lora": True}, "use_next_years_lora"),
    ({"next_years_factor": 0.5}, "next_years_factor"),
    ({"target_modules": ["conv_in", "conv_shortcut", "to_q"]}, r"to_out\.0"),
    ({"target_modules": r".*\.(conv_in|to_q)"}, r"conv_shortcut"),
    ({"exclude_modules": ["to_q"]}, "to_q"),
]


def test_options_that_cannot_be_merged_are_refused(net: Net, tmp_path: Path) -> None:
    folder = write_adapter(net, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    text = path.read_text()
    for options, message in UNMERGEABLE:
        edit_config(folder, **options)
        with pytest.raises(ModelError, match=message):
            merge_lora(net, folder)
        path.write_text(text)


def test_nothing_of_the_configuration_is_imported(net: Net, tmp_path: Path) -> None:
    folder = write_adapter(net, tmp_path / "adapter")
    edit_config(folder, auto_mapping={"base_model_class": "x", "parent_library": "no_such_module"})
    assert merge_lora(net, folder) == 4


def test_a_corrupt_file_is_an_error_with_its_name(net: Net, tmp_path: Path) -> None:
    folder = write_adapter(net, tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors cannot be read"):
        merge_lora(net, folder)


PARTS = ("vae_encoder_lora_adapter", "unet_lora_adapter")


def test_missing_parts_are_found_without_reading_weights(net: Net, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        check_adapter_folder(tmp_path / "absent", PARTS)
    write_adapter(net, tmp_path / "unet_lora_adapter")
    with pytest.raises(ModelError, match="has no folder vae_encoder_lora_adapter"):
        check_adapter_folder(tmp_path, PARTS)
    write_adapter(net, tmp_path / "vae_encoder_lora_adapter")
    check_adapter_folder(tmp_path, PARTS)
    (tmp_path / "unet_lora_adapter" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"adapter_config\.json cannot be read"):
        check_adapter_folder(tmp_path, PARTS)


def test_a_pickled_adapter_is_refused_with_a_hint(net: Net, tmp_path: Path) -> None:
    for part in ("unet_lora_adapter", "vae_encoder_lora_adapter"):
        weights = write_adapter(net, tmp_path / part) / "adapter_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"adapter_model\.bin is a pickle") as caught:
        check_adapter_folder(tmp_path, PARTS)
    assert caught.value.hint is not None
    assert "weights_only=True" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (poison, "not finite"),
        (lambda weights: weights.update({key: value.int() for key, value in weights.items()}), "int32"),
    ],
)
def test_training_does_not_start_from_corrupt_weights(
    net: Net, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    folder = write_adapter(net, tmp_path / "adapter")
    model = inject_lora(net, 3, 5, TARGETS)
    load_lora(model, folder)
    edit_weights(folder, change)
    with pytest.raises(ModelError, match=message):
        load_lora(model, folder)
