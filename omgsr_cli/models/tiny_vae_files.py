"""Which AutoencoderTiny is meant to decode in the place of a model's own: found, and told what it costs."""

from __future__ import annotations

from pathlib import Path

from omgsr_cli.errors import ModelError, UnknownModelError
from omgsr_cli.models.record import read_json
from omgsr_cli.models.weight_files import NETWORK_STEM, refuse_pickles
from omgsr_cli.presets import DECODERS
from omgsr_cli.store.hub import download_files, is_repository_name

NOTE = "an AutoencoderTiny decodes: about a tenth of the work, but fine texture comes out coarser"

_KNOWN = " or ".join(DECODERS)


def find_tiny_vae(name: str) -> Path:
    """The folder or file of an AutoencoderTiny; a hub repository is fetched.

    Args:
        name: one of `DECODERS`, a folder of diffusers' layout, TAESD's decoder as a safetensors file, or a
            hub repository.
    Raises:
        ModelError: there is none, it is of another kind, or it cannot be fetched.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not path.is_dir():
        repository = DECODERS.get(name, name)
        if not is_repository_name(repository):
            hint = f"give {_KNOWN}, a folder, TAESD's decoder .safetensors or a hub repository"
            raise UnknownModelError(f"there is no autoencoder {name!r}", hint)
        path = download_files(repository, None, ["config.json", f"{NETWORK_STEM}.safetensors"])
    if not (path / "config.json").is_file():
        refuse_pickles(path)
        raise ModelError(f"{path} has no config.json", "give a folder of diffusers' AutoencoderTiny")
    found = read_json(path / "config.json").get("_class_name")
    if found != "AutoencoderTiny":
        raise ModelError(f"{path} is a {found}, not an AutoencoderTiny", f"give {_KNOWN}, or leave --vae out")
    return path
