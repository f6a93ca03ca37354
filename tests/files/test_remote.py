"""Remote storage: fsspec's memory, an S3 server, and long listings."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
from command_line import Command, draw, files_below
from hub_server import QuietServer
from spread_work import Pickled

from omgsr_cli.errors import ExistsError, FileError, UsageError
from omgsr_cli.files import jobs
from omgsr_cli.files.addresses import Address, list_files, local_copy, look_at, parse_address, put_when_whole, redact
from omgsr_cli.files.inputs import FoundResult, Note
from omgsr_cli.files.jobs import Job, JobOptions, find_jobs, plan_jobs

OPTIONS = JobOptions(recursive=True, suffix=None, size_suffix="_x4", output_format="same")


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty storage in this process's memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def stored(system: Any, folder: str) -> dict[str, bytes]:
    """All files below a folder of a storage, by their path there."""
    folder = folder.rstrip("/")
    return {name.removeprefix(f"{folder}/"): system.cat_file(name) for name in system.find(folder)}


@pytest.mark.parametrize(
    ("url", "name", "parent", "below"),
    [
        ("s3://b/in/a.v2.png", "a.v2.png", "s3://b/in", "s3://b/in/x/y.png"),
        ("s3://b", "", "s3://b", "s3://b/x/y.png"),
        ("https://h.org/a.png?key=1/2", "a.png", "https://h.org", "https://h.org/x/y.png"),
    ],
)
def test_an_address_works_like_a_path(url: str, name: str, parent: str, below: str) -> None:
    address = parse_address(url + "/")
    assert (address.name, address.parent) == (name, Address(parent))
    assert address.parent / Path("x/y.png") == Address(below)
    assert Address(below).is_relative_to(address.parent)
    assert not Address("s3://bb/in").is_relative_to(Address("s3://b"))
    assert (Address("s3://b/c.tar.gz").stem, Address("s3://b/c.tar.gz").suffix) == ("c.tar", ".gz")


def test_secrets_are_not_shown() -> None:
    assert str(Address("sftp://me:pass@host/a.png")) == "sftp://…@host/a.png"
    assert repr(Address("https://h.org/a.png?X-Signature=abc")) == "Address('https://h.org/a.png?…')"
    assert str(Address("s3://b/what?.png")) == "s3://b/what?.png"
    text = redact("403, message='Forbidden', url='https://me:pass@h.org/a?token=abc'")
    assert text == "403, message='Forbidden', url='https://…@h.org/a?…'"


def test_errors_of_a_storage_are_one_redacted_line(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(system: Any, path: str, **_: Any) -> None:
        raise OSError("no answer from https://h.org/a?token=abc\nmore of it")

    monkeypatch.setattr(type(memory), "info", refuse)
    with pytest.raises(FileError, match=r"^memory://d/a\.png: cannot be read: no answer from https://h\.org/a\?…$"):
        look_at(Address("memory://d/a.png"))


def test_a_storage_that_does_not_answer_times_out(omgsr: Command) -> None:
    """Nobody listens at port 1 of this machine."""
    said = omgsr("ftp://127.0.0.1:1/a.png", "-o", "out/")
    assert (said.code, len(said.errors)) == (1, 1)
    assert said.errors[0].startswith("error: ftp://127.0.0.1:1/a.png: cannot be reached: ")


class Nothing(BaseHTTPRequestHandler):
    """A web server with no files."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_missing_file_differs_from_an_unreachable_server() -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: the extra `remote`")
    with QuietServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert look_at(Address(f"http://127.0.0.1:{server.server_port}/a.png")) is None
        server.shutdown()
    with pytest.raises(FileError, match=r"^http://127\.0\.0\.1:1/a\.png: cannot be read: .*Connect call failed"):
        look_at(Address("http://127.0.0.1:1/a.png"))


