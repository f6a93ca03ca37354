"""Feature networks: published layouts, frozen weights, equality with other implementations."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, ShapeError
from omgsr_cli.training.config import LossConfig, TrainConfig
from omgsr_cli.training.perceptual import (
    DinoV3,
    Vgg16,
    find_features,
    infer_sizes,
    load_alexnet,
    load_dinov3,
    load_features,
    load_vgg16,
    read_tensors,
    rename_published,
)

WIDTHS, DEPTHS = [8, 16, 24, 32], [1, 2, 1, 1]
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
DEVIATION = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)

PUBLISHED_SIZES = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}


def build_dinov3(depths: Any = DEPTHS, widths: Any = WIDTHS) -> Any:
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    return DINOv3ConvNextModel(
        DINOv3ConvNextConfig(depths=list(depths), hidden_sizes=list(widths), layer_scale_init_value=0.5)
    ).eval()


def publish(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name transformers' weights as Meta's code has them, written down from that code and not from ours."""
    published = {}
    for name, value in tensors.items():
        name = name.removeprefix("model.")
        if match := re.fullmatch(r"stages\.(\d)\.downsample_layers\.(\d)\.(\w+)", name):
            published["downsample_layers.{}.{}.{}".format(*match.groups())] = value
        elif match := re.fullmatch(r"stages\.(\d)\.layers\.(\d+)\.gamma", name):
            published["stages.{}.{}.gamma".format(*match.groups())] = value
        elif match := re.fullmatch(r"stages\.(\d)\.layers\.(\d+)\.(\w+)\.(\w+)", name):
            stage, block, layer, part = match.groups()
            short = {"depthwise_conv": "dwconv", "layer_norm": "norm"}
            short |= {"pointwise_conv1": "pwconv1", "pointwise_conv2": "pwconv2"}
            published[f"stages.{stage}.{block}.{short[layer]}.{part}"] = value
        else:
            assert name.startswith("layer_norm."), name
            # The last norm is there twice, by two names.
            published[name.replace("layer_norm", "norm")] = value
            published[name.replace("layer_norm", "norms.3")] = value
    return published


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny random DINOv3 with its folder and its published file."""
    torch.manual_seed(0)
    model = build_dinov3()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    root = tmp_path_factory.mktemp("dinov3")
    model.save_pretrained(root / "folder")
    torch.save(publish(model.state_dict()), root / "dinov3_convnext_tiny_pretrain.pth")
    return SimpleNamespace(
        model=model, folder=root / "folder", published=root / "dinov3_convnext_tiny_pretrain.pth", root=root
    )


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 52, 71, generator=torch.Generator().manual_seed(1)) * 2 - 1


def stages_of(model: Any, images: Tensor) -> list[Tensor]:
    """The maps of transformers' own forward pass."""
    normalised = ((images / 2 + 0.5) - MEAN) / DEVIATION
    with torch.no_grad():
        return list(model(normalised, output_hidden_states=True).hidden_states[-4:-1])


def test_dinov3_stages_equal_transformers(dinov3: Any, images: Tensor) -> None:
    net = load_dinov3(dinov3.folder)
    assert net.channels == (8, 16, 24)
    maps, expected = net(images), stages_of(dinov3.model, images)
    assert [tuple(found.shape) for found in maps] == [(2, 8, 13, 17), (2, 16, 6, 8), (2, 24, 3, 4)]
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_published_file_gives_the_same_network(dinov3: Any, images: Tensor) -> None:
    folder, published = load_dinov3(dinov3.folder), load_dinov3(dinov3.published)
    for pooled in (False, True):
        for one, other in zip(folder(images, pooled), published(images, pooled), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_the_key_map_covers_every_published_size(size: str) -> None:
    depths, widths = PUBLISHED_SIZES[size]
    with torch.device("meta"):
        model = build_dinov3(depths, widths)
    renamed = rename_published(publish(model.state_dict()))
    assert infer_sizes(renamed) == (depths, widths)
    wanted = {name.removeprefix("model."): value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in renamed.items()} == wanted


def test_a_pooled_map_feeds_the_next_stage(dinov3: Any, images: Tensor) -> None:
    net = load_dinov3(dinov3.folder)
    plain, pooled = net(images), net(images, pooled=True)
    first = pool_by_hand(plain[0])
    torch.testing.assert_close(pooled[0], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled[1], pool_by_hand(net.stages[1](first)), atol=1e-5, rtol=1e-5)
    assert [found.shape for found in plain] == [found.shape for found in pooled]


def pool_by_hand(features: Tensor) -> Tensor:
    """Root of a weighted mean of squares over 3x3, from shifted copies."""
    height, width = features.shape[2:]
    squares = F.pad(features.square(), (1, 1, 1, 1))
    taps = (0.25, 0.5, 0.25)
    total = sum(taps[y] * taps[x] * squares[..., y : y + height, x : x + width] for y in range(3) for x in range(3))
    return (torch.as_tensor(total) + 1e-12).sqrt()


def test_a_frozen_network_stays_frozen(dinov3: Any, images: Tensor) -> None:
    net = load_dinov3(dinov3.folder)
    assert not any(weight.requires_grad for weight in net.parameters())
    assert not any(module.training for module in net.train().modules())
    asked = images.clone().requires_grad_()
    net(asked, pooled=True)[2].sum().backward()
    assert asked.grad is not None
    assert asked.grad.abs().sum() > 0


def test_autocast_changes_nothing(dinov3: Any, images: Tensor) -> None:
    net = load_dinov3(dinov3.folder)
    with torch.autocast("cpu", torch.bfloat16):
        inside = net(images.to(torch.bfloat16).float(), pooled=True)
    for one, other in zip(inside, net(images.to(torch.bfloat16), pooled=True), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(1, 3, 15, 40), (3, 32, 32), (1, 4, 32, 32)])
