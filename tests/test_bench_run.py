"""Which pictures belong together, in which order models run, and what is done only once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from command_line import draw, size_of
from PIL import Image
from torch import Tensor

from omgsr_cli.benchmark.cache import Cache, files_identity
from omgsr_cli.benchmark.cases import Case, find_cases, shipped_cases, shipped_folder
from omgsr_cli.benchmark.contestants import (
    Contestant,
    network_contestant,
    resampling_contestant,
    unique_names,
)
from omgsr_cli.benchmark.metrics import METRICS, choose_metrics
from omgsr_cli.benchmark.results import ModelInfo, Report
from omgsr_cli.benchmark.runner import Plan, run_benchmark
from omgsr_cli.benchmark.scoring import ReadyMetric, make_metrics
from omgsr_cli.benchmark.speed import Stopwatch
from omgsr_cli.errors import FileError, ModelError, OmgsrError, UsageError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import resize

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, (width, height) in {"b10": (7, 5), "b9": (8, 6)}.items():
        draw(tmp_path / "set" / "test_LR" / f"{name}.png", width, height)
        draw(tmp_path / "set" / "test_HR" / f"{name}.jpg", width * 4, height * 4)
    return tmp_path / "set"


def test_the_fields_folders_are_found(data: Path) -> None:
    cases = find_cases(data, None, {}, 4)
    assert [case.name for case in cases] == ["b9", "b10"]
    assert cases[0].input == data / "test_LR" / "b9.png"
    assert cases[0].reference == data / "test_HR" / "b9.jpg"
    assert cases[0].output_px == (24, 32)


def test_a_plain_folder_has_no_references(data: Path) -> None:
    (case, _) = find_cases(data / "test_LR", None, {}, 3)
    assert (case.reference, case.output_px) == (None, (18, 24))


def test_restored_pictures_need_no_inputs(data: Path) -> None:
    (case, _) = find_cases(None, data, {"theirs": data / "test_HR"}, 4)
    assert (case.input, case.given["theirs"].name, case.output_px) == (None, "b9.jpg", (24, 32))


def test_pictures_without_a_partner_are_listed(data: Path) -> None:
    draw(data / "test_LR" / "alone.png")
    with pytest.raises(UsageError, match=r"alone\.png"):
        find_cases(data, None, {}, 4)


def test_pictures_of_another_size_are_listed(data: Path) -> None:
    draw(data / "test_HR" / "b9.jpg", 32, 32)
    with pytest.raises(OmgsrError, match=r"b9 \(8x6 and its reference 32x32\)"):
        find_cases(data, None, {}, 4)
    with pytest.raises(OmgsrError, match=r"b9\.png \(8x6, its reference 32x32\), .*b10\.png"):
        find_cases(None, data, {"theirs": data / "test_LR"}, 4)


@pytest.mark.parametrize(("low", "high", "fits"), [((7, 5), (29, 21), True), ((7, 5), (28, 26), False)])
def test_a_pixel_more_or_less_fits(tmp_path: Path, low: tuple[int, int], high: tuple[int, int], fits: bool) -> None:
    draw(tmp_path / "lr" / "x.png", *low)
    draw(tmp_path / "hr" / "x.png", *high)
    if fits:
        (case,) = find_cases(tmp_path, None, {}, 4)
        assert case.output_px == (high[1], high[0])
    else:
        with pytest.raises(OmgsrError):
            find_cases(tmp_path, None, {}, 4)


def test_the_shipped_pictures_are_small_and_told_of() -> None:
    cases = shipped_cases(4)
    assert {case.reference is None for case in cases} == {True, False}
    files = [path for path in shipped_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2 << 20
    licences = (shipped_folder() / "LICENSES.md").read_text("utf-8")
    for path in files:
        assert path.suffix == ".md" or f"`{path.parent.name}/{path.name}`" in licences


@dataclass
class Enlarger:
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


def contestant(name: str, log: list[str], **options: object) -> Contestant:
    def load() -> Enlarger:
        log.append(f"load {name}")
        return Enlarger(name, log, **options)  # type: ignore[arg-type] # fields of it

    return Contestant(ModelInfo(name, "network", 4, None, f"identity of {name} {options}"), load)


def run(
    cases: Sequence[Case],
    contestants: Sequence[Contestant],
    folder: Path,
    metrics: str = "psnr",
    repeat: int | None = None,
    ready: list[ReadyMetric] | None = None,
) -> Report:
    asked = choose_metrics(metrics.split(","))
    plan = Plan(
        cases=cases,
        contestants=contestants,
        given=[],
        asked=asked,
        ready=make_metrics(asked, device=CPU)[0] if ready is None else ready,
        failures=[],
        repeat=repeat,
        title="t",
        settings={},
    )
    steps = []
    cache = Cache(folder)
    try:
        report = run_benchmark(plan, cache, on_finish=lambda: steps.append(1))
    finally:
        cache.close()
    assert len(steps) == plan.steps
    return report


def test_models_take_turns_after_a_warm_up(data: Path, tmp_path: Path) -> None:
    log: list[str] = []
    report = run(
        find_cases(data, None, {}, 4), [contestant("a", log), contestant("b", log)], tmp_path / "cache", repeat=2
    )
    assert log == ["load a", "a 8", "load b", "b 8", *["a 8", "b 8"] * 2, *["a 7", "b 7"] * 2]
    assert [(speed.model, speed.runs) for speed in report.speeds] == [("a", 4), ("b", 4)]
    assert report.speeds[0].peak_process_mib > 10
    assert {size_of(image.restored["a"]) for image in report.images} == {(32, 24), (28, 20)}


def test_nothing_is_restored_twice(data: Path, tmp_path: Path) -> None:
    log: list[str] = []
    cases = find_cases(data, None, {}, 4)
    first = run(cases, [contestant("a", log)], tmp_path / "cache")
    log.clear()
    again = run(cases, [contestant("a", log)], tmp_path / "cache", "psnr,ssim")
    assert (log, again.speeds) == ([], ())
    assert again.scores("a", "psnr") == first.scores("a", "psnr")
    assert again.summary("a", "ssim").count == 2
    # Other weights, and another input, are another matter.
    run(cases, [contestant("a", log, value=0.25)], tmp_path / "cache")
    assert log == ["load a", "a 8", "a 8", "a 7"]
    log.clear()
    Image.new("RGB", (8, 6), "red").save(data / "test_LR" / "b9.png")
    run(cases, [contestant("a", log)], tmp_path / "cache")
    assert log == ["load a", "a 8", "a 8"]


def test_a_picture_that_a_model_fails_on_is_told_and_the_others_done(data: Path, tmp_path: Path) -> None:
    log: list[str] = []
    models = [contestant("a", log), contestant("b", log, fails_on_width=8)]
    report = run(find_cases(data, None, {}, 4), models, tmp_path / "cache", repeat=2)
    assert report.images[0].error == {"b": "too dark to see"}
    assert report.images[0].scores["b"] == {"psnr": None}
    assert "b" not in report.images[0].restored
    assert [(each.name, each.message) for each in report.failures] == [("b on b9", "too dark to see")]
    assert (report.summary("a", "psnr").count, report.summary("b", "psnr").count) == (2, 1)
    assert report.differences[0].count == 1


@pytest.mark.parametrize(
    "short",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.88 GB)"),
        MemoryError(),
    ],
)
def test_a_model_that_memory_is_too_short_for_leaves_the_others(data: Path, tmp_path: Path, short: Exception) -> None:
    def load() -> Enlarger:
        raise short

    log: list[str] = []
    large = Contestant(ModelInfo("large", "network", 4, None, "large"), load)
    models = [contestant("a", log), contestant("b", log, fails_on_width=8, failure=short), large]
    report = run(find_cases(data, None, {}, 4), models, tmp_path / "cache")
    assert [each.name for each in report.failures] == ["large", "b on b9"]
    assert report.images[0].error == {
        "b": "memory is short for 32x24",
        "large": "memory is short to load it",
    }
    assert [report.summary(name, "psnr").count for name in ("a", "b", "large")] == [2, 1, 0]


def test_what_is_no_lack_of_memory_goes_on_as_the_bug_it_is(data: Path, tmp_path: Path) -> None:
    models = [contestant("b", [], fails_on_width=7, failure=RuntimeError("a bug"))]
    with pytest.raises(RuntimeError, match="a bug"):
        run(find_cases(data, None, {}, 4), models, tmp_path / "cache")


class SetScorer:
    """Counts how often it is asked."""

    asked = 0

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        raise AssertionError

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        self.asked += 1
        return 10.0 * len(restored)


def test_sets_are_scored_together_and_once(data: Path, tmp_path: Path) -> None:
    scorer = SetScorer()
    ready = [ReadyMetric(METRICS["fid"].info, scorer, "fid")]
    cases, models = find_cases(data, None, {}, 4), [contestant("a", [])]
    for _ in range(2):
        report = run(cases, models, tmp_path / "cache", "fid", ready=ready)
        assert (report.summary("a", "fid").mean, report.summary("a", "fid").count) == (20.0, 2)
    assert scorer.asked == 1
    (alone,) = run(cases[:1], models, tmp_path / "cache", "fid", ready=ready).failures
    assert alone.name == "fid"


def test_resampling_is_pillows() -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    enlarger = resampling_contestant("lanczos").load()
    found = enlarger(image, Size(11, 15))
    levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    wanted = torch.tensor(list(Image.fromarray(levels).resize((15, 11), Image.Resampling.LANCZOS).tobytes()))
    assert torch.equal((found * 255).round().permute(1, 2, 0).flatten().long(), wanted)


class FakeNetwork:
    """What spandrel gives for a file: three colours, four times as large."""

    scale = 4
    input_channels = output_channels = 3
    supports_half = supports_bfloat16 = False
    architecture = SimpleNamespace(name="Fake")

    def to(self, *_: object) -> FakeNetwork:
        return self

    def eval(self) -> FakeNetwork:
        return self

    def __call__(self, batch: Tensor) -> Tensor:
        return batch.repeat_interleave(4, 2).repeat_interleave(4, 3) * 1.5


@pytest.fixture
def spandrel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("spandrel")

    class Loader:
        def __init__(self, device: str) -> None:
            pass

        def load_from_file(self, path: Path) -> FakeNetwork:
            if path.read_bytes() != b"network":
                raise module.UnsupportedModelError  # type: ignore[attr-defined] # set below
            return FakeNetwork()

    attributes = {
        "ModelLoader": Loader,
        "ImageModelDescriptor": FakeNetwork,
        "UnsupportedModelError": type("UnsupportedModelError", (Exception,), {}),
    }
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, "spandrel", module)
    return module


@pytest.mark.usefixtures("spandrel")
def test_a_networks_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "x4.safetensors"
    path.write_bytes(b"network")
    made = network_contestant(path, "x4", device="cpu", precision="auto")
    again = network_contestant(path, "x4", device="cpu", precision="fp32")
    assert made.info.identity == again.info.identity
    other = network_contestant(path, "x4", device="cpu", precision="bf16")
    assert made.info.identity != other.info.identity
    enlarger = made.load()
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    whole = enlarger(image, Size(20, 28))
    assert torch.equal(whole[:, ::4, ::4], (image * 1.5).clamp(max=1))
    assert torch.equal(enlarger(image, Size(10, 14)), resize(whole, Size(10, 14), method="lanczos"))


@pytest.mark.usefixtures("spandrel")
def test_a_file_that_spandrel_does_not_know_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x4.pth"
    path.write_bytes(b"something else")
    with pytest.raises(ModelError, match="does not know this file"):
        network_contestant(path, "x4", device="cpu", precision="fp32").load()


def test_spandrel_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    path = tmp_path / "x4.pth"
    path.write_bytes(b"network")
    with pytest.raises(ModelError, match="spandrel is not installed") as caught:
        network_contestant(path, "x4", device="cpu", precision="fp32").load()
    assert "omgsr-cli[compare]" in str(caught.value.hint)


def test_names_tell_models_apart() -> None:
    assert unique_names(["x", "y", "x", "x"]) == ["x", "y", "x 2", "x 3"]


def test_a_stopwatch_keeps_nothing_of_what_failed() -> None:
    watch = Stopwatch(CPU)
    with pytest.raises(ZeroDivisionError):
        watch.time(lambda: 1 / 0, 100)
    assert watch.speed("a", "fp32", 0.5) is None
    assert watch.time(lambda: "done", 2_000_000) == "done"
    speed = watch.speed("a", "fp32", 0.5)
    assert speed is not None
    assert speed.per_megapixel_s.median == pytest.approx(speed.per_image_s.median / 2)
    assert (speed.device, speed.peak_device_mib) == ("cpu", None)


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
    monkeypatch.setattr("omgsr_cli.benchmark.cache.__version__", "mended")
    identities.append(files_identity(path))
    assert len(set(identities)) == 3
