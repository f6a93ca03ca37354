"""One image: padding, low memory, and bands."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from identity_model import Identity, exact_info
from torch import Tensor

from omgsr_cli.errors import DeviceError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import SourceImage, resize
from omgsr_cli.options import ColorFix, RestoreOptions
from omgsr_cli.planning import plan_restoration
from omgsr_cli.upscaling import restore_image, upscale_image

ROOMY = 10**12


@pytest.mark.parametrize(
    ("size", "border"), [((1, 1), 0), ((1, 500), 32), ((500, 1), 0), ((3, 70), 32), ((65, 64), 32), ((9, 33), 0)]
)
def test_any_proportion_keeps_its_size(size: tuple[int, int], border: int) -> None:
    restorer = Identity()
    restorer.info = replace(restorer.info, border_px=border)
    image = torch.rand(3, *size)
    restored = upscale_image(restorer, image, Size(*size), bit_depth=16, free_bytes=ROOMY)
    working = Size(*size) if max(size) > 255 or min(size) > 63 else None
    assert restored.shape == image.shape
    if working:
        torch.testing.assert_close(restored, image, atol=1e-5, rtol=0)


def test_padding_is_a_repeated_reflection(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    restorer = Identity()
    monkeypatch.setattr(restorer, "restore", lambda latent: seen.append(latent) or latent)
    image = torch.rand(3, 4, 256)
    upscale_image(restorer, image, Size(4, 256), bit_depth=16, free_bytes=ROOMY)
    rows = (F.pixel_shuffle(seen[0], 8)[0, 0, :, 0] + 1) / 2
    wanted = torch.cat([image[0, [0, 1, 2, 3, 2, 1], 0]] * 11)[:64]
    torch.testing.assert_close(rows, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "reason",
    [
        "MPS backend out of memory (MPS allocated: 8.88 GB, other allocations: 9.10 GB, max allowed: 18.13 GB).",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes. Error code 12",
    ],
)
def test_running_out_of_memory_gives_smaller_tiles_and_the_same_image(reason: str, exact: bool) -> None:
    image = torch.rand(3, 600, 1100)
    told: list[tuple[int, int]] = []
    restored = upscale_image(
        Identity(600, reason, exact),
        image,
        Size(600, 1100),
        bit_depth=16,
        free_bytes=ROOMY,
        on_progress=lambda done, total: told.append((done, total)),
    )
    torch.testing.assert_close(restored, image, atol=1e-5, rtol=0)
    assert told[-1][0] == told[-1][1] > 1


def test_finished_exact_tiles_are_kept_with_one_note() -> None:
    model = Identity(600, "out of memory", exact=True)
    worked = 0
    encode = model.encode

    def counted(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        nonlocal worked
        result = encode(image, generator)
        worked += image.shape[2] * image.shape[3]
        return result

    model.encode = counted  # type: ignore[method-assign]  # counts
    notes: list[str] = []
    image = torch.rand(3, 1000, 1600)
    restored = upscale_image(model, image, Size(1000, 1600), bit_depth=16, free_bytes=ROOMY, on_note=notes.append)
    torch.testing.assert_close(restored, image, atol=1e-5, rtol=0)
    assert notes == ["ran out of memory; continued with smaller tiles"]
    # Every pixel once, and margins.
    assert worked < 1.2 * 1000 * 1600


def test_a_batch_that_does_not_fit_runs_one_by_one() -> None:
    model = Identity()
    sizes: list[int] = []

    def restore(lq_latent: Tensor) -> Tensor:
        if len(lq_latent) > 1:
            raise torch.OutOfMemoryError("short")
        sizes.append(len(lq_latent))
        return lq_latent

    model.restore = restore  # type: ignore[method-assign]  # short of memory
    told: list[tuple[int, int]] = []
    image = torch.rand(3, 128, 192)
    options = RestoreOptions(tile=64, batch=4)
    restored = upscale_image(
        model, image, Size(128, 192), options, bit_depth=16, on_progress=lambda done, total: told.append((done, total))
    )
    torch.testing.assert_close(restored, image, atol=1e-5, rtol=0)
    assert set(sizes) == {1}
    assert told[-1][0] == told[-1][1]


def test_a_requested_tile_size_is_never_changed() -> None:
    image = torch.rand(3, 600, 700)
    with pytest.raises(DeviceError, match="ran out of memory for tiles of 512 pixels"):
        upscale_image(Identity(500, "out of memory"), image, Size(600, 700), RestoreOptions(tile=512), free_bytes=ROOMY)


def test_other_errors_are_raised() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        upscale_image(Identity(0, "a bug"), torch.rand(3, 64, 64), Size(64, 64), free_bytes=ROOMY)


def test_exact_tiles_are_even_and_limited() -> None:
    info = replace(exact_info(48), border_px=32)
    for side in (1024, 2048, 4096, 16_384):
        plan = plan_restoration(info, Size(side, side), Size(side, side), RestoreOptions(), ROOMY)
        assert plan.step.side_px <= 1152
        rest = plan.canvas.padded.width % plan.step.side_px
        assert rest == 0 or rest > 0.8 * plan.step.side_px
    asked = plan_restoration(info, Size(4096, 4096), Size(4096, 4096), RestoreOptions(tile=2048), ROOMY)
    assert asked.step.side_px == 2048


@pytest.mark.parametrize(
    ("strength", "scale", "color_fix"), [(0.4, 1, "none"), (1, 1.5, "none"), (0.4, 1.5, "wavelet")]
)
def test_a_reduced_result_is_computed_in_bands(strength: float, scale: float, color_fix: ColorFix) -> None:
    """Of a tall image, the first rows of the result exist before most of it is restored, and never the whole."""
    model = Identity(exact=True)
    model.info = replace(model.info, scale=4.0)
    told: list[tuple[int, int]] = []
    image = torch.rand(3, 500, 24, generator=torch.Generator().manual_seed(0))
    output = Size(round(500 * scale), round(24 * scale))
    options = RestoreOptions(tile=64, strength=strength, color_fix=color_fix)
    photo = SourceImage(image, bit_depth=16)
    result, plain = restore_image(model, photo, output, options, on_progress=lambda *count: told.append(count))
    bands = [next(result.rgb)]
    done, total = told[-1]
    assert done < total / 3
    bands += list(result.rgb)
    assert told[-1][0] == total
    assert max(band.shape[1] for band in bands) < output.height / 4
    restored = torch.cat(bands, dim=1)
    assert restored.shape == (3, *output)
    # The model keeps its image, so that only the way to the working size and back is left.
    expected = resize(resize(image, (2000, 96), 16), output, 16)
    expected = torch.lerp(resize(image, output, 16), expected, strength)
    torch.testing.assert_close(restored, expected, atol=1e-4, rtol=0)
    assert plain.size_px == output
