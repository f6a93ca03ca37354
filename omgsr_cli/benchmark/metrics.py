"""The metrics that are known by name: what each means, and which files of weights it needs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from omgsr_cli.benchmark.results import MetricInfo, MetricKind
from omgsr_cli.errors import UsageError

#: Where a file of weights is kept: below torch's hub folder, or in the hub's own cache by its repository.
Place = Literal["pyiqa", "clip", "checkpoints", "hub"]

CORE = ("psnr", "ssim")
PAPER = ("psnr", "ssim", "lpips", "dists", "clipiqa", "niqe", "musiq", "maniqa-pipal", "fid")
DEFAULT = ("psnr", "ssim", "musiq", "clipiqa")
_GROUPS = {"paper": PAPER, "default": DEFAULT}

_COLOR_NAMES = {"ycbcr": "Y of YCbCr", "yiq": "Y of YIQ", "rgb": "R, G and B"}


@dataclass(frozen=True)
class Weights:
    """A file that a metric reads: its name, or of the hub's cache its repository, and where it is kept."""

    place: Place
    name: str


@dataclass(frozen=True)
class KnownMetric:
    """A metric that can be asked for.

    Attributes:
        info: what its scores mean.
        weights: the files that it reads.
        summary: for a list of metrics.
    """

    info: MetricInfo
    weights: tuple[Weights, ...]
    summary: str


_CLIP_RN50 = Weights("clip", "RN50.pt")
_VIT = Weights("hub", "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k")


def _metric(
    name: str, kind: MetricKind, direction: Literal["up", "down"], score_range: str, summary: str, *weights: Weights
) -> KnownMetric:
    info = MetricInfo(name, kind, direction == "down", score_range)
    return KnownMetric(info, weights, summary)


def _pyiqa(name: str) -> Weights:
    return Weights("pyiqa", name)


METRICS: dict[str, KnownMetric] = {
    metric.info.name: metric
    for metric in (
        KnownMetric(
            MetricInfo("psnr", "full-reference", False, "0, 80", "dB", "omgsr"), (), "peak signal-to-noise ratio"
        ),
        KnownMetric(MetricInfo("ssim", "full-reference", False, "0, 1", "", "omgsr"), (), "structural similarity"),
        _metric(
            "lpips",
            "full-reference",
            "down",
            "0, 1",
            "distance between AlexNet's features",
            _pyiqa("LPIPS_v0.1_alex-df73285e.pth"),
            Weights("checkpoints", "alexnet-owt-7be5be79.pth"),
        ),
        _metric(
            "dists",
            "full-reference",
            "down",
            "0, 1",
            "structure and texture of VGG's features",
            _pyiqa("DISTS_weights-f5e65c96.pth"),
            Weights("checkpoints", "vgg16-397923af.pth"),
        ),
        _metric(
            "fid",
            "set",
            "down",
            "0, ~",
            "distance between two sets in Inception's features",
            _pyiqa("pt_inception-2015-12-05-6726825d.pth"),
        ),
        _metric(
            "musiq",
            "no-reference",
            "up",
            "~0, ~100",
            "multi-scale transformer, KonIQ-10k",
            _pyiqa("musiq_koniq_ckpt-e95806b9.pth"),
        ),
        _metric("clipiqa", "no-reference", "up", "0, 1", "CLIP between good and bad", _CLIP_RN50),
        _metric(
            "clipiqa+",
            "no-reference",
            "up",
            "0, 1",
            "CLIP with learned prompts",
            _CLIP_RN50,
            _pyiqa("CLIP-IQA+_learned_prompts-603f3273.pth"),
        ),
        _metric(
            "maniqa", "no-reference", "up", "~0, ~1", "attention on ViT, KonIQ-10k", _pyiqa("ckpt_koniq10k.pt"), _VIT
        ),
        _metric(
            "maniqa-pipal",
            "no-reference",
            "up",
            "~0, ~1",
            "attention on ViT, PIPAL; papers' MANIQA",
            _pyiqa("MANIQA_PIPAL-ae6d356b.pth"),
            _VIT,
        ),
        _metric(
            "liqe",
            "no-reference",
            "up",
            "1, 5",
            "CLIP over scenes and distortions, KonIQ-10k",
            _pyiqa("liqe_koniq.pt"),
            Weights("clip", "ViT-B-32.pt"),
        ),
        _metric(
            "topiq_nr",
            "no-reference",
            "up",
            "~0, ~1",
            "top-down attention on ResNet-50, KonIQ-10k",
            _pyiqa("cfanet_nr_koniq_res50-9a73138b.pth"),
            Weights("hub", "timm/resnet50.a1_in1k"),
        ),
        _metric(
            "niqe",
            "no-reference",
            "down",
            "~0, ~100",
            "distance from natural scenes' statistics",
            _pyiqa("niqe_modelparameters.mat"),
        ),
        _metric(
            "brisque",
            "no-reference",
            "down",
            "~0, ~150",
            "regression on natural scenes' statistics",
            _pyiqa("brisque_svm_weights.pth"),
        ),
        _metric("piqe", "no-reference", "down", "0, 100", "blocks' distortions, needs no weights"),
    )
}


def choose_metrics(names: Iterable[str]) -> tuple[KnownMetric, ...]:
    """Look metrics up by name, each once, in the order named; "paper" and "default" stand for several.

    Raises:
        UsageError: there is none of that name; the hint has the nearest.
    """
    chosen: dict[str, KnownMetric] = {}
    for name in names:
        for each in _GROUPS.get(name, (name,)):
            if each not in METRICS:
                known = [*METRICS, *_GROUPS]
                near = difflib.get_close_matches(each, known, 1)
                hint = f"did you mean {near[0]}?" if near else "omgsr bench --list-metrics shows all"
                raise UsageError(f"no metric is called {each!r}", hint)
            chosen[each] = METRICS[each]
    if not chosen:
        raise UsageError("--metrics names no metric", "try --metrics psnr,ssim")
    return tuple(chosen.values())


def needs_references(metric: MetricInfo) -> bool:
    """Whether a metric compares with reference pictures."""
    return metric.kind != "no-reference"


def core_settings(color_space: str, crop_border_px: int) -> str:
    """What the scores of psnr and ssim depend on, for people."""
    border = f"{crop_border_px} px of border cropped" if crop_border_px else "no border cropped"
    return f"{_COLOR_NAMES[color_space]}, {border}"
