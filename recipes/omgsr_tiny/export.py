"""Stage 3: write the averaged weights as the folder that the package embeds.

python recipes/omgsr_tiny/export.py --run runs/finetune --out omgsr_cli/weights/omgsr-tiny
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from omgsr_cli.models.record import ModelRecord, write_record
from omgsr_cli.models.tiny import TinyConfig
from omgsr_cli.schedules import DdpmSchedule


def main() -> None:
    """Write model.safetensors (float16), config.json and omgsr.json; the model card is kept by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    state = torch.load(args.run / "state.pt", weights_only=True, map_location="cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    # The scales of the latent space stay in float32: an error there is an error of brightness.
    weights = {
        name: value.contiguous() if name.startswith("latents.") else value.half().contiguous()
        for name, value in state["ema"].items()
    }
    save_file(weights, args.out / "model.safetensors", metadata={"step": str(state["step"])})
    (args.out / "config.json").write_text(json.dumps(TinyConfig().model_dump(), indent=2) + "\n")
    record = ModelRecord(
        family="tiny",
        mid_timestep=json.loads((args.run / "mid_timestep.json").read_text()),
        native_tile_px=64,
        schedule=DdpmSchedule().to_config(),
        licence="Apache-2.0",
    )
    write_record(record, args.out)


if __name__ == "__main__":
    main()
