"""Checkpoints survive kills at every call, full disks and flipped bytes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omgsr_cli.errors import FileError, ModelError, UsageError
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.store.manifest import MANIFEST_NAME
from omgsr_cli.training.checkpoints import (
    check_adapter_ranks,
    find_checkpoint,
    list_checkpoints,
    lock_run,
    verify_checkpoint,
    write_checkpoint,
)

SIZE = 40_000
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed after a fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def parts(step: int) -> Callable[[Path], None]:
    """What a run would write: nested folders, several files, contents that depend on the step."""

    def write(folder: Path) -> None:
        (folder / "unet_lora_adapter").mkdir()
        (folder / "state.json").write_text(str(step))
        save_file({"w": torch.full((SIZE,), float(step))}, folder / "unet_lora_adapter" / "adapter_model.safetensors")
        save_file({"w": torch.full((7,), float(step))}, folder / "optimizer.safetensors")

    return write


def save(root: Path, step: int, keep: int = 2) -> Path:
    return write_checkpoint(root, step, parts(step), keep=keep)


def names(root: Path) -> list[str]:
    """Everything in the run's folder, leftovers included."""
    return sorted(path.name for path in root.iterdir())


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def check_whole(checkpoint: Path, step: int) -> None:
    verify_checkpoint(checkpoint)
    weights = load_file(checkpoint / "unet_lora_adapter" / "adapter_model.safetensors")["w"]
    assert torch.equal(weights, torch.full((SIZE,), float(step)))


def fork(work: Callable[[], None]) -> int:
    """Run something in a child process; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # A fork has none of the parent's worker threads, and would wait for them.
        torch.set_num_threads(1)
        work()
        code = 0
    finally:
        os._exit(code)


def end_of(pid: int) -> int:
    """Exit code of a child; -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Calls:
    """Has an effect right before one of the process's next calls to the file system.

    Python never lets go of an audit hook, so there is one, and it is told what to do.
    """

    def __init__(self) -> None:
        self._left = 0
        self._effect: Callable[[], None] = lambda: None
        self._hooked = False

    def at(self, number: int, effect: Callable[[], None]) -> None:
        self._left, self._effect = number, effect
        if not self._hooked:
            sys.addaudithook(self._hook)
            self._hooked = True

    def is_past(self) -> bool:
        """Whether the effect was had; it will not be had again."""
        left, self._left = self._left, 0
        return left <= 0

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._left > 0 and (event == "open" or event.startswith("os.")):
            self._left -= 1
            if self._left == 0:
                self._effect()


calls = Calls()


@pytest.fixture
def unsynchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process leaves what it wrote to the system, synchronised or not; waiting for the disk takes long."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_a_checkpoint_has_its_parts_and_a_manifest(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "a" / "run", 1000)
    assert checkpoint == tmp_path / "a" / "run" / "step-00001000"
    assert names(checkpoint) == [MANIFEST_NAME, "optimizer.safetensors", "state.json", "unet_lora_adapter"]
    check_whole(checkpoint, 1000)


def test_the_newest_are_kept_by_number_and_not_by_name(tmp_path: Path) -> None:
    # Version 0.2 gave this name to a checkpoint that it removed.
    (tmp_path / ".step-00000007.0a0a0a0a.removed").mkdir()
    for step in (99_999_999, 100_000_000, 100_000_001):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-100000000", "step-100000001"]
    assert find_checkpoint(tmp_path, "auto") == tmp_path / "step-100000001"
    save(tmp_path, 100_000_002, keep=1)
    assert names(tmp_path) == ["step-100000002"]


def test_rotation_comes_after_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, keep=1)
    seen: list[list[str]] = []
    rename = os.rename

    def watch(source: Path, target: Path) -> None:
        rename(source, target)
        seen.append([path.name for path in list_checkpoints(tmp_path)])
        for checkpoint in list_checkpoints(tmp_path):
            verify_checkpoint(checkpoint)

    monkeypatch.setattr(os, "rename", watch)
    save(tmp_path, 2, keep=1)
    assert seen == [["step-00000002", "step-00000001"], ["step-00000002"]]


def test_everything_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        inside = path.name if path == tmp_path else "/".join(path.relative_to(tmp_path).parts[1:])
        events.append(inside or "the checkpoint")
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not tell the name of an open file")
    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    save(tmp_path, 1)
    weights = "unet_lora_adapter/adapter_model.safetensors"
    before = {weights, "unet_lora_adapter", "state.json", "optimizer.safetensors", "the checkpoint"}
    assert set(events[:-2]) == before | {MANIFEST_NAME}
    assert events[-2:] == ["rename", tmp_path.name]


