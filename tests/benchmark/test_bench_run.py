"""Pairs of images, the order of models, and what is computed only once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import draw, size_of
from PIL import Image
from torch import Tensor

from omgsr_cli.benchmark.cases import Case, bundled_cases, bundled_folder, find_cases, fit_to_reference
from omgsr_cli.benchmark.metrics import METRICS, choose_metrics
from omgsr_cli.benchmark.models import Model, resampling_model, speed_of, time_call, unique_names
from omgsr_cli.benchmark.results import ModelInfo, Report, files_identity
from omgsr_cli.benchmark.runner import Plan, run_plan
from omgsr_cli.benchmark.scoring import make_metrics
from omgsr_cli.errors import FileError, OmgsrError, UsageError
from omgsr_cli.geometry import Size
from omgsr_cli.options import BenchOptions

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, (width, height) in {"b10": (7, 5), "b9": (8, 6)}.items():
        draw(tmp_path / "set" / "test_LR" / f"{name}.png", width, height)
        draw(tmp_path / "set" / "test_HR" / f"{name}.jpg", width * 4, height * 4)
    return tmp_path / "set"


def test_common_folder_layouts_are_found(data: Path) -> None:
    cases = find_cases(data, None, {}, 4).cases
    assert [case.name for case in cases] == ["b9", "b10"]
    assert cases[0].input == data / "test_LR" / "b9.png"
    assert cases[0].reference == data / "test_HR" / "b9.jpg"
    assert cases[0].output_px == (24, 32)


def test_a_plain_folder_has_no_references(data: Path) -> None:
    (case, _) = find_cases(data / "test_LR", None, {}, 3).cases
    assert (case.reference, case.output_px) == (None, (18, 24))


def test_restored_images_need_no_inputs(data: Path) -> None:
    (case, _) = find_cases(None, data, {"theirs": data / "test_HR"}, 4).cases
    assert (case.input, case.given["theirs"].name, case.output_px) == (None, "b9.jpg", (24, 32))


def test_images_without_a_partner_are_listed(data: Path) -> None:
    draw(data / "test_LR" / "alone.png")
    with pytest.raises(UsageError, match=r"alone\.png"):
        find_cases(data, None, {}, 4)


def test_a_pair_of_other_sizes_fails_alone(data: Path) -> None:
    draw(data / "test_HR" / "b9.jpg", 32, 32)
    (data / "theirs").mkdir()
    draw(data / "theirs" / "b9.png", 32, 32)
    draw(data / "theirs" / "b10.png", 27, 20)
    found = find_cases(data, None, {"theirs": data / "theirs"}, 4)
    first, second = found.cases
    # The input of b9 has other proportions than its reference, which their image fits.
    assert (first.name, first.input, first.reference, list(first.given)) == (
        "b9",
        None,
        data / "test_HR" / "b9.jpg",
        ["theirs"],
    )
    assert (second.input, list(second.given), list(second.errors)) == (data / "test_LR" / "b10.png", [], ["theirs"])
    assert [failure.name for failure in found.failures] == ["b9", "theirs on b10"]
    assert "27x20" in found.failures[1].message


def test_files_that_cannot_be_read_fail_alone(data: Path) -> None:
    (data / "test_LR" / "b9.png").write_bytes(b"no image")
    (data / "test_HR" / "b10.jpg").write_bytes(b"no image")
    found = find_cases(data, None, {}, 4)
    (case,) = found.cases
    assert (case.name, case.reference, case.output_px) == ("b10", None, (20, 28))
    assert [failure.name for failure in found.failures] == ["input of b9", "reference of b10"]
    (data / "test_LR" / "b10.png").write_bytes(b"no image")
    with pytest.raises(OmgsrError, match="no image can be used"):
        find_cases(data, None, {}, 4)


def test_references_are_cropped_to_a_multiple_of_the_scale() -> None:
    for low, high, scale, restored in (
        # Width x height, as published: x4 of Set14 and B100, x3, x2, and a set that was made by rounding up.
        ((30, 23), (121, 93), None, (120, 92)),
        ((80, 120), (321, 481), None, (320, 480)),
        ((107, 160), (321, 481), None, (321, 480)),
        ((160, 240), (321, 481), None, (320, 480)),
        ((31, 24), (121, 93), None, (124, 96)),
        ((7, 5), (29, 21), None, (28, 20)),
        # A factor that was named counts first where both fit.
        ((3, 3), (14, 14), 5, (15, 15)),
        ((3, 3), (14, 14), None, (12, 12)),
        # No whole factor: the reference's own size.
        ((100, 150), (250, 375), None, (250, 375)),
        ((10, 10), (10, 10), None, (10, 10)),
        ((20, 20), (10, 10), None, (10, 10)),
        ((7, 5), (28, 26), None, None),
        ((8, 8), (9, 8), None, (8, 8)),
        ((8, 8), (10, 8), None, None),
    ):
        fit = fit_to_reference(Size(*low[::-1]), Size(*high[::-1]), scale)
        assert fit == (restored and Size(*restored[::-1])), (low, high)


def test_cropped_references_score_as_if_they_were_multiples(tmp_path: Path) -> None:
    """The published protocol by hand: crop, bicubic, PSNR; nothing is stretched."""
    pixels = np.random.default_rng(0).integers(0, 256, (93, 121, 3)).astype(np.uint8)
    folders = [tmp_path / name for name in ("set/LR", "set/HR", "cut/LR", "cut/HR")]
    for folder in folders:
        folder.mkdir(parents=True)
    whole = Image.fromarray(pixels)
    cut = whole.crop((0, 0, 120, 92))
    for image, high, low in ((whole, folders[1], folders[0]), (cut, folders[3], folders[2])):
        image.save(high / "a.png")
        cut.resize((30, 23), Image.Resampling.BICUBIC).save(low / "a.png")
    models = [resampling_model("bicubic")]
    found = find_cases(tmp_path / "set", None, {})
    assert "121x93 to 120x92" in found.notes[0]
    assert found.cases[0].compared_px == (92, 120)
    reports = [
        run(find_cases(tmp_path / name, None, {}).cases, models, tmp_path / "cache", "psnr,ssim")
        for name in ("set", "cut")
    ]
    for metric in ("psnr", "ssim"):
        first, second = (report.scores("bicubic", metric) for report in reports)
        assert first == second != ()
    assert size_of(reports[0].images[0].restored["bicubic"]) == (120, 92)


@pytest.mark.parametrize(
    ("size", "fits"), [((121, 93), True), ((120, 92), True), ((120, 93), True), ((119, 92), False)]
)
def test_published_results_may_be_cropped_or_whole(tmp_path: Path, size: tuple[int, int], fits: bool) -> None:
    draw(tmp_path / "hr" / "a.png", 121, 93)
    draw(tmp_path / "hr" / "b.png", 40, 40)
    draw(tmp_path / "sr" / "a.png", *size)
    draw(tmp_path / "sr" / "b.png", 40, 40)
    found = find_cases(None, tmp_path / "hr", {"sr": tmp_path / "sr"})
    assert [case.name for case in found.cases] == (["a", "b"] if fits else ["b"])
    assert len(found.failures) == (not fits)
    if fits:
        assert found.cases[0].compared_px == size[::-1]
    # With the scale named, only that crop is one.
    by_name = find_cases(None, tmp_path / "hr", {"sr": tmp_path / "sr"}, 3)
    assert len(by_name.failures) == (size not in ((121, 93), (120, 93)))


def test_the_bundled_images_are_small_and_have_their_licences() -> None:
    cases = bundled_cases(4).cases
    assert {case.reference is None for case in cases} == {True, False}
    files = [path for path in bundled_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2 << 20
    licences = (bundled_folder() / "LICENSES.md").read_text("utf-8")
    for path in files:
        assert path.suffix == ".md" or f"`{path.parent.name}/{path.name}`" in licences


@dataclass
class LoadedModel:
    """A model that writes down what it does."""

    name: str
    log: list[str]
    value: float = 0.5
    fails_on_width: int | None = None
    failure: Exception = field(default_factory=lambda: FileError("too dark to see", "turn the light on"))
    device: torch.device = field(default_factory=lambda: CPU)
    precision: str = "fp32"

    def __call__(self, image: Tensor, output: Size) -> Tensor:
        self.log.append(f"{self.name} {image.shape[-1]}")
        if image.shape[-1] == self.fails_on_width:
            raise self.failure
        return torch.full((3, *output), self.value)


def build_model(name: str, log: list[str], **options: object) -> Model:
    def load(device: str | None) -> LoadedModel:
        log.append(f"load {name}")
        return LoadedModel(name, log, **options)  # type: ignore[arg-type] # fields of it

    return Model(ModelInfo(name, "omgsr", 4, None, f"identity of {name} {options}"), load)


def run(
    cases: Sequence[Case],
    models: Sequence[Model],
    folder: Path,
    metrics: str = "psnr",
    repeat: int | None = None,
    ready: Any = None,
) -> Report:
    asked = choose_metrics(metrics.split(","))
    plan = Plan(
        cases=cases,
        models=models,
        asked=asked,
        ready=make_metrics(asked, BenchOptions(device="cpu"))[0] if ready is None else ready,
        options=BenchOptions(device="cpu", cache=folder, repeat=repeat),
    )
    steps: list[int] = []
    report = run_plan(plan, on_finish=lambda: steps.append(1))
    assert len(steps) == len(cases)
    return report


def test_models_take_turns_after_a_warm_up(data: Path, tmp_path: Path) -> None:
    log: list[str] = []
    report = run(
        find_cases(data, None, {}, 4).cases,
        [build_model("a", log), build_model("b", log)],
        tmp_path / "cache",
        repeat=2,
    )
    assert log == ["load a", "a 8", "load b", "b 8", *["a 8", "b 8"] * 2, *["a 7", "b 7"] * 2]
    assert [(speed.model, speed.runs) for speed in report.speeds] == [("a", 4), ("b", 4)]
    assert report.speeds[0].peak_process_mib > 10
    assert {size_of(image.restored["a"]) for image in report.images} == {(32, 24), (28, 20)}


def test_nothing_is_restored_twice(data: Path, tmp_path: Path) -> None:
    log: list[str] = []
    cases = find_cases(data, None, {}, 4).cases
    first = run(cases, [build_model("a", log)], tmp_path / "cache")
    log.clear()
    again = run(cases, [build_model("a", log)], tmp_path / "cache", "psnr,ssim")
    assert log == []
    # What the first run measured is shown, and that it did.
    (kept,), (measured,) = again.speeds, first.speeds
    assert (kept.runs, kept.kept_runs, measured.kept_runs) == (2, 2, 0)
    assert kept.per_image_s == measured.per_image_s
    assert again.images[0].seconds == first.images[0].seconds
    assert again.scores("a", "psnr") == first.scores("a", "psnr")
    assert again.summary("a", "ssim").count == 2
    # Other weights, and another input, are another matter.
    run(cases, [build_model("a", log, value=0.25)], tmp_path / "cache")
    assert log == ["load a", "a 8", "a 8", "a 7"]
    log.clear()
    Image.new("RGB", (8, 6), "red").save(data / "test_LR" / "b9.png")
    half = run(cases, [build_model("a", log)], tmp_path / "cache")
    assert log == ["load a", "a 8", "a 8"]
    assert (half.speeds[0].runs, half.speeds[0].kept_runs) == (2, 1)


def test_an_image_that_a_model_fails_on_is_reported_and_the_others_finish(data: Path, tmp_path: Path) -> None:
    log: list[str] = []
    models = [build_model("a", log), build_model("b", log, fails_on_width=8)]
    report = run(find_cases(data, None, {}, 4).cases, models, tmp_path / "cache", repeat=2)
    assert report.images[0].error == {"b": "too dark to see"}
    assert report.images[0].scores["b"] == {"psnr": None}
    assert "b" not in report.images[0].restored
    assert [(each.name, each.message) for each in report.failures] == [("b on b9", "too dark to see")]
    assert (report.summary("a", "psnr").count, report.summary("b", "psnr").count) == (2, 1)
    assert report.differences[0].count == 1


def test_models_are_loaded_on_the_requested_device(data: Path, tmp_path: Path) -> None:
    asked: list[str | None] = []

    def load(device: str | None) -> LoadedModel:
        asked.append(device)
        return LoadedModel("a", [])

    plan = Plan(
        cases=find_cases(data, None, {}, 4).cases,
        models=[Model(ModelInfo("a", "omgsr", 4, None, "a"), load)],
        asked=(),
        ready=(),
        options=BenchOptions(device="cpu", cache=tmp_path / "cache"),
    )
    run_plan(plan)
    assert asked == ["cpu"]


def test_an_input_that_vanishes_meanwhile_fails_alone(data: Path, tmp_path: Path) -> None:
    cases = find_cases(data, None, {}, 4).cases
    (data / "test_LR" / "b9.png").unlink()
    (data / "test_HR" / "b10.jpg").unlink()
    report = run(cases, [build_model("a", [])], tmp_path / "cache")
    assert list(report.images[0].error) == ["a"]
    assert list(report.images[1].restored) == ["a"]
    assert [each.name for each in report.failures] == ["input of b9", "psnr"]
    assert report.summary("a", "psnr").count == 0


def test_a_model_that_does_not_fit_does_not_stop_the_others(data: Path, tmp_path: Path) -> None:
    short = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def load(device: str | None) -> LoadedModel:
        raise short

    log: list[str] = []
    large = Model(ModelInfo("large", "omgsr", 4, None, "large"), load)
    models = [build_model("a", log), build_model("b", log, fails_on_width=8, failure=short), large]
    report = run(find_cases(data, None, {}, 4).cases, models, tmp_path / "cache")
    assert [each.name for each in report.failures] == ["large", "b on b9"]
    errors = report.images[0].error
    assert set(errors) == {"b", "large"}
    assert all("memory" in text for text in errors.values())
    assert "32x24" in errors["b"]
    assert [report.summary(name, "psnr").count for name in ("a", "b", "large")] == [2, 1, 0]


def test_other_runtime_errors_are_raised(data: Path, tmp_path: Path) -> None:
    models = [build_model("b", [], fails_on_width=7, failure=RuntimeError("a bug"))]
    with pytest.raises(RuntimeError, match="a bug"):
        run(find_cases(data, None, {}, 4).cases, models, tmp_path / "cache")


class SetScorer:
    """Counts how often it is asked."""

    asked, info, depends_on = 0, METRICS["fid"].info, "fid"

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        raise AssertionError

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        self.asked += 1
        return 10.0 * len(restored)


def test_sets_are_scored_together_and_once(data: Path, tmp_path: Path) -> None:
    scorer = SetScorer()
    ready: list[Any] = [scorer]
    cases, models = find_cases(data, None, {}, 4).cases, [build_model("a", [])]
    for _ in range(2):
        report = run(cases, models, tmp_path / "cache", "fid", ready=ready)
        assert (report.summary("a", "fid").mean, report.summary("a", "fid").count) == (20.0, 2)
    assert scorer.asked == 1
    (alone,) = run(cases[:1], models, tmp_path / "cache", "fid", ready=ready).failures
    assert alone.name == "fid"


def loaded(model: Model) -> Any:
    assert model.load is not None
    return model.load("cpu")


def test_sets_are_cropped_like_single_images(tmp_path: Path) -> None:
    class Sizes(SetScorer):
        def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
            assert {size_of(path) for path in [*restored, *references]} == {(8, 8), (12, 8)}
            return float(len(references))

    for name, (width, height) in {"a": (9, 10), "b": (12, 8)}.items():
        draw(tmp_path / "set" / "HR" / f"{name}.png", width, height)
        draw(tmp_path / "set" / "LR" / f"{name}.png", width // 4, height // 4)
    ready: list[Any] = [Sizes()]
    report = run(
        find_cases(tmp_path / "set", None, {}).cases, [build_model("a", [])], tmp_path / "cache", "fid", ready=ready
    )
    assert report.failures == ()
    assert report.summary("a", "fid").mean == 2.0


def test_resampling_equals_pillow() -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    enlarger = loaded(resampling_model("lanczos"))
    found = enlarger(image, Size(11, 15))
    levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    wanted = torch.tensor(list(Image.fromarray(levels).resize((15, 11), Image.Resampling.LANCZOS).tobytes()))
    assert torch.equal((found * 255).round().permute(1, 2, 0).flatten().long(), wanted)


def test_names_tell_models_apart() -> None:
    assert unique_names(["x", "y", "x", "x"]) == ["x", "y", "x 2", "x 3"]


def test_a_call_is_timed_with_its_memory() -> None:
    result, timing = time_call(LoadedModel("a", []), torch.zeros(3, 2, 2), Size(1000, 2000), 0.5)
    assert (result.shape, timing.device, timing.device_mib) == ((3, 1000, 2000), "cpu", None)
    speed = speed_of("a", [timing, timing])
    assert speed is not None
    assert (speed.runs, speed.load_s) == (2, 0.5)
    assert speed.per_megapixel_s.median == pytest.approx(speed.per_image_s.median / 2)
    assert speed.peak_process_mib > 10
    assert speed_of("a", []) is None


def test_a_models_identity_is_all_of_its_content_and_the_programs_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x4.pth"
    data = bytearray(300_000)
    path.write_bytes(data)
    identities = [files_identity(path)]
    # In the middle, with the same size and the same modification time.
    data[150_000] = 1
    state = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    identities.append(files_identity(path))
    monkeypatch.setattr("omgsr_cli.benchmark.results.__version__", "changed")
    identities.append(files_identity(path))
    assert len(set(identities)) == 3
