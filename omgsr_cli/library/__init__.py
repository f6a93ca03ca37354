"""The functions of `omgsr_cli`: restore an image or a folder, compare models, find a mid-timestep."""

from omgsr_cli.benchmark import runner
from omgsr_cli.library.arguments import names_arguments
from omgsr_cli.library.folders import upscale_folder
from omgsr_cli.library.images import upscale_image
from omgsr_cli.models import loading
from omgsr_cli.timesteps import find

load = names_arguments(loading.load_restorer, "load")
run_bench = names_arguments(runner.run_bench)
find_mid_timestep = names_arguments(find.find_mid_timestep)

__all__ = ["find_mid_timestep", "load", "run_bench", "upscale_folder", "upscale_image"]