@needs_fork
@pytest.mark.usefixtures("unsynchronised")
def test_a_kill_at_every_call_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    number, outcomes = 0, set()
    while True:
        number += 1
        root = tmp_path / str(number)
        save(root, 1, keep=1)

        def work(root: Path = root, number: int = number) -> None:
            calls.at(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            save(root, 2, keep=1)

        code = end_of(fork(work))
        found = find_checkpoint(root, "auto")
        assert found is not None
        check_whole(found, int(found.name[-1]))
        for checkpoint in list_checkpoints(root):
            verify_checkpoint(checkpoint)
        outcomes.add(found.name)
        save(root, 3, keep=1)
        assert names(root) == ["step-00000003"], "what the killed one left is gone"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert outcomes == {"step-00000001", "step-00000002"}
    assert number > 20, "far fewer calls were watched than there are"


@needs_fork
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    draw, step, newest, rounds = random.Random(5), 0, 0, 0
    while rounds < 12 or newest <= 3:
        rounds += 1
        assert rounds < 1000, "no child got as far as saving"

        def work(begin: int = step) -> None:
            number = begin
            while True:
                number += 1
                save(tmp_path, number)

        pid = fork(work)
        # Longer and longer, until also a busy machine has got somewhere.
        time.sleep(draw.uniform(0.01, 0.12) * (1 + rounds / 12))
        os.kill(pid, signal.SIGKILL)
        assert end_of(pid) == -signal.SIGKILL
        found = find_checkpoint(tmp_path, "auto")
        if found is not None:
            step = int(found.name.removeprefix("step-"))
            check_whole(found, step)
        assert step >= newest, "a checkpoint was lost"
        newest = step


@pytest.mark.usefixtures("unsynchronised")
def test_a_system_error_at_any_call_is_one_line_and_harms_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    number = 0
    while True:
        number += 1
        root = tmp_path / str(number)
        save(root, 1, keep=1)
        calls.at(number, fail)
        try:
            save(root, 2, keep=1)
        except FileError as error:
            assert "the disk is full" in error.message
            assert str(root / "step-00000002") in error.message
        failed = calls.is_past()
        found = find_checkpoint(root, "auto")
        assert found is not None
        check_whole(found, int(found.name[-1]))
        if not failed:
            break
    assert number > 20


@needs_fork
def test_a_full_disk_is_one_line_and_leaves_no_partial_checkpoint(tmp_path: Path) -> None:
    """The limit is the system's own, and stops the writing of safetensors in the middle of a file."""
    save(tmp_path, 1)

    def work() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))
        with pytest.raises(FileError, match="step-00000002 cannot be written: the file is too large") as caught:
            save(tmp_path, 2)
        assert "earlier checkpoints are unchanged" in (caught.value.hint or "")

    assert end_of(fork(work)) == 0
    assert names(tmp_path) == ["step-00000001"]
    check_whole(tmp_path / "step-00000001", 1)


def test_a_failure_of_its_own_parts_is_not_hidden(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise ModelError("the weights are gone")

    with pytest.raises(ModelError, match="the weights are gone"):
        write_checkpoint(tmp_path, 1, fail, keep=1)
    assert names(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        save(tmp_path / "run", 1)


def test_auto_takes_the_newest_whole_checkpoint_and_names_the_others(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=9)
    flip(tmp_path / "step-00000004" / "optimizer.safetensors")
    (tmp_path / "step-00000003" / MANIFEST_NAME).unlink()
    (tmp_path / "step-00000005").mkdir()
    notes: list[str] = []
    assert find_checkpoint(tmp_path, "auto", note=notes.append) == tmp_path / "step-00000002"
    assert [note.removeprefix(f"{tmp_path}/") for note in notes] == [
        f"step-00000005 is incomplete and is skipped: {tmp_path / 'step-00000005'} has no manifest.json",
        "step-00000004 is incomplete and is skipped: optimizer.safetensors has another content (SHA-256)",
        f"step-00000003 is incomplete and is skipped: {tmp_path / 'step-00000003'} has no manifest.json",
    ]


def test_auto_does_not_start_again_if_every_checkpoint_is_broken(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "absent", "auto") is None
    assert find_checkpoint(tmp_path, "auto") is None
    save(tmp_path, 1)
    flip(tmp_path / "step-00000001" / "state.json")
    with pytest.raises(ModelError, match=r"no checkpoint in .* is complete; step-00000001: state.json has another"):
        find_checkpoint(tmp_path, "auto")


def test_none_is_refused_if_checkpoints_exist(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "none") is None
    (tmp_path / "validation").mkdir()
    (tmp_path / "step-1.png").write_text("")
    assert find_checkpoint(tmp_path, "none") is None
    save(tmp_path, 7)
    with pytest.raises(UsageError, match="already contains checkpoints, up to step-00000007") as caught:
        find_checkpoint(tmp_path, "none")
    assert "--resume auto" in (caught.value.hint or "")


def test_a_path_must_be_the_newest_whole_checkpoint_of_its_run(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for step in (1, 2, 3):
        save(run, step, keep=9)
    assert find_checkpoint(run, str(run / "step-00000003")) == run / "step-00000003"
    assert find_checkpoint(other, str(run / "step-00000001")) == run / "step-00000001", "into an empty folder"
    with pytest.raises(UsageError, match="contains step-00000003, which does not belong to a run that resumes from"):
        find_checkpoint(run, str(run / "step-00000002"))
    save(other, 3)
    with pytest.raises(UsageError, match="contains step-00000003"):
        find_checkpoint(run, str(other / "step-00000003"))
    with pytest.raises(ModelError, match="does not exist"):
        find_checkpoint(run, str(tmp_path / "nowhere"))
    flip(run / "step-00000003" / "optimizer.safetensors")
    with pytest.raises(ModelError, match=r"optimizer.safetensors has another content"):
        find_checkpoint(run, str(run / "step-00000003"))


def test_a_corrupt_checkpoint_is_replaced_and_a_whole_one_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip(tmp_path / "step-00000001" / "state.json")
    save(tmp_path, 1)
    check_whole(tmp_path / "step-00000001", 1)
    before = (tmp_path / "step-00000001" / "state.json").stat().st_mtime_ns
    save(tmp_path, 1)
    assert (tmp_path / "step-00000001" / "state.json").stat().st_mtime_ns == before
    assert names(tmp_path) == ["step-00000001"]


def test_broken_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=9)
    (tmp_path / "step-00000003" / "optimizer.safetensors").unlink()
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (LoraOptions(), "vae_encoder_lora_adapter has rank 4, but the configuration has 16", "set vae_rank = 4"),
        (
            LoraOptions(vae_rank=4),
            "unet_lora_adapter has rank 8, but the configuration has 32",
            "set backbone_rank = 8",
        ),
        (LoraOptions(4, 8, vae_alpha=2.0), "vae_encoder_lora_adapter has alpha 4", "set vae_alpha = 4"),
        (LoraOptions(4, 8), "unet_lora_adapter has alpha 12, but the configuration has 8", "set backbone_alpha = 12"),
        (LoraOptions(4, 8, backbone_alpha=12.0), None, None),
    ],
)
def test_ranks_that_differ_from_the_checkpoint_are_refused(
    tmp_path: Path, options: LoraOptions, message: str | None, hint: str | None
) -> None:
    for part, rank, alpha in (("vae_encoder_lora_adapter", 4, 4), ("unet_lora_adapter", 8, 12)):
        (tmp_path / part).mkdir()
        config = f'{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {alpha}}}'
        (tmp_path / part / "adapter_config.json").write_text(config)
    if message is None:
        check_adapter_ranks(tmp_path, options)
        return
    with pytest.raises(UsageError, match=message) as caught:
        check_adapter_ranks(tmp_path, options)
    assert hint is not None
    assert hint in (caught.value.hint or "")


