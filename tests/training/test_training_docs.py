"""Every command of docs/training.md runs, at toy size."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
from command_line import Command, Said, draw
from places import ROOT
from random_sd import write_sd_model
from training_run import write_features

DOCS = ROOT / "docs" / "training.md"
STEPS = 2
TOY = {
    "data.resolution": 64, "data.batch_size": 1, "data.workers": 0, "train.steps": STEPS, "train.threads": 1,
    "train.precision": "fp32", "optim.accumulate": 1, "optim.warmup_steps": 1, "save.every": STEPS,
}  # fmt: skip
OF_PRESET = {
    "omgsr-tiny": {},
    # Random weights instead of those to download.
    "omgsr-s-512": {
        "optim.warmup_steps": 0, "model.base": "base", "loss.backbone": "features", "lora.vae_rank": 2,
        "lora.backbone_rank": 2,
    },
}  # fmt: skip


def commands(text: str) -> list[str]:
    """The lines that begin with "$ ", with those that they are continued on."""
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", text, re.S))
    return re.findall(r"^\$ (.*)$", re.sub(r"\\\n\s*", "", blocks), re.M)


class Shell:
    """Runs the documentation's commands in this process; `train` gets the toy's sizes after its own options."""

    def __init__(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        self._capfd = capfdbinary
        self._preset = ""

    def run(self, line: str) -> Said:
        words, _, target = line.partition(" > ")
        launcher, name, *arguments = shlex.split(words.replace("step-00006000", f"step-{STEPS:08}"))
        if launcher == "torchrun":
            # Several processes are tested elsewhere; the command of each is run here.
            name, *arguments = arguments[arguments.index("omgsr_cli") + 1 :]
        else:
            assert launcher == "omgsr"
        if name == "train" and "config.toml" in arguments:
            toy = TOY | OF_PRESET[self._preset]
            arguments += [word for key, value in toy.items() for word in ("--set", f"{key}={value}")]
        said = Command(self._capfd, name)(*arguments)
        if "--print-config" in arguments:
            self._preset = arguments[-1]
        if target:
            Path(target).write_bytes(said.out)
        return said


def test_every_documented_command_runs(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    hub: object,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    for number in range(3):
        draw(Path("photos") / f"{number}.png", width=110 + number, height=100)
    draw(Path("old.jpg"), width=32, height=24)
    write_sd_model(Path("base"))
    write_features(Path("features"))
    lines, shell = commands(DOCS.read_text("utf-8")), Shell(capfdbinary)
    assert len(lines) >= 10
    for line in lines:
        said = shell.run(line)
        assert said.code == 0, f"{line}\n{said.err}"
    assert Path("new.png").is_file()
    assert Path("runs/omgsr-tiny/report.html").is_file()
    assert Path("model/omgsr.json").is_file()


def test_every_documented_table_is_a_configuration() -> None:
    from omgsr_cli.training.config import TrainConfig

    for block in re.findall(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.S):
        least = {"model": {"preset": "omgsr-s-512"}, "data": {"train": ["photos"]}}
        TrainConfig.model_validate(least | tomllib.loads(block))


def test_every_recipe_is_a_configuration() -> None:
    from omgsr_cli.degradation import load_degradation
    from omgsr_cli.training.config import TrainConfig

    root = DOCS.parents[1]
    recipes = sorted((root / "recipes" / "omgsr_tiny").glob("*.toml"))
    assert len(recipes) >= 3
    for recipe in recipes:
        config = TrainConfig.model_validate(tomllib.loads(recipe.read_text("utf-8")))
        for name in config.degradation.presets:
            load_degradation(root / name if name.endswith(".toml") else name)


def test_the_ablations_differ_in_one_line_each_and_all_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ROOT / "recipes" / "ablations"
    texts = {path.stem: path.read_text("utf-8").splitlines()[1:] for path in folder.glob("*.toml")}
    published = texts.pop("omgsr")
    assert len(texts) >= 8
    for name, lines in texts.items():
        assert sum(one != other for one, other in zip(lines, published, strict=True)) == 1, name
    arguments = ["--toy", "--out", str(tmp_path), "--set", "train.threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["run.py", *arguments])
        patch.setenv("ACCELERATE_USE_CPU", "true")
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(folder / "run.py"), run_name="__main__")
    assert ended.value.code == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    scores = {row[0].removeprefix("| "): float(row[2]) for row in rows}
    assert scores.keys() == {"omgsr", *texts}
    # Another place in the schedule is another image, whatever little was learned.
    assert len({scores[name] for name in ("omgsr", "injection-start", "injection-end")}) == 3
    assert all((tmp_path / name / "step-00000001" / "manifest.json").is_file() for name in scores)
    card = (tmp_path / "dists" / "step-00000001" / "README.md").read_text("utf-8")
    assert [text for text in ("distance on VGG16", "GAN on DINOv3-ConvNeXt") if text not in card] == []
