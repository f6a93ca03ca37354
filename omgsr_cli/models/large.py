"""Networks that a machine can hardly hold once: read tensor by tensor, quantised, offloaded, and planned before.

diffusers' own configurations, quantisers and hooks do the work; here is what has to be decided, and that an adapter is
added to a weight before it is quantised.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from omgsr_cli.errors import DeviceError, ModelError, UsageError
from omgsr_cli.models.devices import free_memory_bytes, shares_host_memory
from omgsr_cli.models.lora import AdapterPart
from omgsr_cli.models.weight_files import (
    ELEMENT_BYTES,
    TensorEntry,
    check_finite,
    read_header,
    read_tensors,
    weight_files,
)
from omgsr_cli.options import Offload, Quantize

_CPU = torch.device("cpu")
_QUANTISED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0, "fp8": 1.0}
"""For one weight of a linear layer; 4-bit ones have a float32 factor for each 64."""
_STRONGER: tuple[Quantize, ...] = ("int8", "nf4")
"""What a hint names, the finest first."""
_GIB = 1 << 30


@dataclass(frozen=True)
class Footprint:
    """What running a model takes, in bytes.

    Attributes:
        backbone: all weights of the network that takes the step, as they are kept.
        block: of its largest block.
        loose: of those that belong to no block.
        codec: weights of the VAE.
        working: of one tile of the step.
    """

    backbone: int
    block: int
    loose: int
    codec: int
    working: int

    def on_device(self, offload: Offload) -> int:
        """The device's share at the peak; while a block runs, "group" loads the next one."""
        weights = 2 * self.block + self.loose if offload == "group" else self.backbone
        return weights + self.codec + self.working

    def on_host(self, offload: Offload) -> int:
        """The host's share where the device has a memory of its own."""
        return 0 if offload == "none" else self.backbone


def measure_footprint(
    entries: Iterable[tuple[str, TensorEntry]], element_bytes: int, quantize: Quantize, codec: int, working: int
) -> Footprint:
    """Add up a backbone's weights from the headers of its files; other arguments as in `Footprint`.

    Args:
        entries: names and headers of its tensors; blocks are the members of lists, such as "blocks.0.".
        element_bytes: of a weight that is not quantised; only matrices are.
        quantize: how matrices are quantised.
    """
    blocks: dict[tuple[str, ...], int] = {}
    for name, entry in entries:
        is_matrix = len(entry.shape) == 2 and name.endswith(".weight")
        size = entry.elements * (_QUANTISED_BYTES[quantize] if is_matrix and quantize != "none" else element_bytes)
        place = tuple(name.split(".")[:2])
        key = place if len(place) == 2 and place[1].isdigit() else ()
        blocks[key] = blocks.get(key, 0) + int(size)
    loose = blocks.pop((), 0)
    return Footprint(sum(blocks.values()) + loose, max(blocks.values(), default=0), loose, codec, working)


def choose_offload(
    footprint: Callable[[Quantize], Footprint],
    name: str,
    device: torch.device,
    quantize: Quantize,
    offload: Offload,
) -> Offload:
    """Decide where the backbone is kept, before a weight is read.

    Args:
        footprint: of the model, for each way to quantise it.
        name: of the model, for the error.
        device: where it will compute.
        quantize, offload: options of the user; "auto" takes the fastest that fits.
    Returns:
        "none" where it stays on the device, "model" where it leaves the device for the codec, "group" where each block
        is there only while it runs.
    Raises:
        DeviceError: nothing that was allowed fits; the message has the figures.
        UsageError: the device has no memory of its own, or what was asked for does not work together.
    """
    alone = shares_host_memory(device)
    if alone and offload in ("model", "group"):
        raise UsageError(f"--offload {offload}: {device} has the host's own memory", "leave --offload out")
    if quantize != "none" and offload == "group":
        raise UsageError(
            f"--offload group does not work with --quantize {quantize}",
            "take --offload model, or leave one of them out",
        )
    on_device, on_host = free_memory_bytes(device), free_memory_bytes(_CPU)

    def allowed(kind: Quantize) -> tuple[Offload, ...]:
        if offload != "auto":
            return (offload,)
        # Whole on the device, "model" needs as much of it as "none": auto has no use for it.
        return ("none",) if alone or kind != "none" else ("none", "group")

    def fitting(kind: Quantize) -> Offload | None:
        size = footprint(kind)
        fits = (way for way in allowed(kind) if size.on_device(way) <= on_device and size.on_host(way) <= on_host)
        return next(fits, None)

    found = fitting(quantize)
    if found is not None:
        return found
    size, way = footprint(quantize), allowed(quantize)[-1]
    host = f" and {_gib(size.on_host(way))} of the host's, of which {_gib(on_host)} are free" if way != "none" else ""
    weaker = [kind for kind in _STRONGER if quantize == "none" and fitting(kind)]
    raise DeviceError(
        f"{name} needs {_gib(size.on_device(way))} of {device}, of which {_gib(on_device)} are free{host}",
        f"add --quantize {weaker[0]}, which needs {_gib(footprint(weaker[0]).on_device('none'))}"
        if weaker
        else "close other programs, or take another --device",
    )