def test_a_checkpoint_without_adapters_has_no_ranks(tmp_path: Path) -> None:
    check_adapter_ranks(save(tmp_path, 1).parent, LoraOptions())


# Two runs in one folder


def hold(root: Path, workers: int = 0) -> int:
    """Fork a process that holds a run's folder until it is killed; so do its workers, which outlive it."""
    ready, done = os.pipe()

    def work() -> None:
        lock = lock_run(root)
        lock.__enter__()
        for _ in range(workers):
            if os.fork() == 0:
                time.sleep(20)
                os._exit(0)
        os.write(done, b"x")
        time.sleep(60)

    pid = fork(work)
    os.read(ready, 1)
    os.close(ready)
    os.close(done)
    return pid


def refusal(root: Path) -> UsageError:
    with pytest.raises(UsageError) as told, lock_run(root):
        pass
    return told.value


@needs_fork
def test_a_second_run_in_a_folder_is_refused_and_names_the_first(tmp_path: Path) -> None:
    pid = hold(tmp_path / "run")
    try:
        for _ in range(2):
            message = refusal(tmp_path / "run").message
            assert f"process {pid}" in message
            assert socket.gethostname() in message
        with lock_run(tmp_path / "other"):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        end_of(pid)


@needs_fork
def test_the_folder_of_a_killed_run_is_free_although_its_workers_live(tmp_path: Path) -> None:
    pid = hold(tmp_path, workers=1)
    os.kill(pid, signal.SIGKILL)
    end_of(pid)
    with lock_run(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert (tmp_path / ".lock").read_text() == ""


def test_two_runs_of_one_process_cannot_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with lock_run(tmp_path / "run"):
        assert f"process {os.getpid()}" in refusal(tmp_path / "link").message
    with lock_run(tmp_path / "link"):
        pass


@needs_fork
def test_without_file_locks_the_owner_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("omgsr_cli.training.checkpoints.fcntl.lockf", no_locks)
    dead, here = fork(lambda: None), socket.gethostname()
    end_of(dead)
    path = tmp_path / ".lock"
    for pid, host, is_free in ((os.getppid(), here, False), (dead, here, True), (dead, f"not-{here}", False)):
        path.write_text(json.dumps({"pid": pid, "host": host}))
        if is_free:
            with lock_run(tmp_path):
                pass
            continue
        refused = refusal(tmp_path)
        assert f"process {pid} on {host}" in refused.message
        assert (str(path) in str(refused.hint)) == (host != here)
    for text in ("not json", "[1]"):
        path.write_text(text)
        with lock_run(tmp_path):
            pass


def test_an_unwritable_lock_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(FileError, match="run"), lock_run(tmp_path / "run"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device, which is always full")
def test_a_lock_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to("/dev/full")
    with pytest.raises(FileError, match="cannot be written"), lock_run(tmp_path):
        pass