def test_a_remote_folder_gives_the_results_of_a_local_one(omgsr: Command, memory: Any, tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "in" / "deep" / f"{number}.png", 5 + number, 7)
    draw(tmp_path / "in" / "b.jpg", 5, 7)
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "in" / "notes.doc").write_bytes(b"no image")
    memory.put(str(tmp_path / "in"), "/d/in", recursive=True)
    assert omgsr(tmp_path / "in", "-r", "-o", tmp_path / "out", "--compare").code == 1
    report = tmp_path / "run.jsonl"
    arguments = ["memory://d/in", "-r", "-o", "memory://d/out", "--compare", "--report", report]
    said = omgsr(*arguments, "--json")
    assert said.code == 1
    assert said.errors[0].startswith("error: memory://d/in/broken.png: ")
    names = [(record["input"], record["output"]) for record in said.records if record["status"] == "done"]
    assert ("memory://d/in/deep/0.png", "memory://d/out/deep/0.png") in names
    assert len(names) == 4
    folder = tmp_path / "out"
    assert stored(memory, "/d/out") == {name: (folder / name).read_bytes() for name in files_below(folder)}
    # Again: all results exist, and only the corrupt image is fetched.
    fetched: list[str] = []
    original = type(memory).get_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "get_file", lambda self, *a, **k: (fetched.append(a[0]), original(self, *a, **k)))
        said = omgsr(*arguments, "--json")
    assert sorted(record["status"] for record in said.records) == ["failed", *["skipped"] * 4]
    assert fetched == ["/d/in/broken.png"]
    # Other settings are another result, and what was there stays.
    before = stored(memory, "/d/out")
    said = omgsr("memory://d/in/b.jpg", "-o", "memory://d/out/", "--scale", "2")
    assert said.code == 1
    assert "memory://d/out/b.jpg exists, made from another input or model, or with other settings" in said.errors[0]
    assert stored(memory, "/d/out") == before
    assert omgsr("memory://d/in/b.jpg", "-o", "memory://d/out/", "--scale", "2", "--overwrite").code == 0
    assert stored(memory, "/d/out")["b.jpg"] != before["b.jpg"]
    # A repaired image is processed when failed ones are retried.
    memory.pipe_file("/d/in/broken.png", (tmp_path / "in/deep/0.png").read_bytes())
    said = omgsr(*arguments, "--retry-failed")
    assert (said.code, said.lines) == (0, ["memory://d/out/broken.png"])


def test_a_result_without_a_record_is_recognised(omgsr: Command, memory: Any, tmp_path: Path) -> None:
    memory.put_file(str(draw(tmp_path / "a.png", 5, 7)), "/d/a.png")
    arguments = ("memory://d/a.png", "-o", "memory://d/out.png", "--metadata", "none")
    assert omgsr(*arguments).code == 0
    assert "already finished, as memory://d/out.png" in omgsr(*arguments).err


def test_local_and_remote_paths_can_be_mixed(omgsr: Command, memory: Any, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 5, 7)
    assert omgsr(tmp_path / "a.png", "-o", "memory://d/out").code == 0
    assert omgsr(tmp_path / "a.png", "-o", tmp_path / "here").code == 0
    assert stored(memory, "/d/out") == {"a.png": (tmp_path / "here/a.png").read_bytes()}
    assert omgsr("memory://d/out/a.png", "-o", tmp_path / "back.png", "--scale", "1").code == 0
    said = omgsr("memory://d/out/a.png", "--dry-run")
    assert said.lines[0].startswith("memory://d/out/a.png 20x28 -> memory://d/out/a_x4.png 80x112")


