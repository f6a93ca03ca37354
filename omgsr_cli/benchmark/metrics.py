"""The metrics by name, with their meaning and weight files."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omgsr_cli.benchmark.results import MetricInfo, MetricKind
from omgsr_cli.errors import UsageError
from omgsr_cli.packages import install_command

CORE = ("psnr", "ssim")
PAPER = ("psnr", "ssim", "lpips", "dists", "clipiqa", "niqe", "musiq", "maniqa-pipal", "fid")
DEFAULT = ("psnr", "ssim", "musiq", "clipiqa")
_GROUPS = {"paper": PAPER, "default": DEFAULT}

_COLOR_NAMES = {"ycbcr": "Y of YCbCr", "yiq": "Y of YIQ", "rgb": "R, G and B"}
_FULL: MetricKind = "full-reference"
_NONE: MetricKind = "no-reference"
_UP, _DOWN = False, True


@dataclass(frozen=True)
class KnownMetric:
    """An available metric.

    Attributes:
        info: the meaning of its scores.
        weights: the files that it reads, below torch's hub folder, or "hub:OWNER/NAME" for a repository of the Hugging
            Face hub; None if only pyiqa defines them.
        summary: a short description for the list of metrics.
    """

    info: MetricInfo
    weights: tuple[str, ...] | None
    summary: str


def _metric(name: str, kind: MetricKind, lower: bool, score_range: str, summary: str, *weights: str) -> KnownMetric:
    return KnownMetric(MetricInfo(name, kind, lower, score_range), weights, summary)


_PSNR = MetricInfo("psnr", _FULL, _UP, "0, 80", "dB", "omgsr")
_SSIM = MetricInfo("ssim", _FULL, _UP, "0, 1", "", "omgsr")
_LPIPS = ("pyiqa/LPIPS_v0.1_alex-df73285e.pth", "checkpoints/alexnet-owt-7be5be79.pth")
_DISTS = ("pyiqa/DISTS_weights-f5e65c96.pth", "checkpoints/vgg16-397923af.pth")
_FID = "pyiqa/pt_inception-2015-12-05-6726825d.pth"
_MUSIQ = "pyiqa/musiq_koniq_ckpt-e95806b9.pth"
_RN50 = "clip/RN50.pt"
_PROMPTS = "pyiqa/CLIP-IQA+_learned_prompts-603f3273.pth"
_VIT = "hub:timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
_LIQE = ("pyiqa/liqe_koniq.pt", "clip/ViT-B-32.pt")
_TOPIQ = ("pyiqa/cfanet_nr_koniq_res50-9a73138b.pth", "hub:timm/resnet50.a1_in1k")
_KONIQ, _PIPAL = "pyiqa/ckpt_koniq10k.pt", "pyiqa/MANIQA_PIPAL-ae6d356b.pth"
_NIQE = "pyiqa/niqe_modelparameters.mat"
_BRISQUE = "pyiqa/brisque_svm_weights.pth"

METRICS: dict[str, KnownMetric] = {
    metric.info.name: metric
    for metric in (
        KnownMetric(_PSNR, (), "peak signal-to-noise ratio"),
        KnownMetric(_SSIM, (), "structural similarity"),
        _metric("lpips", _FULL, _DOWN, "0, 1", "distance between AlexNet features", *_LPIPS),
        _metric("dists", _FULL, _DOWN, "0, 1", "structure and texture of VGG features", *_DISTS),
        _metric("fid", "set", _DOWN, "0, ~", "distance between two sets of Inception features", _FID),
        _metric("musiq", _NONE, _UP, "~0, ~100", "multi-scale transformer, KonIQ-10k", _MUSIQ),
        _metric("clipiqa", _NONE, _UP, "0, 1", "CLIP, good against bad", _RN50),
        _metric("clipiqa+", _NONE, _UP, "0, 1", "CLIP with learned prompts", _RN50, _PROMPTS),
        _metric("maniqa", _NONE, _UP, "~0, ~1", "attention on ViT, KonIQ-10k", _KONIQ, _VIT),
        _metric("maniqa-pipal", _NONE, _UP, "~0, ~1", "attention on ViT, PIPAL; called MANIQA in papers", _PIPAL, _VIT),
        _metric("liqe", _NONE, _UP, "1, 5", "CLIP over scenes and distortions, KonIQ-10k", *_LIQE),
        _metric("topiq_nr", _NONE, _UP, "~0, ~1", "top-down attention on ResNet-50, KonIQ-10k", *_TOPIQ),
        _metric("niqe", _NONE, _DOWN, "~0, ~100", "distance from natural scene statistics", _NIQE),
        _metric("brisque", _NONE, _DOWN, "~0, ~150", "regression on natural scene statistics", _BRISQUE),
        _metric("piqe", _NONE, _DOWN, "0, 100", "distortion of blocks, needs no weights"),
    )
}


@cache
def known_metrics() -> Mapping[str, KnownMetric]:
    """Return every available metric by name: the list above, then all others of the installed pyiqa."""
    found = dict(METRICS)
    for name, config in _pyiqa_configs().items():
        kind = _FULL if config.get("metric_mode") == "FR" else _NONE
        kind = "set" if "fid" in name else "no-reference set" if name == "inception_score" else kind
        info = MetricInfo(name, kind, bool(config.get("lower_better")), str(config.get("score_range") or "~, ~"))
        summary = f"pyiqa's {config.get('metric_opts', {}).get('type', name)}"
        found.setdefault(name, KnownMetric(info, None, summary))
    return found


def _pyiqa_configs() -> dict[str, dict[str, Any]]:
    """Read the settings of all pyiqa metrics by name from its table; importing pyiqa takes seconds and may fail."""
    spec = importlib.util.find_spec("pyiqa")
    for folder in (spec and spec.submodule_search_locations) or ():
        place = Path(folder, "default_model_configs.py")
        table = importlib.util.spec_from_file_location("_pyiqa_table", place) if place.is_file() else None
        if table and table.loader:
            module = importlib.util.module_from_spec(table)
            table.loader.exec_module(module)
            configs: dict[str, dict[str, Any]] = dict(module.DEFAULT_CONFIGS)
            return configs
    return {}


def choose_metrics(names: Iterable[str]) -> tuple[KnownMetric, ...]:
    """Look up metrics by name, ignoring case, each once, in the given order; "paper" and "default" are groups.

    Raises:
        UsageError: no metric has that name; the hint shows the nearest name.
    """
    chosen: dict[str, KnownMetric] = {}
    known = {name.casefold(): metric for name, metric in METRICS.items()}
    for name in names:
        for each in _GROUPS.get(name.casefold(), (name,)):
            if each.casefold() not in known:
                known = {name.casefold(): metric for name, metric in known_metrics().items()}
            if each.casefold() not in known:
                raise _unknown(each, known)
            metric = known[each.casefold()]
            chosen[metric.info.name] = metric
    if not chosen:
        raise UsageError("--metrics is empty", "try --metrics psnr,ssim")
    return tuple(chosen.values())


def _unknown(name: str, known: Iterable[str]) -> UsageError:
    near = difflib.get_close_matches(name.casefold(), [*known, *_GROUPS], 1)
    hint = f"did you mean {near[0]}?" if near else "omgsr bench --list-metrics shows all"
    if importlib.util.find_spec("pyiqa") is None:
        hint += f" (pyiqa, which is not installed, adds more: {install_command('metrics')})"
    return UsageError(f"no metric is called {name!r}", hint)


def core_settings(color_space: str, crop_border_px: int) -> str:
    """Return the settings of psnr and ssim as readable text."""
    border = f"{crop_border_px} px of border cropped" if crop_border_px else "no border cropped"
    return f"{_COLOR_NAMES[color_space]}, {border}"
