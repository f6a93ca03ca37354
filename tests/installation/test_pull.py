"""`omgsr models pull` against a stand-in for the hub."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command, files_below
from hub_server import COMMIT, Hub, Repository, read_folder, serve_hub
from huggingface_hub import constants
from random_sd import restore_random
from safetensors.torch import load_file

from omgsr_cli.errors import ModelError
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.models.record import write_record
from omgsr_cli.presets import FEATURE_NETWORKS, PRESETS
from omgsr_cli.store import hub as hub_module
from omgsr_cli.store.hub import fetch_file, list_repository
from omgsr_cli.store.installed import Provenance, write_provenance
from omgsr_cli.store.manifest import write_manifest

NAME = "omgsr-s-512"
FIRST, SECOND = PRESETS[NAME].base_sources
UNET = "unet/diffusion_pytorch_model.safetensors"
RANK = 2
TOKEN = "hf_secretsecret"


@pytest.fixture
def hub(hub: Hub, base: Path) -> Hub:
    """Both sources of the preset, complete and equal."""
    files = read_folder(base) | {"v2-1.ckpt": b"\x80\x04 a pickle", "README.md": b"a card"}
    hub.repositories |= {name: Repository(dict(files)) for name in (FIRST, SECOND)}
    return hub


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OMGSR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(hub_module, "_PAUSE_S", 0.0)
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def small_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random adapter of the tests is narrower than the published one."""
    import dataclasses

    small = dataclasses.replace(PRESETS[NAME], vae_rank=RANK, backbone_rank=RANK)
    monkeypatch.setitem(PRESETS, NAME, small)


@pytest.fixture
def pull(capfdbinary: pytest.CaptureFixture[bytes], adapter: Path) -> Any:
    command = Command(capfdbinary, "models")
    return lambda *options: command("pull", NAME, *(options if "--from" in options else ("--from", adapter, *options)))


