"""Networks of other projects: single files whose architecture spandrel knows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.libraries import explain_broken_torchvision
from omgsr_cli.packages import install_command


def read_foreign_network(path: Path) -> Any:
    """Read a network that makes a larger colour picture of one.

    Args:
        path: of its weights; spandrel reads pickles without running what they contain.
    Returns:
        spandrel's ImageModelDescriptor, on the CPU: (B, 3, H, W) in [0, 1] to `scale` times that size.
    Raises:
        ModelError: spandrel is missing or does not know the file, or it is another kind of network.
    """
    try:
        spandrel = importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:
        missing = getattr(error, "name", None)
        if missing in ("spandrel", "torchvision"):
            message = f"{path.name}: {missing} is not installed, which reads such files"
            raise ModelError(message, install_command("compare")) from error
        explanation = explain_broken_torchvision(error)
        if explanation is None:
            message = f"{path.name}: spandrel cannot be imported: {error}"
            raise ModelError(message, install_command("compare")) from error
        raise ModelError(explanation.message, explanation.hint) from error
    try:
        found = spandrel.ModelLoader("cpu").load_from_file(path)
    except (spandrel.UnsupportedModelError, RuntimeError, ValueError, KeyError, EOFError, OSError) as error:
        reason = reason_of(error)
        raise ModelError(
            f"{path}: spandrel does not know this file: {reason}", "give a super-resolution model"
        ) from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.input_channels != 3 or found.output_channels != 3:
        raise ModelError(f"{path}: this {found.architecture.name} does not make a colour picture of one", None)
    return found