def test_remote_lists_patterns_and_missing_files(memory: Any, tmp_path: Path) -> None:
    for name in ("x/a.png", "x/b.jpg", "y/a.png", "y/.hidden.png", "y/c.doc"):
        memory.pipe_file(f"/d/{name}", b"")
    memory.pipe_file("/d/list.txt", b"x/a.png\n# no\nmemory://d/y/a.png\ny/c.doc\n")
    (tmp_path / "here.txt").write_text("memory://d/x/b.jpg\ngone.png\n")

    def found(*inputs: str, **options: Any) -> tuple[list[str], list[str]]:
        plan = plan_jobs(inputs, "out", replace(OPTIONS, **options))
        pairs = [f"{job.source} {job.destination}" for job in plan.jobs]
        return pairs, [problem.message for problem in plan.problems]

    assert found("memory://d/list.txt")[0] == [
        "memory://d/x/a.png out/x/a.png",
        "memory://d/y/a.png out/y/a.png",
        "memory://d/y/c.doc out/y/c.doc.png",
    ]
    pairs, problems = found(str(tmp_path / "here.txt"))
    assert pairs == ["memory://d/x/b.jpg out/b.jpg"]
    assert "line 2: gone.png: no such file" in problems[0]
    assert found("memory://d/*/a.png")[0] == ["memory://d/x/a.png out/x/a.png", "memory://d/y/a.png out/y/a.png"]
    assert found("memory://d/z*.png")[1] == ["memory://d/z*.png: no image matches"]
    assert found("memory://d/gone.png")[1] == ["memory://d/gone.png: no such file"]
    assert found("memory://d", recursive=False)[1] == ["memory://d: no images in this folder"]
    for name in ("e.png", "x/f.png", "y/g.png"):
        memory.pipe_file(f"/left/{name}", b"")
    plan = plan_jobs(["memory://left"], "memory://left/y", replace(OPTIONS, recursive=False))
    assert plan.notes == ("1 subfolder is skipped, memory://left/x: use --recursive to search it too",)
    assert plan_jobs(["memory://left"], "out", OPTIONS).notes == ()
    assert found("memory://d/y", "memory://d/y/a.png")[0] == ["memory://d/y/a.png out/a.png"]
    plan = plan_jobs(["memory://d/x"], None, OPTIONS)
    assert [str(job.destination) for job in plan.jobs] == ["memory://d/x_x4/a.png", "memory://d/x_x4/b.jpg"]
    with pytest.raises(UsageError, match="overwritten by its own result"):
        plan_jobs(["memory://d/x/a.png"], "memory://d/x", OPTIONS)


def test_a_remote_file_that_appears_meanwhile_is_not_overwritten(memory: Any) -> None:
    place = Address("memory://d/a.png")

    def put_ours() -> None:
        with put_when_whole(place, overwrite=False) as path:
            path.write_bytes(b"ours")
            memory.pipe_file("/d/a.png", b"theirs")

    def fail() -> None:
        with put_when_whole(place, overwrite=True) as path:
            path.write_bytes(b"half")
            raise FileError(f"{path}: too long")

    with pytest.raises(ExistsError, match=r"^memory://d/a\.png: already exists$"):
        put_ours()
    assert memory.cat_file("/d/a.png") == b"theirs"
    with pytest.raises(FileError, match=r"^memory://d/a\.png: too long$"):
        fail()
    assert memory.cat_file("/d/a.png") == b"theirs"
    with put_when_whole(place, overwrite=True) as p:
        p.write_bytes(b"ours")
    assert memory.cat_file("/d/a.png") == b"ours"
    with local_copy(place) as copy:
        assert copy.path.read_bytes() == b"ours"
        assert copy.stamp
    assert not copy.path.exists()


def test_a_storage_without_atomic_puts_gets_a_temporary_name_first(tmp_path: Path) -> None:
    """As over SSH: what a reader finds under the result's name is the whole of it."""
    from fsspec.implementations.local import LocalFileSystem

    class Slow(LocalFileSystem):  # type: ignore[misc]
        protocol = "slow"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.removeprefix("slow://"))  # type: ignore[no-any-return]

        def put_file(self, local: str, path: str, **options: Any) -> None:
            assert path.endswith(".partial")
            super().put_file(local, path, **options)
            assert not (tmp_path / "a.png").exists()
            if broken:
                raise ConnectionResetError("the line went down")

    fsspec.register_implementation("slow", Slow, clobber=True)
    place = Address(f"slow://{tmp_path}/a.png")
    for broken in (True, False):
        try:
            with put_when_whole(place, overwrite=False) as path:
                path.write_bytes(b"whole")
        except FileError as error:
            assert "the line went down" in error.message
        assert files_below(tmp_path) == ([] if broken else ["a.png"])