@pytest.fixture
def unmerged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the base instead of merging: for tests of what is fetched from where."""

    def copy(source: ModelSource, folder: Path, *, half: bool, provenance: Provenance) -> None:
        shutil.copytree(source.folder, folder)
        write_record(source.record, folder)
        write_provenance(provenance, folder)
        write_manifest(folder)

    monkeypatch.setattr("omgsr_cli.installation.pulling.write_merged", copy)


def test_a_pulled_model_equals_base_and_adapter(hub: Hub, pull: Any, home: Path, base: Path, adapter: Path) -> None:
    said = pull()
    assert said.code == 0, said.err
    folder = home / "models" / NAME
    assert said.lines == [str(folder)]
    both = load_restorer(base=base, adapter=adapter, device="cpu", precision="fp32", process_size=512)
    merged = load_restorer(NAME, device="cpu", precision="fp32")
    torch.testing.assert_close(restore_random(merged), restore_random(both), rtol=1e-4, atol=1e-5)
    assert (merged.info.name, merged.info.native_tile_px, merged.info.mid_timestep) == (NAME, 512, 273)
    # Only what is used was fetched, from the first source, and nothing of it is kept twice.
    assert "v2-1.ckpt" not in hub.fetched()
    assert "text_encoder/model.safetensors" in hub.fetched()
    assert not [path for _, path, _, _ in hub.requests if SECOND in path and "/resolve/" in path]
    assert not [name for name in files_below(home) if "text_encoder" in name or ".fetch-" in name]
    record = json.loads((folder / "sources.json").read_text())
    base_origin, adapter_origin = record["origins"]
    assert (base_origin["place"], base_origin["revision"], base_origin["licence"]) == (FIRST, COMMIT, "openrail++")
    assert UNET in base_origin["files"]
    assert len(adapter_origin["files"]) == 4
    # The licence is shown once, and kept.
    assert "under the licence openrail++" in said.err
    shutil.rmtree(folder)
    assert "is under the licence" not in pull().err
    again = pull()
    assert (again.code, again.lines) == (0, [str(folder)])
    assert "already installed" in again.err


def test_fp16_files_are_preferred(hub: Hub, pull: Any, home: Path) -> None:
    for repository in hub.repositories.values():
        for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
            content = repository.files[f"{part}/{stem}.safetensors"]
            repository.files[f"{part}/{stem}.fp16.safetensors"] = content
    assert pull().code == 0
    assert UNET not in hub.fetched()
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.fetched()
    assert "vae/diffusion_pytorch_model.safetensors" in hub.fetched()
    weights = load_file(home / "models" / NAME / UNET)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    shutil.rmtree(home / "models" / NAME)
    assert pull("--full").code == 0
    assert UNET in hub.fetched()
    assert {value.dtype for value in load_file(home / "models" / NAME / UNET).values()} == {torch.float32}


@pytest.mark.usefixtures("unmerged")
def test_the_second_source_is_used_if_the_first_is_gone(hub: Hub, pull: Any, home: Path) -> None:
    hub.repositories[FIRST].refusal = (404, "RepoNotFound")
    asked = pull()
    assert asked.code == 2
    assert "private copy" in asked.err
    assert "hint: add --yes to agree" in asked.err
    assert hub.fetched() == []
    agreed = pull("--yes", "-q")
    assert agreed.code == 0, agreed.err
    assert agreed.err == ""
    record = json.loads((home / "models" / NAME / "sources.json").read_text())
    assert record["origins"][0]["place"] == SECOND


@pytest.mark.usefixtures("unmerged")
def test_two_sources_must_agree(hub: Hub, pull: Any, home: Path) -> None:
    content = bytearray(hub.repositories[SECOND].files[UNET])
    content[-1] ^= 1
    hub.repositories[SECOND].files[UNET] = bytes(content)
    said = pull()
    assert said.code == 1
    assert f"do not agree on {UNET}" in said.err
    assert hub.fetched() == []
    chosen = pull("--base", FIRST)
    assert chosen.code == 0, chosen.err


@pytest.mark.parametrize(
    ("refusal", "message", "hint"),
    [
        ((401, "GatedRepo"), "is gated", "hf auth login"),
        ((403, "GatedRepo"), "is gated", f"/{FIRST}, then"),
        ((401, "RepoNotFound"), "the hub has no repository", "hf auth login"),
        ((500, ""), "500 Internal Server Error", "give its folder with --base"),
    ],
)
def test_refusing_sources_are_reported(
    hub: Hub, pull: Any, home: Path, refusal: tuple[int, str], message: str, hint: str
) -> None:
    for repository in hub.repositories.values():
        repository.refusal = refusal
    said = pull()
    assert said.code == 1
    assert len(said.errors) == 1
    assert message in said.errors[0]
    assert hint in said.err
    assert not (home / "models" / NAME).exists()


def test_a_feature_network_is_fetched_and_training_finds_it_offline(
    hub: Hub, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training_run import write_features

    from omgsr_cli.training.perceptual import find_features, load_features

    name, command = "dinov3-convnext-large", Command(capfdbinary, "models")
    repository = Repository(read_folder(write_features(tmp_path / "features")), refusal=(403, "GatedRepo"))
    hub.repositories[FEATURE_NETWORKS[name].repository] = repository
    refused = command("pull", name)
    assert (refused.code, len(refused.errors)) == (1, 1)
    assert f"huggingface.co/{FEATURE_NETWORKS[name].repository}" in refused.err
    assert "hf auth login" in refused.err
    repository.refusal = None
    said = command("pull", name)
    assert said.code == 0, said.err
    assert (Path(said.lines[0]) / "config.json").is_file()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_features(find_features("dinov3")).channels == (8, 12, 16)
    assert command("pull", name, "--full").code == 2


def fetch(repository: str, name: str, folder: Path) -> tuple[Path, int]:
    """Fetch one file; where it is, and how many bytes were said to have come."""
    listing = list_repository(repository)
    (file,) = (file for file in listing.files if file.path == name)
    came: list[int] = []
    return fetch_file(listing, file, folder, came.append), sum(came)


def test_an_interrupted_download_resumes(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories[FIRST]
    content = repository.files[UNET]
    repository.cut[UNET] = [1000, 0, 5000, 1]
    repository.busy = 2
    path, came = fetch(FIRST, UNET, tmp_path)
    assert path.read_bytes() == content
    assert came == len(content)
    asked = [range_ for _, path, range_, _ in hub.requests if path.endswith(UNET)]
    assert asked == [None, None, None, "bytes=1000-", "bytes=1000-", "bytes=6000-", "bytes=6001-"]


def test_files_of_an_earlier_process_are_used(hub: Hub, tmp_path: Path) -> None:
    content = hub.repositories[FIRST].files[UNET]
    (tmp_path / "unet").mkdir()
    (tmp_path / f"{UNET}.part").write_bytes(content[:7000])
    path, came = fetch(FIRST, UNET, tmp_path)
    assert (path.read_bytes(), came) == (content, len(content))
    assert hub.requests[-1][2] == "bytes=7000-"
    assert fetch(FIRST, UNET, tmp_path) == (path, len(content))
    assert len(hub.fetched()) == 1


def test_a_server_without_ranges_sends_the_file_again(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[FIRST].ignores_range = True
    (tmp_path / "unet").mkdir()
    (tmp_path / f"{UNET}.part").write_bytes(b"x" * 7000)
    path, came = fetch(FIRST, UNET, tmp_path)
    content = hub.repositories[FIRST].files[UNET]
    assert (path.read_bytes(), came) == (content, len(content))


@pytest.mark.parametrize("left", [0, 10**7])
def test_a_partial_file_longer_than_the_file_is_dropped(hub: Hub, tmp_path: Path, left: int) -> None:
    content = hub.repositories[FIRST].files[UNET]
    (tmp_path / "unet").mkdir()
    (tmp_path / f"{UNET}.part").write_bytes(b"x" * (len(content) + left))
    with pytest.raises(ModelError, match="was deleted"):
        fetch(FIRST, UNET, tmp_path)
    assert fetch(FIRST, UNET, tmp_path)[0].read_bytes() == content


@pytest.mark.parametrize("name", [UNET, "unet/config.json"])
@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"?", lambda content: content + b"?" * 9999999])
def test_a_file_with_another_hash_is_refused_and_removed(hub: Hub, tmp_path: Path, name: str, change: Any) -> None:
    repository = hub.repositories[FIRST]
    repository.promised[name] = repository.files[name]
    repository.files[name] = change(repository.files[name])
    with pytest.raises(ModelError, match=f"{name} has another size or SHA-256"):
        fetch(FIRST, name, tmp_path)
    assert files_below(tmp_path) == []


def test_a_dead_connection_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[FIRST].cut[UNET] = [0] * 99
    with pytest.raises(ModelError, match="cannot be reached"):
        fetch(FIRST, UNET, tmp_path)
    assert len(hub.fetched()) == 5


def test_names_that_climb_out_are_refused(hub: Hub, pull: Any, home: Path) -> None:
    hub.repositories[FIRST].files["tokenizer/../../../evil.json"] = b"{}"
    said = pull()
    assert said.code == 1
    assert "names a file outside of its folder: 'tokenizer/../../../evil.json'" in said.err
    assert hub.fetched() == []


def test_a_repository_of_pickles_is_refused(hub: Hub, pull: Any) -> None:
    for repository in hub.repositories.values():
        repository.files["unet/diffusion_pytorch_model.bin"] = repository.files.pop(UNET)
    said = pull()
    assert said.code == 1
    assert "has no safetensors of its unet" in said.err


@pytest.mark.usefixtures("unmerged")
def test_a_damaged_model_is_rebuilt(hub: Hub, pull: Any, home: Path) -> None:
    assert pull().code == 0
    path = home / "models" / NAME / UNET
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = pull()
    assert said.code == 0
    assert "has another content" in said.err
    assert path.read_bytes() == content


def test_too_small_a_disk_is_reported_before_the_first_byte(
    hub: Hub, pull: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5 << 20))  # type: ignore[attr-defined]  # the real function's own type
    said = pull()
    assert said.code == 1
    assert "has 5 MiB free" in said.err
    assert "export OMGSR_HOME=" in said.err
    assert hub.fetched() == []


@pytest.mark.usefixtures("unmerged")
def test_a_local_folder_needs_no_network(pull: Any, base: Path, home: Path) -> None:
    said = pull("--base", base)
    assert said.code == 0, said.err
    record = json.loads((home / "models" / NAME / "sources.json").read_text())
    assert record["origins"][0]["place"] == str(base)
    assert [path.name for path in (home / "models").iterdir() if path.name.startswith(".fetch")] == []


def test_offline_mode_is_reported(pull: Any) -> None:
    said = pull()
    assert said.code == 1
    assert "HF_HUB_OFFLINE" in said.err
    assert "give its folder with --base" in said.err


# The adapter


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in read_folder(folder).items():
            archive.writestr(prefix + name, content)
    return path


def test_an_archive_of_the_adapter_is_accepted(hub: Hub, pull: Any, adapter: Path, home: Path, tmp_path: Path) -> None:
    said = pull("--from", zipped(adapter, tmp_path / "a.zip", "OMGSR-S-512-20250801/weights/"))
    assert said.code == 0, said.err
    shutil.rmtree(home)
    assert pull("--from", zipped(adapter, tmp_path / "mine.zip")).code == 0
    # People read it, and no folder for a moment's work is named.
    assert json.loads((home / "models" / NAME / "omgsr.json").read_text())["made_from"][1] == "mine"


@pytest.mark.usefixtures("unmerged")
def test_the_adapter_comes_from_google_drive(
    hub: Hub,
    pull: Any,
    adapter: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    (tmp_path / "gdown").mkdir()
    (tmp_path / "gdown" / "__init__.py").write_text(
        "import shutil\nfrom gdown import exceptions\n"
        "def download_folder(*, id, output, quiet):\n"
        f"    assert id == {PRESETS[NAME].adapter_drive!r} and quiet\n"
        f"    return [shutil.copytree({str(adapter)!r}, output + 'OMGSR-S-512')]\n"
    )
    (tmp_path / "gdown" / "exceptions.py").write_text("class DownloadError(Exception): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gdown", raising=False)
    said = Command(capfdbinary, "models")("pull", NAME)
    assert said.code == 0, said.err
    record = json.loads((home / "models" / NAME / "sources.json").read_text())
    assert record["origins"][1]["place"] == f"Google Drive folder {PRESETS[NAME].adapter_drive}"
    monkeypatch.delitem(sys.modules, "gdown")


def test_without_gdown_the_steps_are_shown(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    said = Command(capfdbinary, "models")("pull", NAME)
    assert said.code == 1
    assert "omgsr-cli[gdrive]" in said.err
    assert f"drive.google.com/drive/folders/{PRESETS[NAME].adapter_drive}" in said.err
    assert hub.requests == []


UNET_PART = "unet_lora_adapter"


def add_a_second(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.move(folder.with_name("copy"), folder / "second")


def write_config(**options: object) -> Any:
    text = json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2} | options)
    return lambda folder: (folder / UNET_PART / "adapter_config.json").write_text(text)


def to_pickle(folder: Path) -> None:
    weights = folder / UNET_PART / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


@pytest.mark.usefixtures("unmerged")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / UNET_PART), "contains no adapter"),
        (add_a_second, "contains 2 adapters"),
        (lambda folder: (folder / UNET_PART / "adapter_model.safetensors").write_bytes(b"\xff" * 20), "cut short"),
        (to_pickle, "is a pickle"),
        (write_config(r=32), "has rank 32, but the adapter of omgsr-s-512 has 2"),
        (write_config(peft_type="OFT"), "is not LORA"),
        (lambda folder: (folder / "loop").symlink_to(folder), None),
    ],
)
def test_another_adapter_is_refused_before_anything_is_fetched(
    hub: Hub, pull: Any, adapter: Path, tmp_path: Path, change: Any, message: str | None
) -> None:
    own = shutil.copytree(adapter, tmp_path / "own")
    change(own)
    said = pull("--from", own)
    if message is None:
        assert said.code == 0, said.err
        return
    assert said.code == 1
    assert message in said.err
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../evil", 0o100644, "a file outside of its own folder: '../evil'"),
        ("/tmp/evil", 0o100644, "a file outside of its own folder"),
        ("a/../../evil", 0o100644, "a file outside of its own folder"),
        ("C:evil", 0o100644, "a file outside of its own folder"),
        ("a\\..\\evil", 0o100644, "a file outside of its own folder"),
        ("link", 0o120777, "has a link: 'link'"),
    ],
)
def test_archives_that_climb_out_are_refused(
    pull: Any, home: Path, tmp_path: Path, name: str, mode: int, message: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("harmless", "x")
        member = zipfile.ZipInfo(name)
        member.filename = name
        member.external_attr = mode << 16
        archive.writestr(member, "/etc/passwd")
    said = pull("--from", tmp_path / "a.zip")
    assert said.code == 1
    assert message in said.err
    assert not [found for found in files_below(home) if "evil" in found or "harmless" in found]
    assert not (tmp_path / "evil").exists()


def test_an_archive_that_is_a_bomb_is_refused(
    pull: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omgsr_cli.installation.adapters._MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2 << 20))
    said = pull("--from", tmp_path / "a.zip")
    assert said.code == 1
    assert "unpacks to more than" in said.err
    monkeypatch.setattr("omgsr_cli.installation.adapters._MAX_FILES", 0)
    assert "has 1 files, but an adapter has only a few" in pull("--from", tmp_path / "a.zip").err


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + bytes(40)])
def test_another_file_is_not_accepted_as_an_archive(pull: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    said = pull("--from", tmp_path / "a.zip")
    assert said.code == 1
    assert "not a readable ZIP" in said.err
    assert "the folder or archive" in pull("--from", tmp_path / "absent").err


# Real processes


def start(adapter: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Pull in another process, which copies the base instead of merging, because importing diffusers takes seconds."""
    code = (
        "from omgsr_cli.installation import pulling\n"
        "from omgsr_cli.models.record import write_record\n"
        "def write_merged(source, folder, **_):\n"
        "    shutil.copytree(source.folder, folder)\n"
        "    write_record(source.record, folder)\n"
        "    pulling.write_manifest(folder)\n"
        "pulling.write_merged = write_merged\n"
        "import dataclasses, shutil, sys\nfrom omgsr_cli.presets import PRESETS\n"
        f"PRESETS[{NAME!r}] = dataclasses.replace(PRESETS[{NAME!r}], vae_rank={RANK}, backbone_rank={RANK})\n"
        "from omgsr_cli.cli.app import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "models", "pull", NAME, "--from", str(adapter), *options]
    return subprocess.Popen(
        command, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.usefixtures("unmerged")
@pytest.mark.long
def test_two_processes_download_once_through_a_proxy(hub: Hub, adapter: Path, pull: Any, home: Path) -> None:
    """The address of the hub does not resolve: only the proxy can answer. The token is sent there only."""
    hub.repositories[FIRST].pause_s = 0.02
    with serve_hub(hub.repositories) as proxy:
        variables = {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": proxy.url, "NO_PROXY": "", "HF_TOKEN": TOKEN}
        process = start(adapter, **variables)
        while not list(home.rglob("*.part")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        second = pull()
        out, err = process.communicate(timeout=600)
    assert (process.returncode, second.code) == (0, 0), err + second.err
    assert "waiting for another" in second.err
    assert out.splitlines() == second.lines == [str(home / "models" / NAME)]
    assert proxy.fetched().count(UNET) == 1
    assert hub.fetched() == []
    assert TOKEN not in err
    assert all(request[1].startswith("http://hub.invalid/") for request in proxy.requests)
    # The library of the hub also asks for a list of its own, without a token.
    of_models = [request for request in proxy.requests if FIRST in request[1] or SECOND in request[1]]
    assert {request[3] for request in of_models} == {f"Bearer {TOKEN}"}


@pytest.mark.usefixtures("unmerged")
def test_a_killed_download_is_resumed_by_the_next_process(hub: Hub, pull: Any, adapter: Path, home: Path) -> None:
    hub.repositories[FIRST].pause_s = 0.05
    process = start(adapter)
    while not any(part.stat().st_size >= 4096 for part in home.rglob("*.part")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=600)
    assert not (home / "models" / NAME).exists()
    assert stat.S_IMODE((home / "models" / f".fetch-{NAME}").stat().st_mode) == 0o700
    hub.repositories[FIRST].pause_s = 0.0
    hub.requests.clear()
    assert pull().code == 0
    assert [range_ for _, _, range_, _ in hub.requests if range_], "no download was resumed"


def test_a_token_is_in_no_message(hub: Hub, pull: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for repository in hub.repositories.values():
        repository.refusal = (500, "")
    said = pull()
    assert said.code == 1
    assert f"Bearer {TOKEN}" in {request[3] for request in hub.requests}
    assert TOKEN not in said.err + said.out.decode()


@pytest.mark.usefixtures("unmerged")
def test_a_full_disk_is_one_line_and_the_partial_download_is_used(
    hub: Hub, adapter: Path, home: Path, pull: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system of its own where this user may mount one."""
    monkeypatch.setattr("omgsr_cli.installation.pulling._SPARE_BYTES", 0)
    (home / "models").mkdir(parents=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", home / "models"], capture_output=True)
    if mount.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        # Told as roomy: another program takes the room afterwards.
        real = shutil.disk_usage
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real("/"))
        said = pull()
        assert said.code == 1
        assert "No space left on device" in said.err
        assert len(said.errors) == 1
        assert "Traceback" not in said.err
        subprocess.run(["mount", "-o", "remount,size=64m", home / "models"], check=True)
        assert pull().code == 0
    finally:
        subprocess.run(["umount", home / "models"], check=True)
