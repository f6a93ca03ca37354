"""Metrics of other libraries: every known failure is reported, and scores are reproducible."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from omgsr_cli.benchmark import scoring
from omgsr_cli.benchmark.metrics import METRICS, PAPER, choose_metrics, known_metrics
from omgsr_cli.benchmark.results import Cache
from omgsr_cli.benchmark.scoring import MetricError, PyiqaMetric, Scorebook, make_metrics, scoring_failures
from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.imaging import SourceImage, write_image
from omgsr_cli.options import BenchOptions

CPU = torch.device("cpu")
WritePyiqa = Callable[[str], None]

WORKING = """
import torch

print("Loading pretrained model")

class Metric:
    def __init__(self, name):
        self.name = name
    def __call__(self, *images, **options):
        if self.name == "fid":
            from pathlib import Path
            return float(sum(1 for folder in images for _ in Path(folder).iterdir()))
        if self.name == "niqe":
            return torch.tensor(float("nan"))
        if self.name == "brisque":
            raise RuntimeError("needs 96 px\\nand more")
        return images[0].mean() + torch.rand(()) * 1e-3 + len(images)

def create_metric(name, device):
    return Metric(name)
"""


@pytest.fixture
def torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    scoring._hub_answers.cache_clear()
    return tmp_path / "torch" / "hub"


@pytest.fixture
def write_pyiqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_hub: Path) -> Iterator[WritePyiqa]:
    """Put a package called pyiqa in the place of the real one."""

    def write(code: str) -> None:
        (tmp_path / "site" / "pyiqa").mkdir(parents=True)
        (tmp_path / "site" / "pyiqa" / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pyiqa"}
    for name in before:
        del sys.modules[name]
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyiqa"]:
        del sys.modules[name]
    sys.modules.update(before)


def put_weights(torch_hub: Path, name: str, content: bytes = b"\x80\x02 pickled") -> None:
    for weights in METRICS[name].weights or ():
        path = torch_hub / weights
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def failure(name: str) -> tuple[str, str]:
    with pytest.raises(MetricError) as caught:
        PyiqaMetric(METRICS[name], CPU)
    assert "\n" not in caught.value.message + str(caught.value.hint)
    return caught.value.message, caught.value.hint or ""


def test_paper_means_the_metrics_of_papers() -> None:
    assert tuple(known.info.name for known in choose_metrics(["paper", "psnr"])) == PAPER


def test_an_unknown_metric_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        choose_metrics(["muisq"])
    assert "musiq" in str(caught.value.hint)
    with pytest.raises(UsageError):
        choose_metrics([])


TABLE = """
DEFAULT_CONFIGS = {
    "psnr": {"metric_opts": {"type": "PSNR"}, "metric_mode": "FR", "score_range": "~0, ~40"},
    "pieapp": {"metric_opts": {"type": "PieAPP"}, "metric_mode": "FR", "lower_better": True, "score_range": "~0, ~5"},
    "clipiqa+_vitL14_512": {"metric_opts": {"type": "CLIPIQA"}, "metric_mode": "NR", "score_range": "0, 1"},
    "fid_dinov2": {"metric_opts": {"type": "FID"}, "metric_mode": "NR", "lower_better": True, "score_range": "0, ~"},
    "inception_score": {"metric_opts": {"type": "IS"}, "metric_mode": "NR", "lower_better": False},
}
"""


@pytest.fixture
def table(write_pyiqa: WritePyiqa, tmp_path: Path) -> Iterator[None]:
    """A pyiqa with metrics of its own."""
    write_pyiqa(WORKING)
    (tmp_path / "site" / "pyiqa" / "default_model_configs.py").write_text(TABLE)
    known_metrics.cache_clear()
    yield
    known_metrics.cache_clear()


@pytest.mark.usefixtures("table")
def test_every_metric_of_pyiqa_is_found_in_any_case() -> None:
    chosen = choose_metrics(["PieAPP", "CLIPIQA+_vitl14_512", "PSNR", "fid_dinov2", "Inception_Score", "MUSIQ", "psnr"])
    assert [(known.info.name, known.info.kind, known.info.lower_is_better) for known in chosen] == [
        ("pieapp", "full-reference", True),
        ("clipiqa+_vitL14_512", "no-reference", False),
        ("psnr", "full-reference", False),
        ("fid_dinov2", "set", True),
        ("inception_score", "no-reference set", False),
        ("musiq", "no-reference", False),
    ]
    # Ours computes psnr: it follows the papers' protocol, and needs no pyiqa.
    assert chosen[2].info.source == "omgsr"
    assert [known.info.name for known in choose_metrics(["Paper"])] == list(PAPER)
    assert [known.info.needs_references for known in chosen] == [True, False, True, True, False, False]
    with pytest.raises(UsageError) as caught:
        choose_metrics(["pieap"])
    assert "pieapp" in str(caught.value.hint)


@pytest.mark.usefixtures("table")
def test_a_metric_that_only_pyiqa_knows_is_computed() -> None:
    (known,) = choose_metrics(["pieapp"])
    image = torch.full((1, 3, 8, 8), 0.25)
    first, again, other = (PyiqaMetric(known, CPU, seed).score(image, image) for seed in (1, 1, 2))
    assert first == again == pytest.approx(2.25, abs=2e-3)
    # The seed decides what a metric draws.
    assert first != other


def test_weights_that_pyiqa_cannot_fetch_are_reported(write_pyiqa: WritePyiqa, tmp_path: Path) -> None:
    write_pyiqa("import urllib.error\ndef create_metric(name, device): raise urllib.error.URLError('no route')")
    (tmp_path / "site" / "pyiqa" / "default_model_configs.py").write_text(TABLE)
    known_metrics.cache_clear()
    (known,) = choose_metrics(["pieapp"])
    known_metrics.cache_clear()
    with pytest.raises(MetricError, match="no route") as caught:
        PyiqaMetric(known, CPU)
    assert "HF_ENDPOINT" in str(caught.value.hint)


def test_without_pyiqa_its_names_cannot_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    known_metrics.cache_clear()
    with pytest.raises(UsageError) as caught:
        choose_metrics(["pieapp"])
    known_metrics.cache_clear()
    assert "omgsr-cli[metrics]" in str(caught.value.hint)


def test_without_pyiqa_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, torch_hub: Path) -> None:
    monkeypatch.setattr(scoring, "find_spec", lambda name: None)
    message, hint = failure("musiq")
    assert message == "pyiqa is not installed"
    assert "omgsr-cli[metrics]" in hint
    assert f"musiq_koniq_ckpt-e95806b9.pth into {torch_hub / 'pyiqa'}" in hint
    assert "into" not in failure("piqe")[1]


@pytest.mark.parametrize(
    ("code", "said", "to_do"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "does not work with torch", "torchvision"),
        ("raise ModuleNotFoundError('', name='pkg_resources')", "no pkg_resources", "setuptools<82"),
        ("raise ImportError('libGL.so.1: cannot open shared object file')", "libGL", "opencv-python-headless"),
        ("import a_module_that_is_not_there", "a_module_that_is_not_there", "omgsr-cli[metrics]"),
        ("raise ValueError('numpy.dtype size changed\\nmore')", "ValueError: numpy.dtype size changed", ""),
    ],
)
def test_broken_dependencies_are_named(write_pyiqa: WritePyiqa, code: str, said: str, to_do: str) -> None:
    write_pyiqa(code)
    message, hint = failure("piqe")
    assert said in message
    assert to_do in hint


def test_a_mismatched_torchvision_is_named_with_both_versions_and_its_command(
    write_pyiqa: WritePyiqa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"torchvision": "0.20.1", "torch": "2.13.0"}.__getitem__)
    write_pyiqa("raise RuntimeError('operator torchvision::nms does not exist')")
    message, hint = failure("musiq")
    assert "0.20.1" in message
    assert "2.13.0" in message
    assert "torchvision==0.28.0" in hint


def test_unavailable_weights_are_reported_with_their_place(write_pyiqa: WritePyiqa, torch_hub: Path) -> None:
    # The network is cut in tests: were pyiqa asked, it would wait and fail in its own words.
    write_pyiqa("def create_metric(name, device): raise AssertionError('must not be asked')")
    message, hint = failure("lpips")
    assert "not on this machine" in message
    assert f"LPIPS_v0.1_alex-df73285e.pth into {torch_hub / 'pyiqa'}" in hint
    assert f"alexnet-owt-7be5be79.pth into {torch_hub / 'checkpoints'}" in hint
    assert "HF_ENDPOINT" in hint


def test_a_web_page_instead_of_weights_is_reported(write_pyiqa: WritePyiqa, torch_hub: Path) -> None:
    write_pyiqa(WORKING)
    put_weights(torch_hub, "musiq", b"<html>404</html>")
    assert "corrupt" in failure("musiq")[0]


def test_a_metric_that_fails_leaves_the_others(write_pyiqa: WritePyiqa) -> None:
    write_pyiqa(WORKING)
    ready, failures = make_metrics(choose_metrics(["psnr", "musiq", "piqe"]), BenchOptions(device="cpu"))
    assert [metric.info.name for metric in ready] == ["psnr", "piqe"]
    assert [each.name for each in failures] == ["musiq"]


def test_a_score_does_not_depend_on_those_before_it(write_pyiqa: WritePyiqa) -> None:
    write_pyiqa(WORKING)
    metric = PyiqaMetric(METRICS["piqe"], CPU)
    image = torch.full((1, 3, 8, 8), 0.25)
    state = torch.get_rng_state()
    assert metric.score(image, image) == metric.score(image, None) == pytest.approx(1.25, abs=2e-3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_score_of_nan_is_a_failure(write_pyiqa: WritePyiqa, torch_hub: Path) -> None:
    write_pyiqa(WORKING)
    for name, reason in (("niqe", "nan"), ("brisque", "needs 96 px")):
        put_weights(torch_hub, name)
        with pytest.raises(FileError, match=reason):
            PyiqaMetric(METRICS[name], CPU).score(torch.zeros(1, 3, 8, 8), None)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        write_image(SourceImage(torch.full((3, 16, 12), number / 5)), path)
    return paths


def test_a_set_is_scored_as_two_folders(write_pyiqa: WritePyiqa, torch_hub: Path, images: list[Path]) -> None:
    write_pyiqa(WORKING)
    put_weights(torch_hub, "fid")
    assert PyiqaMetric(METRICS["fid"], CPU).score_set(images, images) == 6.0


def test_scores_are_kept_by_content_and_settings(images: list[Path], tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    asked = choose_metrics(["psnr"])
    for space, expected in (("ycbcr", 15.3), ("rgb", 13.98), ("ycbcr", 15.3)):
        ready, _ = make_metrics(asked, BenchOptions(device="cpu", color_space=space))
        assert Scorebook(ready, cache).score(images[1], images[0])["psnr"] == pytest.approx(expected, abs=0.02)
    ready[0].score = None  # type: ignore[assignment, method-assign] # kept scores are not computed again
    book = Scorebook(ready, cache)
    copy = tmp_path / "copy.png"
    copy.write_bytes(images[1].read_bytes())
    assert book.score(copy, images[0])["psnr"] == pytest.approx(15.3, abs=0.02)
    with pytest.raises(TypeError):
        book.score(images[2], images[0])
    cache.close()


def test_a_metric_that_fails_on_images_is_one_line(tmp_path: Path) -> None:
    small = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(small):
        write_image(SourceImage(torch.full((3, 4, 4), number / 5)), path)
    cache = Cache(tmp_path / "cache")
    ready, _ = make_metrics(choose_metrics(["psnr", "ssim"]), BenchOptions(device="cpu"))
    book = Scorebook(ready, cache)
    for path in small:
        scores = book.score(path, small[0])
        assert scores["psnr"] is not None
        assert scores["ssim"] is None
    (told,) = scoring_failures(book.failed)
    assert told.name == "ssim"
    assert f"no score for {small[0]} and 1 more" in told.message
    cache.close()


def test_a_mismatched_torchvision_is_one_failure_for_all_metrics(write_pyiqa: WritePyiqa) -> None:
    write_pyiqa("raise RuntimeError('operator torchvision::nms does not exist')")
    chosen = [METRICS[name] for name in ("psnr", "musiq", "lpips", "niqe")]
    ready, failures = make_metrics(chosen, BenchOptions(device="cpu"))
    assert [metric.info.name for metric in ready] == ["psnr"]
    (failed,) = failures
    assert all(name in failed.name for name in ("musiq", "lpips", "niqe"))
