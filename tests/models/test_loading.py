"""Finding, loading and writing models; no test touches the network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from random_sd import WIDTH, restore_random, write_adapter
from safetensors.torch import load_file, save_file

from omgsr_cli.errors import ModelError, OmgsrError, UsageError
from omgsr_cli.models.families import REPOSITORY_FILES
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.latent import SEQUENCE, save_features
from omgsr_cli.models.libraries import explain_broken_torchvision, explained_imports
from omgsr_cli.models.loading import describe_model, load_restorer, save_merged
from omgsr_cli.models.record import ModelRecord, load_record, write_record
from omgsr_cli.models.sd import SdRestorer
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions, build_options
from omgsr_cli.presets import PRESETS
from omgsr_cli.store import hub


@pytest.fixture
def own_base(base: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(base, tmp_path / "base")


def load(*arguments: Any, **options: Any) -> SdRestorer:
    restorer = load_restorer(*arguments, **({"device": "cpu", "precision": "fp32"} | options))
    assert isinstance(restorer, SdRestorer)
    return restorer


def find(model: str | Path | None = None, base: Path | None = None, **options: Any) -> ModelSource:
    texts = {"model": model and str(model), "base": base and str(base)}
    return find_model(build_options(ModelOptions, **texts, **options))


def test_a_merged_folder_equals_base_and_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    both = load(base=base, adapter=adapter, mid_timestep=200, process_size=48)
    save_merged(both.source, tmp_path / "merged")
    merged = load(tmp_path / "merged")
    # Not bit by bit: mapped and allocated weights differ in alignment, and so in the order of some sums.
    torch.testing.assert_close(restore_random(merged), restore_random(both), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(restore_random(both), restore_random(load(base=base, mid_timestep=200)))
    assert merged.info.mid_timestep == 200
    assert merged.info.native_tile_px == 48
    assert merged.notes == ()
    record = load_record(tmp_path / "merged")
    assert record is not None
    assert record.made_from == (str(base), "adapter")
    found = sorted(path.name for path in (tmp_path / "merged").iterdir())
    assert found == ["omgsr.json", "prompt_embeds.safetensors", "scheduler", "unet", "vae"]
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_merged_folder_needs_no_text_encoder_and_no_peft(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_merged(find(base=base, adapter=adapter), tmp_path / "merged")
    with pytest.raises(ModelError, match="has no text_encoder for the prompt 'a cat'"):
        load(tmp_path / "merged", prompt="a cat")
    # Without reading a weight too, for a dry run.
    with pytest.raises(ModelError, match="has no text_encoder for the prompt 'a cat'"):
        describe_model(find(tmp_path / "merged", prompt="a cat"))
    assert describe_model(find(tmp_path / "merged")).prompt is not None
    for name in ("peft", "transformers", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    assert load(tmp_path / "merged").notes == ()


def test_a_merged_folder_with_text_encoder_takes_any_prompt(base: Path, adapter: Path, tmp_path: Path) -> None:
    save_merged(find(base=base, adapter=adapter, prompt="b"), tmp_path / "merged", text_encoder=True)
    assert load(tmp_path / "merged").info.prompt == "b"
    other = load(tmp_path / "merged", prompt="a cat")
    expected = load(base=base, adapter=adapter, prompt="a cat")
    torch.testing.assert_close(restore_random(other), restore_random(expected), rtol=1e-4, atol=1e-5)


def test_prompts_change_the_result_and_long_ones_are_cut(base: Path) -> None:
    empty, cat, long = (load(base, prompt=text).features[SEQUENCE] for text in ("", "a cat", "abcdefghijklmno"))
    assert empty.shape == cat.shape == long.shape == (1, 7, WIDTH)
    assert not torch.allclose(empty, cat)


def test_a_stored_embedding_is_used_for_its_prompt_only(own_base: Path) -> None:
    kept = torch.randn(1, 7, WIDTH)
    save_features({SEQUENCE: kept}, "x", own_base)
    assert torch.equal(load(own_base, prompt="x").features[SEQUENCE], kept)
    assert not torch.equal(load(own_base, prompt="y").features[SEQUENCE], kept)
    save_features({SEQUENCE: torch.randn(1, 7, WIDTH + 1)}, "z", own_base)
    with pytest.raises(ModelError, match="13 wide, but cross_attention_dim is 12"):
        load(own_base, prompt="z")


def test_save_merged_leaves_nothing_behind_when_it_fails(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find(base)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omgsr_cli.models.latent.save_features", fail)
    with pytest.raises(ModelError, match="merged cannot be written: the disk is full"):
        save_merged(source, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "merged").mkdir()
    with pytest.raises(ModelError, match="already exists"):
        save_merged(source, tmp_path / "merged")


def test_a_bare_diffusers_folder_notes_its_assumptions(base: Path) -> None:
    restorer = load(base)
    assert restorer.info.mid_timestep == 273
    assert restorer.info.native_tile_px == 16 * 2
    assert len(restorer.notes) == 1
    assert "mid-timestep 273" in restorer.notes[0]


def test_another_mid_timestep_than_the_models_is_noted(base: Path, adapter: Path, tmp_path: Path) -> None:
    own = shutil.copytree(adapter, tmp_path / "adapter")
    write_record(ModelRecord(family="sd", mid_timestep=120, native_tile_px=64, prompt=""), own)
    assert load(base=base, adapter=own).info.mid_timestep == 120
    assert load(base=base, adapter=own, mid_timestep=120).notes == ()
    moved = load(base=base, adapter=own, mid_timestep=121)
    assert moved.notes == ("mid-timestep 121 is used, but the model was trained at 120",)
    assert moved.info.mid_timestep == 121


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mid_timestep": 1000}, "--mid-timestep 1000 "),
        ({"mid_timestep": -1}, "--mid-timestep -1 "),
        ({"process_size": 100}, "--process-size 100 .*multiple of 8"),
        ({"process_size": 0}, "--process-size 0 "),
        ({"base": "somewhere"}, "were both given"),
    ],
)
def test_wrong_arguments_are_usage_errors(base: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(base, **options)


def test_info_reads_no_weights(base: Path, adapter: Path) -> None:
    described = describe_model(find(base=base, adapter=adapter))
    assert described == load(base=base, adapter=adapter).info


def test_fp16_files_are_used_if_no_others_exist(own_base: Path) -> None:
    for part in ("unet", "vae"):
        path = own_base / part / "diffusion_pytorch_model.safetensors"
        path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    path = own_base / "text_encoder" / "model.safetensors"
    path.rename(path.with_name("model.fp16.safetensors"))
    assert load(own_base).backbone.dtype == torch.float32


def test_sharded_weights_are_read_and_counted(own_base: Path) -> None:
    whole = load(own_base)
    shutil.rmtree(own_base / "unet")
    whole.backbone.save_pretrained(own_base / "unet", max_shard_size="20KB")
    assert len(list((own_base / "unet").glob("*.safetensors"))) > 1
    sharded = load(own_base)
    assert sharded.info.parameters == whole.info.parameters
    torch.testing.assert_close(restore_random(sharded), restore_random(whole), rtol=1e-4, atol=1e-5)


def damage(path: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        change(folder / path)

    return apply


def to_pickle(path: Path) -> Path:
    return path.rename(path.with_suffix(".bin"))


def set_key(key: str, value: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def forget_a_weight(path: Path) -> None:
    weights = load_file(path)
    del weights[next(key for key in weights if key.endswith(("conv_in.weight", "fc1.weight")))]
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage("unet/diffusion_pytorch_model.safetensors", to_pickle), r"model\.bin is a pickle"),
        (damage("text_encoder/model.safetensors", to_pickle), r"model\.bin is a pickle"),
        (damage("vae/diffusion_pytorch_model.safetensors", Path.unlink), "vae has no weights"),
        (damage("vae/config.json", Path.unlink), r"config\.json cannot be read"),
        (damage("unet/config.json", Path.unlink), "is not a model folder"),
        (damage("unet/config.json", lambda path: path.write_text("{")), "is not JSON"),
        (damage("unet/config.json", lambda path: path.write_text("[]")), "is not a JSON object"),
        (damage("unet/config.json", set_key("_class_name", "SomeUNet")), "is a SomeUNet, not a UNet2DConditionModel"),
        (damage("unet/config.json", set_key("in_channels", 9)), "UNet takes 9 channels, the VAE gives 4"),
        (damage("unet/config.json", set_key("block_out_channels", [8, 24])), "unet cannot be loaded"),
        (damage("unet/diffusion_pytorch_model.safetensors", forget_a_weight), r"1 missing keys: conv_in\.weight"),
        (damage("unet/diffusion_pytorch_model.safetensors", lambda path: path.write_bytes(b"x" * 9)), "safetensors"),
        (damage("scheduler/scheduler_config.json", Path.unlink), r"scheduler_config\.json cannot be read"),
        (
            damage("scheduler/scheduler_config.json", set_key("_class_name", "FlowMatchEulerDiscreteScheduler")),
            "does not go with a model of the SD family",
        ),
        (damage("text_encoder/model.safetensors", forget_a_weight), r"lacks weights: .*fc1\.weight"),
        (damage("tokenizer", shutil.rmtree), "has no tokenizer for the prompt ''"),
        (damage("text_encoder/config.json", Path.unlink), "has no text_encoder for the prompt ''"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_part(
    own_base: Path, change: Callable[[Path], None], message: str
) -> None:
    change(own_base)
    with pytest.raises(ModelError, match=message):
        load(own_base)


def test_a_folder_of_pickles_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "v2-1.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=r"v2-1\.ckpt is a pickle") as caught:
        find(tmp_path)
    assert caught.value.hint is not None
    assert "safe_serialization=True" in caught.value.hint


def test_an_untrained_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    untrained = write_adapter(base, tmp_path / "adapter", trained=False)
    with pytest.raises(ModelError, match="changes no weight"):
        load(base=base, adapter=untrained)


def test_an_adapter_in_place_of_a_model_is_recognised(adapter: Path) -> None:
    with pytest.raises(ModelError, match="is an adapter, not a model") as caught:
        find(adapter)
    assert f"--base FOLDER --adapter {adapter}" in str(caught.value.hint)


def test_a_merged_folder_takes_no_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    save_merged(find(base), tmp_path / "merged")
    with pytest.raises(ModelError, match="already merged"):
        find(tmp_path / "merged", adapter=adapter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"family": "sd", "mid_timestep": 1, "native_tile_px": 8, "extra": 1}', "extra: unknown key"),
        ('{"family": "sd", "mid_timestep": 1000, "native_tile_px": 8}', "mid_timestep: should be less"),
        ('{"family": "sd"}', r"mid_timestep: this key is missing \(and 1 more\)"),
        ("{", "file: Invalid JSON"),
    ],
)
def test_a_wrong_record_names_its_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "omgsr.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        find(tmp_path)


def test_an_unknown_family_lists_the_known_ones(tmp_path: Path) -> None:
    write_record(ModelRecord(family="other", mid_timestep=244, native_tile_px=1024), tmp_path)
    with pytest.raises(ModelError, match="unknown model family 'other'") as caught:
        find(tmp_path)
    assert caught.value.hint == "families: tiny, sd, network, flux"


def test_an_unknown_model_lists_the_presets() -> None:
    with pytest.raises(ModelError, match="no model is called 'omgsr-huge'") as caught:
        find("omgsr-huge")
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in PRESETS)


def test_a_missing_preset_shows_how_to_get_it() -> None:
    with pytest.raises(ModelError, match="omgsr-s-512 is not installed") as caught:
        find("omgsr-s-512")
    assert caught.value.hint == "omgsr models pull omgsr-s-512"


def test_a_preset_takes_a_local_base_and_adapter(base: Path, adapter: Path) -> None:
    source = find("omgsr-s-512", base=base, adapter=adapter)
    assert (source.record.mid_timestep, source.record.native_tile_px, source.notes) == (273, 512, ())


def test_a_preset_asks_its_second_repository_if_the_first_fails(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = PRESETS["omgsr-s-512"].base_sources

    def download(repository: str, *_: object) -> Path:
        if repository == first:
            raise ModelError("gone", hint="look elsewhere")
        assert repository == second
        return base

    monkeypatch.setattr("omgsr_cli.models.sources.download_model", download)
    assert find(adapter=adapter).folder == base


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owner/name", True), ("a/b-c.d_e", True), ("name", False), ("./a", False), ("a/b/c", False), ("../a", False)],
)
def test_repository_names_are_validated(name: str, expected: bool) -> None:
    assert hub.is_repository_name(name) is expected


class FakeHub:
    """A repository as a folder: copies what the patterns allow into a snapshot."""

    def __init__(self, repository: Path, snapshot: Path) -> None:
        self.repository, self.snapshot = repository, snapshot

    def __call__(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        from huggingface_hub.utils import filter_repo_objects

        names = [str(p.relative_to(self.repository)) for p in self.repository.rglob("*") if p.is_file()]
        for path in filter_repo_objects(names, allow_patterns=allow_patterns):
            (self.snapshot / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / path, self.snapshot / path)
        return str(self.snapshot)


def test_only_needed_files_are_fetched(own_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = own_base / "unet" / "diffusion_pytorch_model.safetensors"
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"):
        shutil.copy(weights, weights.with_name(name))
    vae = own_base / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (own_base / "v2-1.ckpt").write_bytes(b"\x80")
    (own_base / "safety_checker").mkdir()
    (own_base / "safety_checker" / "model.safetensors").write_bytes(b"x")
    monkeypatch.setattr("huggingface_hub.snapshot_download", FakeHub(own_base, tmp_path / "snapshot"))
    restorer = load("owner/name")
    assert restorer.info.name == "owner/name"
    found = {str(path.relative_to(tmp_path / "snapshot")) for path in (tmp_path / "snapshot").rglob("*.*")}
    assert {path for path in found if not re.search("config.json|tokenizer", path)} == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
    }


HttpError = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind(f"{status} Client Error\nRequest ID: 1", response=response)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (http_error(errors.RepositoryNotFoundError, 401), "the hub has no repository owner/name", "hf auth login"),
        (http_error(errors.RevisionNotFoundError, 404), "the hub has no repository owner/name", "check its name"),
        (http_error(errors.GatedRepoError, 403), "is gated", "accept its licence"),
        (errors.LocalEntryNotFoundError("offline"), "cannot be reached", "local folder"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached", "HF_HUB_OFFLINE"),
        (HttpError("no route"), "cannot be reached", "network"),
        (http_error(errors.HfHubHTTPError, 500), "cannot be fetched from the hub: 500 Client Error$", None),
        (OSError(28, "No space left on device"), "No space left on device", None),
    ],
)
def test_failures_of_the_hub_are_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, hint: str | None
) -> None:
    def fail(*arguments: object, **options: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=message) as caught:
        hub.download_model("owner/name", REPOSITORY_FILES)
    assert "\n" not in caught.value.message
    assert (hint is None) if caught.value.hint is None else (hint is not None and hint in caught.value.hint)


def test_offline_with_an_empty_cache_is_one_line(tmp_path: Path) -> None:
    """The hub's own code, with its network cut by its own switch."""
    code = (
        "from omgsr_cli.store.hub import download_model\n"
        "from omgsr_cli.errors import ModelError\n"
        "from omgsr_cli.models.families import REPOSITORY_FILES\n"
        "try: download_model('owner/name', REPOSITORY_FILES)\n"
        "except ModelError as error: print(error.message)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "owner/name is not in the hub's cache and the hub cannot be reached\n"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="a real torchvision is installed")
def test_a_broken_torchvision_is_explained_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that wraps the error in its own, as transformers does."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "a_library.py").write_text(
        "try:\n    import torchvision\nexcept RuntimeError as error:\n"
        "    raise ModuleNotFoundError(\"Could not import module 'CLIPTextModel'\") from error\n"
    )
    information = tmp_path / "torchvision-0.20.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OmgsrError) as caught, explained_imports():
        importlib.import_module("a_library")
    assert caught.value.message == f"the installed torchvision 0.20.0 does not work with torch {torch.__version__}"
    assert "torchvision" in str(caught.value.hint)


def test_other_import_errors_are_not_blamed_on_torchvision() -> None:
    assert explain_broken_torchvision(ImportError("no module named 'accelerate'")) is None


def test_loading_leaves_the_libraries_settings_as_they_were(base: Path) -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = [(m.get_verbosity(), m.is_progress_bar_enabled()) for m in (diffusers_logging, transformers_logging)]
    load(base)
    after = [(m.get_verbosity(), m.is_progress_bar_enabled()) for m in (diffusers_logging, transformers_logging)]
    assert after == before
