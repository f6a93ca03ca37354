"""These tests are for an environment with pyiqa and spandrel, see .ci/metrics; in any other they are skipped."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

_NEEDED = ("pyiqa", "torchvision", "spandrel")
_missing = [name for name in _NEEDED if find_spec(name) is None]
# Held here: a library's operators go with it.
_operators: list[object] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _missing:
        skip = pytest.mark.skip(
            reason=f"not installed: {', '.join(_missing)}; .ci/metrics makes an environment of them"
        )
        for item in items:
            if "metrics_environment" in item.nodeid:
                item.add_marker(skip)


def pytest_configure() -> None:
    """Give a torchvision that was built for CUDA the two names that it misses beside a CPU torch."""
    if _missing:
        return
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _operators.append(library)
