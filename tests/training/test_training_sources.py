"""Where images come from: files, shards and data sets give the same samples; weights, first images, whole images."""

from __future__ import annotations

import json
import sys
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from training_run import run_here, settings, write_images

from omgsr_cli.degradation import load_degradation
from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files import remembered
from omgsr_cli.training import sources
from omgsr_cli.training.check import check_files
from omgsr_cli.training.config import (
    ConfigError,
    DataConfig,
    SourceConfig,
    TrainConfig,
    check_config,
    format_config,
    parse_table,
)
from omgsr_cli.training.data import CropOptions, TrainingCrops, load_batches, number_batches, read_pixels
from omgsr_cli.training.sources import check_source, find_training_images, plan_epoch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SourceConfig]:
    """The same images as files, in two shards, and as a data set."""
    import datasets

    root = tmp_path_factory.mktemp("stored")
    files = sorted(write_images(root / "files", 5).iterdir())
    for number, part in enumerate((files[:3], files[3:])):
        with tarfile.open(root / f"{number:03}.tar", "w") as tar:
            for path in part:
                tar.add(path, f"train/{path.name}")
                tar.addfile(tarfile.TarInfo(f"train/{path.stem}.json"), BytesIO(b""))
    rows = {"name": [path.name for path in files], "photo": [path.read_bytes() for path in files]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
    datasets.DatasetDict({"train": dataset}).save_to_disk(root / "dataset")
    return {
        "files": SourceConfig(images=str(root / "files")),
        "shards": SourceConfig(images=str(root / "{000..001}.tar")),
        "dataset": SourceConfig(images=str(root / "dataset")),
    }


def crops_of(source: SourceConfig) -> TrainingCrops:
    options = CropOptions(DataConfig(train=(source,), resolution=32), ((load_degradation("light"), 1.0),))
    return TrainingCrops(find_training_images([source], None, 32, "skip"), options, seed=3)


@pytest.mark.parametrize("kind", ["shards", "dataset"])
def test_shards_and_data_sets_give_the_samples_of_their_files(stored: dict[str, SourceConfig], kind: str) -> None:
    expected, crops = crops_of(stored["files"]), crops_of(stored[kind])
    batches = load_batches(crops, number_batches(2, 0, 0, 1), 1, CPU)
    for start in range(0, 6, 2):
        batch = next(batches)
        for place, number in enumerate((start, start + 1)):
            assert torch.equal(batch.lq[place], expected[number][1])
            assert torch.equal(batch.hq[place], expected[number][2])


def test_a_corrupt_member_is_replaced_and_remembered_after_a_resume(
    world: Path, stored: dict[str, SourceConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omgsr_cli.training.loop._BROKEN_SHARE", 1.0)
    content = Path(stored["shards"].images).with_name("000.tar").read_bytes()
    with tarfile.open(fileobj=BytesIO(content)) as tar:
        place = tar.getmembers()[0].offset_data
    # Its header can be read, and its pixels cannot.
    (tmp_path / "0.tar").write_bytes(content[: place + 200] + bytes(200) + content[place + 400 :])
    tables = settings(
        world,
        tmp_path / "run",
        data={"train": str(tmp_path / "0.tar")},
        loss={"gan": 0.0, "dv3cd": 0.0},
        train={"steps": 2},
    )
    assert run_here(tables)[0].broken == 1
    tables["train"]["steps"] = 3
    assert run_here(tables, "auto")[0].broken == 1
    state = json.loads((tmp_path / "run" / "step-00000003" / "state.json").read_text())
    assert [name.partition("0.tar: ")[2] for name in state["broken"]] == ["train/0.png"]


def test_weights_are_relative_and_exact() -> None:
    def image(weight: float, side: int = 32) -> sources.TrainingImage:
        return sources.TrainingImage(Path(str(weight)), None, side, side, weight=weight)

    assert plan_epoch([image(1), image(1, 96)], 32) == (0, 1, 1, 1)
    assert plan_epoch([image(0.5), image(0.5, 96)], 32) == (0, 1, 1, 1)
    assert Counter(plan_epoch([image(1, 64), image(0.1, 96), image(0.35)], 32)) == {0: 40, 1: 6, 2: 7}
    assert Counter(plan_epoch([image(2, 96), image(1)], 32, by_area=False)) == {0: 2, 1: 1}


def test_first_images_and_whole_images_of_a_source(tmp_path: Path) -> None:
    for number in range(12):
        pixels = np.full((96, 128, 3), number, np.uint8)
        (tmp_path / "faces").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{number:05}.png")
    write_images(tmp_path / "photos", 2)
    faces = SourceConfig(images=str(tmp_path / "faces"), first=10, resize=48, weight=0.5)
    found = find_training_images([str(tmp_path / "photos"), faces], None, 48, "skip")
    assert [image.hq.name for image in found[2:]] == [f"{number:05}.png" for number in range(10)]  # type: ignore[union-attr]
    assert {(image.height, image.width, image.weight) for image in found[2:]} == {(48, 64, 0.5)}
    assert read_pixels(found[2].hq, tmp_path / "cache", found[2].resize_px).shape == (48, 64, 3)
    assert read_pixels(found[2].hq, tmp_path / "cache").shape == (96, 128, 3)
    # A crop of the whole height.
    crop = TrainingCrops(found[2:3], CropOptions(DataConfig(train=(faces,), resolution=48), ()), 0)[0]
    assert crop[2].shape == (3, 48, 48)


def test_sizes_are_remembered_between_runs_and_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_SETTLED_NS", -1)
    folder, probed = write_images(tmp_path / "hq", 4), list[object]()
    probe = sources.probe_image

    def counted(*arguments: object) -> object:
        probed.append(arguments)
        return probe(*arguments)  # type: ignore[arg-type]  # as they come

    monkeypatch.setattr(sources, "probe_image", counted)
    first = find_training_images([str(folder)], None, 32, "skip")
    assert len(probed) == 4
    assert find_training_images([str(folder)], None, 32, "skip") == first
    assert len(probed) == 4
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(folder / "0.png")
    assert find_training_images([str(folder)], None, 32, "skip")[0].height == 50
    assert len(probed) == 5


def test_a_source_is_written_as_it_was_and_its_errors_name_its_keys(tmp_path: Path) -> None:
    text = '[model]\npreset = "omgsr-s-512"\n[data]\ntrain = ["photos", { images = "ffhq", weight = 0.5, first = 9 }]'
    config = TrainConfig.model_validate(parse_table(text, "it"))
    assert config.data.train == (SourceConfig(images="photos"), SourceConfig(images="ffhq", weight=0.5, first=9))
    again = TrainConfig.model_validate(parse_table(format_config(config), "it"))
    assert again == config
    assert 'train = ["photos", {' in format_config(config)
    with pytest.raises(ConfigError, match=r"^data\.train\.1\.frist: .*first") as caught:
        check_config(parse_table(text.replace("first", "frist"), "it"))
    assert len(caught.value.problems) == 1
    with pytest.raises(ValidationError, match="resize"):
        DataConfig.model_validate({"train": {"images": "hq", "resize": 64}, "train_lq": "lq"})
    table = parse_table(text, "it") | {"model": {"preset": "omgsr-s-512", "mid_timestep": "auto"}}
    with pytest.raises(ConfigError) as caught:
        check_files(check_config(table))
    assert sum(line.startswith("model.mid_timestep") for line in caught.value.problems) == 1


def test_sources_that_cannot_be_opened_are_one_line(
    stored: dict[str, SourceConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.tar").write_bytes(b"no archive" * 60)
    dataset = stored["dataset"]
    for source, named in (
        (SourceConfig(images=str(tmp_path / "bad.tar")), "bad.tar"),
        (SourceConfig(images=str(tmp_path / "{00..02}.tar")), "00.tar"),
        (dataset.model_copy(update={"split": "test"}), "test"),
        (dataset.model_copy(update={"column": "name"}), "photo"),
    ):
        with pytest.raises((FileError, UsageError)) as caught:
            find_training_images([source], None, 32, "skip")
        assert named in f"{caught.value.message} {caught.value.hint}"
        assert "\n" not in caught.value.message
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="datasets") as missing:
        check_source(SourceConfig(images="hf://datasets/someone/photos"))
    assert "data" in str(missing.value.hint)
