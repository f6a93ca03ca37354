"""What the program can do, from Python: an image or a folder in, and the same kind out; a report; a number."""

from omgsr_cli.benchmark.plan import run_bench
from omgsr_cli.library.folders import upscale_folder
from omgsr_cli.library.images import upscale_image
from omgsr_cli.models.loading import load_restorer as load
from omgsr_cli.timesteps.find import find_mid_timestep

__all__ = ["find_mid_timestep", "load", "run_bench", "upscale_folder", "upscale_image"]