def build_quantizer(quantize: Quantize, dtype: torch.dtype) -> Any:
    """Diffusers' quantiser: "int8" and "fp8" are torchao's (weights only), "nf4" is bitsandbytes'; None for "none"."""
    if quantize == "none":
        return None
    from diffusers.quantizers.auto import DiffusersAutoQuantizer
    from diffusers.quantizers.quantization_config import BitsAndBytesConfig, TorchAoConfig

    config: Any
    if quantize == "nf4":
        nf4: Any = BitsAndBytesConfig
        config = nf4(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        from torchao.quantization import (  # type: ignore[import-not-found]  # an extra
            Float8WeightOnlyConfig,
            Int8WeightOnlyConfig,
        )

        config = TorchAoConfig(Int8WeightOnlyConfig() if quantize == "int8" else Float8WeightOnlyConfig())
    return DiffusersAutoQuantizer.from_config(config, pre_quantized=False)


def read_network(
    network: nn.Module,
    files: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype,
    *,
    adapter: AdapterPart | None = None,
    quantizer: Any = None,
) -> None:
    """Read a network's weights one by one: each is added to by the adapter, rounded, quantised and moved on its own.

    The host never holds more than one of them, files being mapped; on a CPU a weight whose type stays is not copied.

    Args:
        network: of diffusers, on the meta device.
        files: its safetensors.
        device: where the weights go.
        dtype: of those that are not quantised, and of what a quantiser is given.
        adapter: is added before anything is rounded.
        quantizer: of `build_quantizer`.
    Raises:
        ModelError: a weight is missing, superfluous, not finite or of another shape, or a file cannot be read.
    """
    from accelerate.utils import set_module_tensor_to_device

    where = files[0].parent
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    if quantizer is not None:
        quantizer.preprocess_model(model=network, device_map=None, keep_in_fp32_modules=[])
    missing = set(shapes)
    for name, stored in read_tensors(files):
        if name not in missing:
            raise ModelError(f"{where}: 1 unexpected keys: {name}")
        if stored.shape != shapes[name]:
            expected = tuple(shapes[name])
            raise ModelError(f"{where}: the shape of {name} is {tuple(stored.shape)}, the configuration has {expected}")
        missing.remove(name)
        value = stored.to(device, torch.promote_types(stored.dtype, dtype))
        if adapter is not None:
            value = adapter.add(name, value)
        value = value.to(dtype)
        check_finite([(name, value)], where)
        if quantizer is not None and quantizer.check_if_quantized_param(network, value, name, {}):
            quantizer.create_quantized_param(network, value, name, device, {}, [])
        else:
            set_module_tensor_to_device(network, name, device, value=value, dtype=dtype)
    if missing:
        shown = ", ".join(sorted(missing)[:3])
        raise ModelError(f"{where}: {len(missing)} missing keys: {shown}")
    if quantizer is not None:
        quantizer.postprocess_model(network)
    network.eval().requires_grad_(False)


def offload_network(network: Any, device: torch.device, offload: Offload) -> Callable[[], None] | None:
    """Bring a network of diffusers from the host to the device when it is called: all of it, or group by group.

    Returns:
        For "model", a function that moves it off the device again; otherwise None.
    """
    if offload == "group":
        from diffusers.hooks.group_offloading import apply_group_offloading

        streams = device.type == "cuda"
        apply_group_offloading(
            network, device, _CPU, offload_type="block_level", num_blocks_per_group=1, use_stream=streams
        )
        return None
    if offload == "model":
        from accelerate import cpu_offload_with_hook

        _, hook = cpu_offload_with_hook(network, device)
        release: Callable[[], None] = hook.offload
        return release
    return None


def write_merged_part(
    source: Path, target: Path, part: str, adapter: AdapterPart | None, *, prefix: str = "", narrow: bool = False
) -> None:
    """Copy one part of a diffusers folder with an adapter added to its weights, one weight at a time.

    Args:
        source, target: folders of the models; the target's exists.
        part: such as "transformer".
        adapter: of this part; None copies.
        prefix: of the weights that the adapter is for, such as "encoder." in a VAE.
        narrow: write float32 weights as bfloat16.
    Raises:
        ModelError: a weight does not fit or is not finite, or a file cannot be read.
    """
    (target / part).mkdir()
    for path in (source / part).glob("*.json"):
        shutil.copyfile(path, target / part / path.name)
    for path in weight_files(source, part):
        # Wide types first, so that every tensor is aligned.
        entries = dict(sorted(read_header(path).items(), key=lambda entry: -ELEMENT_BYTES[entry[1].dtype]))
        if narrow:
            entries = {key: replace(one, dtype="BF16") if one.dtype == "F32" else one for key, one in entries.items()}
        _write_tensors(target / part / path.name, entries, _merged(path, entries, adapter, prefix))


def _merged(
    path: Path, entries: Mapping[str, TensorEntry], adapter: AdapterPart | None, prefix: str
) -> Iterator[Tensor]:
    """The tensors of a file in the order and number formats of the entries, with an adapter added."""
    with safe_open(path, framework="pt") as file:
        for name, entry in entries.items():
            value = file.get_tensor(name)
            if adapter is not None and name.startswith(prefix):
                value = adapter.add(name.removeprefix(prefix), value.float()).to(value.dtype)
            value = value.to(torch.bfloat16) if entry.dtype == "BF16" else value
            check_finite([(name, value)], path)
            yield value


def _write_tensors(path: Path, entries: Mapping[str, TensorEntry], values: Iterable[Tensor]) -> None:
    """Write a safetensors file one tensor at a time; the format's own library holds all of them twice."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + entry.elements * ELEMENT_BYTES[entry.dtype]
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in values:
            file.write(value.contiguous().flatten().view(torch.uint8).numpy().data)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
