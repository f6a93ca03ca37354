"""`omgsr train --push-to-hub` against a stand-in for the hub: uploads and refusals."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, draw, pixels
from hub_server import Hub, Repository
from huggingface_hub import constants
from training_run import run_here, settings

from omgsr_cli.store.manifest import find_damage, load_manifest
from omgsr_cli.training.config import TrainConfig, format_config

TOKEN = "hf_secretsecret"
NAME = "someone/restorer"


@pytest.fixture(scope="module")
def config(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run that has a checkpoint."""
    folder = tmp_path_factory.mktemp("published")
    tables = settings(world, folder / "run", train={"steps": 1}, loss={"dv3cd": 0.0, "gan": 0.0})
    run_here(tables)
    path = folder / "config.toml"
    path.write_text(format_config(TrainConfig.model_validate(tables)))
    return path


@pytest.fixture
def hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub without a repository, for a user with a token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def test_a_pushed_model_contains_nothing_of_the_machine(
    train: Command, hub: Hub, config: Path, world: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    said = train(config, "--push-to-hub", NAME)
    assert said.code == 0, said.err
    assert said.lines == [f"{hub.url}/{NAME}/commit/c0ffee" + "0" * 34]
    assert re.fullmatch(r"uploading 5 files, \d\.\d MiB, to someone/restorer\n", said.err)
    assert hub.commits == [(NAME, "Upload step-00000001 with omgsr")]
    files = hub.repositories[NAME].files
    assert files.keys() == {"README.md", "config.json", "manifest.json", "model.safetensors", "omgsr.json"}
    assert set(hub.objects) == {json.loads(files["manifest.json"])["files"]["model.safetensors"]["sha256"]}
    # Neither folders of this machine nor the token are in it.
    text = b"".join(content for name, content in files.items() if not name.endswith(".safetensors")).decode()
    for secret in (str(world), str(config.parent), TOKEN):
        assert secret not in text
    assert "hq" in text, "the card tells the folder's name, without what is above it"
    assert TOKEN not in said.err + said.out.decode()
    hosts = {path: authorization for _, path, _, authorization in hub.requests}
    assert hosts["/api/repos/create"] == f"Bearer {TOKEN}"
    assert not any(authorization for path, authorization in hosts.items() if path.startswith("/lfs/")), "others' host"

    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name, content in files.items():
        (fetched / name).write_bytes(content)
    assert find_damage(fetched, load_manifest(fetched)) == ()
    upscale, image = Command(capfdbinary, "upscale"), draw(tmp_path / "small.png")
    for name, model in (("a", fetched), ("b", config.parent / "run" / "step-00000001")):
        assert upscale(image, "-o", tmp_path / f"{name}.png", "--model", model, "--device", "cpu").code == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))

    assert train(config, "--push-to-hub", NAME, "--json").records == [
        {"event": "pushed", "address": f"{hub.url}/{NAME}/commit/c0ffee" + "0" * 34}
    ]
    assert len(hub.objects) == 1, "what is there is not sent again"


@pytest.mark.parametrize(
    ("part", "status", "hint"),
    [
        ("create", 401, "hf auth login"),
        ("preupload", 403, "hf auth login"),
        ("batch", 500, "nothing was committed: push again"),
        ("put", 403, "push again"),
        ("commit", 400, "nothing was committed: push again"),
    ],
)
def test_a_refusal_is_one_line(
    train: Command, hub: Hub, config: Path, part: str, status: int, hint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.refusals[part] = status
    said = train(config, "--push-to-hub", NAME)
    assert said.code == 1
    assert len(said.errors) == 1
    assert said.errors[0].startswith(f"error: {NAME} cannot be written on the hub: ")
    assert hint in said.err
    assert hub.commits == []
    for secret in (TOKEN, "X-Signature", "Traceback"):
        assert secret not in said.err + said.out.decode()


def test_an_existing_repository_needs_no_token_that_may_create_one(train: Command, hub: Hub, config: Path) -> None:
    hub.repositories[NAME] = Repository({})
    hub.refusals["create"] = 403
    assert train(config, "--push-to-hub", NAME).code == 0
    assert len(hub.commits) == 1


def test_pushing_without_a_network_is_one_line(
    train: Command, hub: Hub, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        said = train(config, "--push-to-hub", NAME)
    assert (said.code, len(said.errors)) == (1, 1)
    assert f"{NAME} cannot be written on the hub" in said.err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = train(config, "--push-to-hub", NAME)
    assert (said.code, len(said.errors)) == (1, 1)
    assert "HF_HUB_OFFLINE" in said.err
    assert hub.requests == []


def test_invalid_names_and_broken_checkpoints_are_reported_first(
    train: Command, hub: Hub, config: Path, tmp_path: Path
) -> None:
    said = train(config, "--push-to-hub", "restorer")
    assert said.code == 2
    assert "'restorer' is not the name of a hub repository" in said.err
    broken = tmp_path / "step-00000001"
    broken.mkdir()
    for file in (config.parent / "run" / "step-00000001").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"")
    assert train(config, "--push-to-hub", NAME, "--resume", broken).code == 1
    assert hub.requests == []