def test_a_stream_of_jobs_equals_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}.png" for number in range(10)] + ["3.bmp", "x/a.png", "x/b.gif", "z.jpg"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    whole = plan_jobs([str(tmp_path / "in")], str(tmp_path / "out"), OPTIONS)
    assert (len(whole.jobs), len(whole.problems)) == (12, 1)
    monkeypatch.setattr(jobs, "_FIRST_INPUTS", 4)
    stream = find_jobs([str(tmp_path / "in")], str(tmp_path / "out"), OPTIONS)
    assert (len(stream.first), stream.total) == (4, None)
    found = list(stream)
    # Of two that clash, of which one was not among the first, one is processed.
    ours = [one for one in found if isinstance(one, Job)]
    assert {job.below for job in ours} - {job.below for job in whole.jobs} == {"3.bmp"}
    (problem,) = (one for one in found if isinstance(one, FileError))
    assert "3.png" in problem.message
    # Where results are written among the inputs, all are found first.
    (tmp_path / "in" / "9_x4.png").touch()
    beside = find_jobs([str(tmp_path / "in")], str(tmp_path / "in"), replace(OPTIONS, suffix="_x4"))
    assert beside.total == 12
    # A result that is found later is skipped, and reported once.
    monkeypatch.setattr(jobs, "_writes_among", lambda inputs, target: False)
    later = list(find_jobs([str(tmp_path / "in")], str(tmp_path / "in"), replace(OPTIONS, suffix="_x4")))
    assert [one.path.name for one in later if isinstance(one, FoundResult)] == ["9_x4.png"]
    assert sum(isinstance(one, Note) and "9_x4.png" in one.text for one in later) == 1


