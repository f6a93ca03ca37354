"""Restore and upscale real photographs with one step of a diffusion model.

from PIL import Image
from omgsr_cli import load, upscale_image

model = load()
upscale_image(model, Image.open("in.jpg"), scale=4).save("out.png")

Every error that a caller can cause is an `OmgsrError`. The library prints nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omgsr_cli.errors import OmgsrError

if TYPE_CHECKING:
    from omgsr_cli.library import find_mid_timestep, load, run_bench, upscale_folder, upscale_image

__version__ = "0.2.0"
__all__ = ["OmgsrError", "__version__", "find_mid_timestep", "load", "run_bench", "upscale_folder", "upscale_image"]


def __getattr__(name: str) -> object:
    """Import a function of the library on first use, because the command line's help must not wait for torch."""
    if name in __all__:
        from omgsr_cli import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