def test_a_wrong_shape_is_reported(dinov3: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="from 16 px"):
        load_dinov3(dinov3.folder)(torch.zeros(shape))


def test_another_architecture_is_refused(dinov3: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match="is a vit, not a dinov3_convnext"):
        load_dinov3(tmp_path)
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "vit.safetensors")
    with pytest.raises(ModelError, match="not those of a DINOv3 ConvNeXt") as told:
        load_dinov3(tmp_path / "vit.safetensors")
    assert "dinov3_convnext_*.pth" in str(told.value.hint)
    with pytest.raises(ModelError, match="does not exist"):
        load_dinov3(tmp_path / "absent.pth")
    with pytest.raises(ModelError, match="'no/such/folder'"):
        load_dinov3("no/such/folder")
    tensors = publish(dinov3.model.state_dict())
    del tensors["stages.1.1.dwconv.weight"]
    torch.save(tensors, tmp_path / "cut.pth")
    with pytest.raises(ModelError, match=r"cut\.pth has no stages\.1\.layers\.1\.depthwise_conv\.weight"):
        load_dinov3(tmp_path / "cut.pth")


def test_missing_weights_are_named(dinov3: Any, tmp_path: Path) -> None:
    tensors = dinov3.model.state_dict()
    dinov3.model.config.save_pretrained(tmp_path)
    save_file(
        {name: value for name, value in tensors.items() if "stages.1" not in name}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match=r"has no .*stages\.1"):
        load_dinov3(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_dinov3(tmp_path)


def test_the_hub_is_asked_for_safetensors_only(dinov3: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(dinov3.folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_features(find_features("dinov3")).channels == (8, 16, 24)
    load_features(find_features("dinov3-convnext-small"))
    assert asked == [
        (f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m", ["config.json", "*.safetensors*"])
        for size in ("large", "small")
    ]


def test_a_gated_repository_shows_where_to_accept_the_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> str:
        answer: Any = SimpleNamespace(headers={}, request=None, status_code=403)
        raise GatedRepoError("gated", response=answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match="facebook/dinov3-convnext-tiny") as told:
        load_dinov3("facebook/dinov3-convnext-tiny")
    assert "https://huggingface.co/facebook/dinov3-convnext-tiny" in str(told.value.hint)
    assert "hf auth login" in str(told.value.hint)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    for legacy in (True, False):
        torch.save(
            {"features.0.weight": Trap(tmp_path / "ran")},
            tmp_path / "vgg16.pth",
            _use_new_zipfile_serialization=not legacy,
        )
        with pytest.raises(ModelError, match="can run code"):
            load_vgg16(tmp_path)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_a_truncated_file_is_reported(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "some.pth"
    torch.save({"weight": torch.rand(3000)}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    assert read_tensors(path)["weight"].shape == (3000,)
    for kept in (0, 1, 40, len(whole) // 2, len(whole) - 7):
        path.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=r"some\.pth"):
            read_tensors(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match=r"some\.pth"):
        read_tensors(path)
    torch.save([torch.rand(3)], path)
    with pytest.raises(ModelError, match="not a dictionary of tensors"):
        read_tensors(path)


def torchvision_like(name: str) -> nn.Sequential:
    """The convolutional part as torchvision lays it out, whose indices its checkpoints use."""
    layers: list[nn.Module] = []
    if name == "alexnet":
        for before, after, kernel, stride, padding, pools in (
            *((3, 64, 11, 4, 2, True), (64, 192, 5, 1, 2, True), (192, 384, 3, 1, 1, False)),
            *((384, 256, 3, 1, 1, False), (256, 256, 3, 1, 1, False)),
        ):
            layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2)] if pools else []
        return nn.Sequential(*layers)
    before = 3
    for channels in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()] if channels else [nn.MaxPool2d(2)]
        before = channels or before
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("name", "file", "ends"),
    [
        ("vgg16", "vgg16-397923af.pth", (3, 8, 15, 22, 29)),
        ("alexnet", "alexnet.safetensors", (1, 4, 7, 9, 11)),
    ],
)
def test_networks_of_torchvision_give_their_outputs(
    name: str, file: str, ends: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    reference = torchvision_like(name)
    tensors = {f"features.{layer}": value for layer, value in reference.state_dict().items()}
    tensors["classifier.0.bias"] = torch.zeros(7)
    (save_file if file.endswith("safetensors") else torch.save)(tensors, tmp_path / file)
    # What lies beside it is another network.
    torch.save({}, tmp_path / f"{name}_bn-1.pth")
    net = (load_vgg16 if name == "vgg16" else load_alexnet)(tmp_path)
    images = torch.rand(2, 3, 37, 50) * 2 - 1
    hidden, expected = ((images / 2 + 0.5) - MEAN) / DEVIATION, []
    with torch.no_grad():
        for number, layer in enumerate(reference):
            hidden = layer(hidden)
            expected += [hidden] if number in ends else []
        for found, wanted in zip(net(images), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    if name == "vgg16":
        pooled = load_features(find_features("vgg16", str(tmp_path)), torch.bfloat16)
        maps = pooled(images, pooled=True)
        assert {found.dtype for found in maps} == {torch.bfloat16}
        assert [tuple(found.shape[2:]) for found in maps] == [(37, 50), (19, 25), (10, 13), (5, 7), (3, 4)]


def test_a_wrong_shape_in_a_file_is_reported(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(64, 3, 5, 5)}, tmp_path / "vgg16.safetensors")
    with pytest.raises(ModelError, match=r"must have the shape \(64, 3, 3, 3\), not \(64, 3, 5, 5\)"):
        load_vgg16(tmp_path)
    with pytest.raises(ModelError, match="no weights of alexnet") as told:
        load_alexnet(tmp_path)
    assert "alexnet*.safetensors" in str(told.value.hint)


def test_the_network_of_a_folder_is_recognised(dinov3: Any, images: Tensor, tmp_path: Path) -> None:
    dinov3.model.save_pretrained(tmp_path / "one")
    (tmp_path / "two").mkdir()
    torch.save(
        {f"features.{name}": value for name, value in torchvision_like("vgg16").state_dict().items()},
        tmp_path / "two" / "vgg16-397923af.pth",
    )
    for folder, kind in (("one", DinoV3), ("two", Vgg16)):
        net = load_features(find_features(str(tmp_path / folder)))
        assert type(net) is kind
    net = load_features(find_features(str(tmp_path / "one")))
    for found, wanted in zip(net(images), load_dinov3(tmp_path / "one")(images), strict=True):
        assert torch.equal(found, wanted)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "vgg16.pth").write_bytes(b"")
    for name, message, hint in (
        ("empty", "has no feature network", "vgg16*.pth"),
        ("nowhere", 'neither "dinov3" nor "vgg16", nor a folder', ""),
        ("vgg16.pth", "is a file, but backbone must be a folder", "backbone_path"),
    ):
        with pytest.raises(ModelError, match=re.escape(message)) as told:
            find_features(str(tmp_path / name))
        assert hint in str(told.value.hint)
    with pytest.raises(ModelError, match="does not exist"):
        find_features("vgg16", str(tmp_path / "nowhere"))
    with pytest.raises(ValidationError, match="backbone is a folder already"):
        LossConfig(backbone=str(tmp_path), backbone_path=str(tmp_path))


@pytest.mark.parametrize(
    ("loss", "gan", "networks"),
    [
        ({}, {}, {"loss": "dinov3", "gan": "dinov3"}),
        ({"dv3cd": 0.0, "gan": 0.0}, {}, {}),
        ({"discriminator": "unet"}, {}, {"loss": "dinov3"}),
        ({"backbone": "vgg16"}, {"backbone": "dinov3"}, {"loss": "vgg16", "gan": "dinov3"}),
        ({"dv3cd": 0.0, "backbone": "vgg16"}, {"backbone": "dinov3"}, {"gan": "dinov3"}),
    ],
)
def test_loss_and_discriminator_have_the_networks_that_they_name(
    loss: dict[str, Any], gan: dict[str, Any], networks: dict[str, str]
) -> None:
    tables = {"model": {"preset": "omgsr-s-512"}, "data": {"train": ["."]}, "loss": loss, "gan": gan}
    found = TrainConfig.model_validate(tables).backbones
    assert {section: name for section, (name, _) in found.items()} == networks
