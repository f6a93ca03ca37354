"""The Python API: inputs, outputs, threads, folders, benchmarks and mid-timesteps."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from places import ROOT

import omgsr_cli
from omgsr_cli import find_mid_timestep, load, run_bench, upscale_folder, upscale_image
from omgsr_cli.errors import OmgsrError, ShapeError, UsageError
from omgsr_cli.models.base import Restorer
from omgsr_cli.models.loading import load_encoder

HEIGHT, WIDTH = 13, 18


@pytest.fixture(scope="module", name="model")
def loaded(model: Path) -> Restorer:
    return load(model, device="cpu")


def samples(channels: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, channels)).astype(np.uint8)
    planes = [
        np.asarray(Image.fromarray(small[:, :, c]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, -1)


def test_three_lines_restore_an_image(model: Restorer) -> None:
    result = upscale_image(model, Image.fromarray(samples(3)), scale=2)
    assert (result.mode, result.size) == ("RGB", (2 * WIDTH, 2 * HEIGHT))
    assert upscale_image(model, Image.fromarray(samples(3))).size == (4 * WIDTH, 4 * HEIGHT)
    assert upscale_image(model, Image.fromarray(samples(3)), size=(31, 47)).size == (47, 31)


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1), (np.float32, 4), (np.float32, 3)])
def test_strength_blends_and_zero_is_plain_upscaling(model: Restorer, dtype: type, channels: int) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, channels))
    image = (whole / 255).astype(dtype) if dtype is np.float32 else whole.astype(dtype)
    plain, half, restored = (upscale_image(model, image, scale=1, strength=strength) for strength in (0, 0.5, 1))
    assert np.array_equal(plain, image)
    assert not np.array_equal(restored, image)
    level = 1e-6 if dtype is np.float32 else 1.001
    assert np.abs(half.astype(float) - (plain.astype(float) + restored) / 2).max() <= level
    assert np.array_equal(upscale_image(model, image, scale=1), restored)


def test_images_are_restored_at_the_scale_of_the_model_by_default(model: Restorer) -> None:
    image = samples(3)
    automatic, four, one = (upscale_image(model, image, scale=1, process_scale=scale) for scale in ("auto", 4, 1))
    assert np.array_equal(automatic, four)
    assert not np.array_equal(automatic, one)
    for wrong in ({"process_scale": 0.5}, {"process_scale": "much"}, {"strength": 1.5}, {"strength": float("nan")}):
        with pytest.raises(UsageError, match=next(iter(wrong)).partition("_")[0]):
            upscale_image(model, image, **wrong)


def test_pil_array_and_tensor_agree(model: Restorer) -> None:
    array = samples(3)
    from_pil = np.asarray(upscale_image(model, Image.fromarray(array), scale=2))
    from_array = upscale_image(model, array, scale=2)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    from_tensor = upscale_image(model, tensor, scale=2)
    assert from_array.dtype == np.uint8
    assert from_tensor.dtype == torch.uint8
    assert np.array_equal(from_pil, from_array)
    assert np.array_equal(from_tensor.permute(1, 2, 0).numpy(), from_array)
    # Floats are not brought to whole levels on their way.
    fine = upscale_image(model, tensor.float() / 255, scale=2)
    assert 0 <= float(fine.min()) <= float(fine.max()) <= 1
    assert (fine * 255 - from_tensor.float()).abs().max() <= 2.5
    assert not torch.equal((fine * 255).round(), fine * 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "HSV", "La", "RGBa"])
def test_every_mode_keeps_its_appearance(model: Restorer, mode: str) -> None:
    source = Image.fromarray(samples(3)).convert("L" if mode == "I;16" else mode.replace("LA", "L"))
    source = source.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert(mode)
    result = upscale_image(model, source, scale=2)
    assert result.size == (2 * WIDTH, 2 * HEIGHT)
    grey = mode in ("1", "L", "LA", "La", "I;16")
    assert result.mode.startswith(("L", "I") if grey else "RGB")
    if mode not in ("1", "P", "I;16"):  # dithered, which a model smooths, or of another range
        plain = source.convert("LA") if mode == "La" else source
        shown = upscale_image(model, plain.convert("RGB"), scale=2)
        assert np.abs(np.asarray(result.convert("RGB"), float) - np.asarray(shown, float)).mean() < 6


def test_metadata_of_a_pil_image_is_kept(model: Restorer) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "the cat", 6
    source = Image.fromarray(samples(4), "RGBA")
    source.info.update(icc_profile=profile, exif=exif.tobytes())
    result = upscale_image(model, source, scale=2)
    assert result.mode == "RGBA"
    assert result.info["icc_profile"] == profile
    assert result.getexif()[0x010E] == "the cat"
    # Orientation 6 is a quarter turn: the result is upright and says so.
    assert result.size == (2 * HEIGHT, 2 * WIDTH)
    assert result.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(1, np.uint8), (3, np.uint16), (4, np.uint8), (3, np.float32), (1, np.float64), (4, np.float64)],
)
def test_arrays_keep_their_layout_and_type(model: Restorer, channels: int, dtype: type) -> None:
    array: np.ndarray[Any, Any] = samples(channels).astype(dtype)
    array = array * 257 if dtype is np.uint16 else array if dtype is np.uint8 else array / 255
    before = array.copy()
    result = upscale_image(model, array, scale=2)
    assert (result.dtype, result.shape) == (array.dtype, (2 * HEIGHT, 2 * WIDTH, channels))
    assert np.array_equal(array, before)
    if channels == 1:
        flat = upscale_image(model, array[:, :, 0], scale=2)
        assert np.array_equal(flat, result[:, :, 0])


def test_a_batch_is_its_images(model: Restorer) -> None:
    batch = torch.stack([torch.from_numpy(samples(3, seed)).permute(2, 0, 1) for seed in (0, 1)]).half() / 255
    result = upscale_image(model, batch, scale=1.5)
    assert (result.dtype, tuple(result.shape)) == (torch.float16, (2, 3, 20, 27))
    assert torch.equal(result[1], upscale_image(model, batch[1], scale=1.5))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.int32),
        np.full((4, 4, 3), np.nan, np.float32),
        torch.zeros(2, 4, 4),
        torch.zeros(0, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.int64),
        "photo.jpg",
    ],
    ids=str,
)
def test_unsupported_inputs_are_refused(model: Restorer, image: Any) -> None:
    with pytest.raises(ShapeError):
        upscale_image(model, image)


def test_wrong_values_are_one_line(model: Restorer) -> None:
    with pytest.raises(UsageError, match="'omgsr-tiny' is not a loaded model"):
        upscale_image("omgsr-tiny", samples(3))  # type: ignore[type-var]
    with pytest.raises(UsageError, match="there is no option 'modle'"):
        run_bench(modle="bicubic")
    with pytest.raises(UsageError, match="100"):
        upscale_image(model, samples(3), scale=100)
    with pytest.raises(UsageError, match="exclude"):
        upscale_image(model, samples(3), scale=2, size=(8, 8))
    with pytest.raises(OmgsrError, match="no such model"):
        load("no such model")


def test_errors_name_arguments_not_options(model: Restorer, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(samples(3)).save(photo)
    calls = [
        lambda: upscale_image(model, samples(3), tile=32),
        lambda: upscale_image(model, samples(3), scale=2, size=(8, 8)),
        lambda: upscale_image(model, samples(3), process_scale=0.5),
        lambda: load(precision="fp16", device="cpu"),
        lambda: load(process_size=20),
        lambda: load(vae="no such vae"),
        lambda: run_bench(model="bicubic", hr=tmp_path),
        lambda: find_mid_timestep(photo, resolution=10_001),
        lambda: find_mid_timestep(photo, resolution=1024, device="cpu"),
        lambda: upscale_folder(model, photo, tmp_path, suffix="a/b"),
    ]
    for call in calls:
        with pytest.raises(OmgsrError) as raised:
            call()
        assert "--" not in f"{raised.value} {raised.value.hint}", raised.value
    with pytest.raises(OmgsrError, match="tile=32"):
        upscale_image(model, samples(3), tile=32)
    upscale_folder(model, photo, tmp_path / "out", scale=2)
    (taken,) = upscale_folder(model, photo, tmp_path / "out", scale=3)
    assert taken.error is not None
    assert "--" not in str(taken.error.hint)


def test_files_and_lists_hint_at_the_function_to_call(model: Restorer) -> None:
    for image in ("photo.jpg", Path("photo.jpg"), [samples(3)]):
        with pytest.raises(ShapeError) as raised:
            upscale_image(model, image)  # type: ignore[type-var]
        assert "upscale_folder" in str(raised.value.hint)


def test_a_truncated_pil_image_is_an_error(model: Restorer, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(OmgsrError, match="truncated"):
        upscale_image(model, image)


def test_the_package_shows_its_functions_and_a_model_itself(model: Restorer) -> None:
    public = {"OmgsrError", "find_mid_timestep", "load", "run_bench", "upscale_folder", "upscale_image"}
    assert public <= set(dir(omgsr_cli))
    assert omgsr_cli.OmgsrError is OmgsrError
    text = pydoc.plain(pydoc.render_doc(omgsr_cli))
    for name in public:
        assert inspect.getdoc(getattr(omgsr_cli, name))
        assert name in text
    assert "load(" in text
    assert "Load a model" in text
    assert next(iter(inspect.signature(load).parameters)) == "model"
    for part in (model.info.name, model.info.family, "cpu", "fp32"):
        assert part in repr(model)


def test_two_threads_share_a_model(model: Restorer) -> None:
    images = [samples(3, seed) for seed in range(4)]
    alone = [upscale_image(model, image, scale=2) for image in images]
    together: dict[int, Any] = {}

    def work(number: int) -> None:
        together[number] = upscale_image(model, images[number], scale=2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[number], together[number]) for number in range(len(images)))


def test_nothing_is_printed_and_no_global_state_changes(
    model: Restorer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed())
    state = torch.get_rng_state()
    upscale_image(load(device="cpu"), samples(3), scale=2)
    after = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed())
    assert before == after
    assert torch.equal(state, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")


def save_folder(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(samples(3, number)).save(folder / f"{number}.png", dpi=(300, 300))
    return folder


def test_a_folder_is_restored_and_resumed(model: Restorer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = save_folder(tmp_path / "photos")
    (photos / "broken.png").write_bytes(b"no image")
    told: list[Any] = []
    results = upscale_folder(model, photos, tmp_path / "out", scale=2, on_result=told.append)
    assert [result.status for result in results] == ["done", "done", "done", "failed"]
    assert told == results
    assert results[3].error is not None
    with Image.open(tmp_path / "out" / "1.png") as restored:
        assert restored.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        expected = upscale_image(model, Image.fromarray(samples(3, 1)), scale=2)
        assert np.array_equal(np.asarray(restored), np.asarray(expected))
    again = upscale_folder(model, str(photos), tmp_path / "out", scale=2)
    assert [result.status for result in again] == ["skipped", "skipped", "skipped", "failed"]
    for changed in ({"scale": 3}, {"scale": 2, "strength": 0.5}, {"scale": 2, "process_scale": 1}):
        other = upscale_folder(model, photos / "0.png", tmp_path / "out", **changed)
        assert [result.status for result in other] == ["failed"]
    beside = upscale_folder(model, [photos / "0.png"], scale=1.5)
    assert beside[0].destination == photos / "0_x1.5.png"
    with pytest.raises(UsageError, match="loaded model stays"):
        upscale_folder(model, photos, workers=2)
    absent = upscale_folder(model, tmp_path / "absent")
    assert [result.status for result in absent] == ["failed"]
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UsageError, match="100"):
        upscale_folder(model, photos, scale=100)


def test_a_mid_timestep_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = save_folder(tmp_path / "photos")
    told: list[Any] = []
    small: dict[str, Any] = {"resolution": 16, "on_small": "resize", "max_samples": 5, "device": "cpu"}
    found = find_mid_timestep(photos, **small, on_result=told.append)
    assert found.samples == len(told) == 5
    assert found.interval is None
    assert float(found.curve[found.mid_timestep]) == found.loss
    again = find_mid_timestep([photos], **small)
    assert again.mid_timestep == found.mid_timestep
    partners = save_folder(tmp_path / "lq")
    for path in partners.iterdir():
        with Image.open(path) as image:
            image.resize((WIDTH // 2 * 2, HEIGHT)).quantize(16).convert("RGB").save(path)
    paired = find_mid_timestep(photos, "omgsr-tiny", lq=partners, device="cpu")
    assert paired.samples == 3
    with pytest.raises(UsageError, match="2 workers"):
        find_mid_timestep(photos, load_encoder(device="cpu"), workers=2)
    with pytest.raises(UsageError, match="no images were found"):
        find_mid_timestep(tmp_path / "absent")
    with pytest.raises(UsageError, match="none of the 3 "):
        find_mid_timestep(photos, resolution=512, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_one_name_need_not_be_a_list(tmp_path: Path) -> None:
    report = run_bench(model="bicubic", metrics="psnr", cache=tmp_path)
    assert report.summary("bicubic", "psnr").mean > 10


def test_models_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low = save_folder(tmp_path / "lr", 2)
    high = save_folder(tmp_path / "hr", 2)
    for path in high.iterdir():
        with Image.open(path) as image:
            image.resize((4 * WIDTH, 4 * HEIGHT)).save(path)
    started: list[str] = []
    report = run_bench(
        data=low,
        hr=high,
        model=["bicubic", "lanczos"],
        metrics=["psnr"],
        cache=tmp_path / "kept",
        on_start=started.append,
    )
    assert [model.name for model in report.models] == ["bicubic", "lanczos"]
    assert len(report.scores("bicubic", "psnr")) == 2
    assert "bicubic: 0" in started
    with pytest.raises(UsageError, match="repeat=0"):
        run_bench(repeat=0)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, omgsr_cli; omgsr_cli.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'upscale'"):
        omgsr_cli.upscale  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize(
    "example", re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text("utf-8"), re.S)
)
def test_the_examples_of_the_documentation_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(samples(3)).save(tmp_path / "in.jpg")
    Image.fromarray(samples(3, 1)).save(tmp_path / "scan.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/library.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("values", "hint"),
    [((0.0, 255.0), "image / 255"), ((-1.0, 1.0), r"\(image \+ 1\) / 2"), ((-300.0, 4.0), "clip")],
)
def test_floats_of_another_range_are_refused(model: Restorer, values: tuple[float, float], hint: str) -> None:
    array = np.linspace(*values, 3 * 8 * 8, dtype=np.float32).reshape(8, 8, 3)
    for image in (array, torch.from_numpy(array).permute(2, 0, 1)):
        with pytest.raises(ShapeError, match=r"\[0, 1\]") as caught:
            upscale_image(model, image, scale=1)
        assert re.search(hint, caught.value.hint or "")


def test_floats_a_rounding_error_out_of_range_are_accepted(model: Restorer) -> None:
    image = torch.full((3, 8, 8), 1.004)
    assert upscale_image(model, image, scale=1).max() <= 1


def test_the_bit_depth_makes_integers_and_floats_one_path(model: Restorer) -> None:
    array = samples(3)
    floats = array.astype(np.float32) / 255
    for depth in (8, 16):
        from_integers = upscale_image(model, array, scale=2, bit_depth=depth).astype(int)
        from_floats = upscale_image(model, floats, scale=2, bit_depth=depth) * 255
        assert np.abs(from_integers - from_floats).max() <= 0.51
    with pytest.raises(UsageError, match="bit_depth=10"):
        upscale_image(model, array, bit_depth=10)


def test_progress_is_reported_and_an_exception_cancels(model: Restorer) -> None:
    told: list[tuple[int, int]] = []
    image = np.zeros((40, 40, 3), np.uint8)
    upscale_image(model, image, scale=2, tile=64, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == len(told) > 1

    class CancelError(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        told.append((done, total))
        raise CancelError

    told.clear()
    with pytest.raises(CancelError):
        upscale_image(model, image, scale=2, tile=64, on_progress=cancel)
    assert len(told) == 1