def test_many_files_are_counted_as_they_come(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(jobs, "_FIRST_INPUTS", 2)
    for number in range(5):
        draw(tmp_path / "in" / f"{number}.png", 3, 2)
    (tmp_path / "in" / "broken.bmp").write_bytes(b"")
    report = tmp_path / "run.jsonl"
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu", "--report", report, "--scale", "1")
    assert (said.code, len(said.lines), len(said.errors)) == (1, 5, 1)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert lines[0]["run"]["files"] is None
    assert [line["files"] for line in lines if "files" in line] == [6]
    told = Command(capfdbinary, "status")(report, "--json").records[0]
    assert (told["files"], told["finished"], told["left"]) == (6, 5, 0)


MANY = """
import json, sys
import fsspec
from fsspec.spec import AbstractFileSystem
from omgsr_cli.files.jobs import Job, JobOptions, find_jobs

listed = 0

class Many(AbstractFileSystem):
    protocol = "many"
    def ls(self, path, detail=True, **_):
        global listed
        path = path.strip("/")
        if path == "in":
            return [{"name": f"in/{n:04}", "type": "directory", "size": 0} for n in range(int(sys.argv[1]))]
        listed += 1000
        return [{"name": f"{path}/{n:06}.png", "type": "file", "size": 0} for n in range(1000)]
    def info(self, path, **_):
        return {"name": path, "type": "directory", "size": 0}

def peak_mib():
    # What getrusage says would be at least what the process had that started this one.
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

fsspec.register_implementation("many", Many)
options = JobOptions(recursive=True, suffix=None, size_suffix="_x4", output_format="png")
jobs = (one for one in find_jobs(["many://in"], "out", options) if isinstance(one, Job))
first = next(jobs)
told = {"first": str(first.destination), "listed": listed, "peak_at_first": peak_mib()}
told |= {"count": 1 + sum(1 for _ in jobs), "peak": peak_mib()}
print(json.dumps(told))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is asked for in another way there")
def test_many_paths_take_little_memory_and_the_first_comes_at_once() -> None:
    """As benchmarks/listing.py shows for a million and more."""
    done = subprocess.run([sys.executable, "-c", MANY, "25"], capture_output=True, text=True, check=True, timeout=600)
    told = json.loads(done.stdout)
    assert told["first"] == "out/0000/000000.png"
    assert told["count"] == 25_000
    assert told["listed"] <= 12_000
    assert told["peak"] < told["peak_at_first"] + 30
    assert told["peak"] < 150


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of this machine that speaks S3, with a bucket; listings come in pages of two."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: the extra `remote`")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[s3]' flask")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "known",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MOTO_S3_DEFAULT_MAX_KEYS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    system = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    system.mkdir("bucket")
    yield system
    server.stop()


SECRET = "do-not-tell-this"


@pytest.mark.long
def test_workers_read_and_write_s3(omgsr: Command, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omgsr_cli.engines.local.Processes", Pickled)
    for number in range(4):
        draw(tmp_path / "in" / f"{number % 2}" / f"{number}.png", 5 + number, 7)
    (tmp_path / "in" / "broken.png").write_bytes(b"")
    s3.put(str(tmp_path / "in"), "bucket/in", recursive=True)
    assert omgsr(tmp_path / "in", "-r", "-o", tmp_path / "out").code == 1
    report = tmp_path / "run.jsonl"
    arguments = ["s3://bucket/in", "-r", "-o", "s3://bucket/out", "--workers", "2", "--report", report, "-v"]
    said = omgsr(*arguments, "--device", "cpu")
    assert said.code == 1
    assert said.errors == ["error: s3://bucket/in/broken.png: the file is empty (0 bytes)"]
    names = files_below(tmp_path / "out")
    assert stored(s3, "bucket/out") == {name: (tmp_path / "out" / name).read_bytes() for name in names}
    again = omgsr(*arguments)
    assert (again.code, again.lines) == (1, [])
    assert "4 skipped, 1 failed" in again.err
    gone = omgsr("s3://nowhere/in", "-o", "s3://bucket/out")
    assert (gone.code, len(gone.errors)) == (1, 1)
    not_put = omgsr(tmp_path / "in" / "1" / "1.png", "-o", "s3://nowhere/out/a.png")
    assert not_put.errors[0].startswith("error: s3://nowhere/out/a.png: cannot be ")
    for told in (said, again, gone, not_put):
        assert SECRET not in told.err + told.out.decode()
    assert SECRET not in report.read_text()
    # A folder alone, and its own files only.
    assert len(omgsr("s3://bucket/in/0", "--dry-run").lines) == 2
    alone = omgsr("s3://bucket/in", "--dry-run")
    assert "no images" not in alone.err
    (note,) = [line for line in alone.err.splitlines() if "2 subfolders" in line]
    assert "s3://bucket/in/0" in note
    assert "--recursive" in note


class Bucket(BaseHTTPRequestHandler):
    """Lists one bucket as Google Cloud Storage does, two names a page."""

    names = ("in/.hidden.png", "in/a.png", "in/b/", "in/b/c.png", "in/d.png", "in/e.jpg", "into/f.png")

    def do_GET(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        names = [name for name in self.names if name.startswith(asked["prefix"])]
        if asked.get("delimiter") == "/":
            below = {name: name.removeprefix(asked["prefix"]).partition("/") for name in names}
            names = [*dict.fromkeys(asked["prefix"] + "".join(parts[:2]) for parts in below.values())]
        start = int(asked.get("pageToken", 0))
        now = names[start : start + 2]
        folders = [name for name in now if name.endswith("/") and "delimiter" in asked]
        page: dict[str, Any] = {"items": [{"name": name} for name in now if name not in folders], "prefixes": folders}
        if start + 2 < len(names):
            page["nextPageToken"] = str(start + 2)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(page).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_a_google_bucket_is_listed_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed: the extra `remote`")
    with QuietServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        for name in ("gs", "gcs"):
            monkeypatch.setitem(fsspec.config.conf, name, {"token": "anon"})
        gcsfs.GCSFileSystem.clear_instance_cache()
        folder = Address("gs://bucket/in")
        assert [str(one) for one in list_files(folder, recursive=False)] == [
            "gs://bucket/in/a.png",
            "gs://bucket/in/d.png",
            "gs://bucket/in/e.jpg",
        ]
        below: list[Address] = []
        assert [one.name for one in list_files(folder, recursive=False, on_folder=below.append)][:1] == ["a.png"]
        assert [str(one) for one in below] == ["gs://bucket/in/b"]
        listed = [str(one.relative_to(folder)) for one in list_files(folder, recursive=True)]
        assert listed == ["a.png", "b/c.png", "d.png", "e.jpg"]
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.shutdown()
