"""`plan_jobs`: inputs, names of results, conflicts and refusals."""

from __future__ import annotations

import glob
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omgsr_cli.errors import UsageError
from omgsr_cli.files import folders, jobs
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX, EntryKeys, natural_key
from omgsr_cli.files.inputs import FoundInput
from omgsr_cli.files.jobs import Job, JobOptions, JobPlan, plan_jobs
from omgsr_cli.files.naming import comparison_path, size_suffix
from omgsr_cli.options import SizeOptions

needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
needs_case = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names that differ in case are one file")


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str) -> None:
    """Make empty files and their folders below the working folder."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def plan(*inputs: str, output: str | None = None, **options: Any) -> JobPlan:
    """Plan with the command line's defaults."""
    defaults = {"recursive": False, "suffix": None, "size_suffix": "_x4", "output_format": "same"}
    return plan_jobs(inputs, output, JobOptions(**(defaults | options)))


def pairs(planned: JobPlan) -> dict[str, str]:
    """The jobs of a plan without problems, in order, with slashes."""
    assert [problem.message for problem in planned.problems] == []
    return {
        "-" if job.source is None else job.source.as_posix(): "-"
        if job.destination is None
        else job.destination.as_posix()
        for job in planned.jobs
    }


def messages(planned: JobPlan) -> list[str]:
    return [problem.message for problem in planned.problems]


# Names of results


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, "a_x4.png"),
        ({"scale": 2.5}, "a_x2.5.png"),
        ({"size": (1080, 1920)}, "a_1920x1080.png"),
        ({"long_side": 2000}, "a_2000px.png"),
    ],
)
def test_a_result_is_placed_beside_its_input_with_its_size(sizes: dict[str, Any], expected: str) -> None:
    make("in/a.png")
    suffix = size_suffix(SizeOptions(**sizes), 4.0)
    assert pairs(plan("in/a.png", size_suffix=suffix)) == {"in/a.png": f"in/{expected}"}


EXTENSIONS = [
    ("a.png", "same", "a_x4.png"),
    ("a.JPG", "same", "a_x4.JPG"),
    ("a.jpeg", "same", "a_x4.jpeg"),
    ("a.jfif", "same", "a_x4.jfif"),
    ("a.mpo", "same", "a_x4.jpg"),
    ("a.apng", "same", "a_x4.png"),
    ("a.webp", "same", "a_x4.webp"),
    ("a.tif", "same", "a_x4.tif"),
    ("a.TIFF", "same", "a_x4.TIFF"),
    ("a.avif", "same", "a_x4.avif"),
    ("a.bmp", "same", "a_x4.png"),
    ("a.gif", "same", "a_x4.png"),
    ("a.ppm", "same", "a_x4.png"),
    ("a.jp2", "same", "a_x4.png"),
    ("a.png", "jpg", "a_x4.jpg"),
    ("a.jpeg", "jpg", "a_x4.jpeg"),
    ("a.tiff", "tiff", "a_x4.tiff"),
    ("a.jpg", "tiff", "a_x4.tif"),
    ("a.jpg", "webp", "a_x4.webp"),
    ("a.jpg", "avif", "a_x4.avif"),
    ("a.jpg", "png", "a_x4.png"),
    ("a.b.jpg", "same", "a.b_x4.jpg"),
    ("scan", "same", "scan_x4.png"),
    ("IMG.0001", "same", "IMG.0001_x4.png"),
    (".hidden.jpg", "same", ".hidden_x4.jpg"),
    (".jpg", "same", ".jpg_x4.png"),
    ("line\nbreak.png", "same", "line\nbreak_x4.png"),
    ("ä ö.png", "same", "ä ö_x4.png"),
]


def test_extension_follows_the_format() -> None:
    for name, output_format, expected in EXTENSIONS:
        make(name)
        assert pairs(plan(name, output_format=output_format)) == {name: expected}


def test_a_suffix_is_not_a_path() -> None:
    make("a.png")
    for suffix in ("/x", "a/b", "..\\x", "\0"):
        with pytest.raises(UsageError, match="--suffix"):
            plan("a.png", suffix=suffix)


def test_results_of_a_folder_are_in_a_folder_beside_it() -> None:
    make("in/a.png", "in/b.gif", "in/sub/c.jpg")
    assert pairs(plan("in")) == {"in/a.png": "in_x4/a.png", "in/b.gif": "in_x4/b.png"}
    assert pairs(plan("in/", recursive=True, suffix="_big")) == {
        "in/a.png": "in_x4/a_big.png",
        "in/b.gif": "in_x4/b_big.png",
        "in/sub/c.jpg": "in_x4/sub/c_big.jpg",
    }


def test_folders_without_a_name_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("in/a.png", "in/sub/b.png")
    beside = (tmp_path / "in_x4").resolve().as_posix()
    monkeypatch.chdir("in")
    assert pairs(plan(".")) == {"a.png": f"{beside}/a.png"}
    assert pairs(plan("sub/..")) == {"sub/../a.png": f"{beside}/a.png"}


def test_the_root_folder_needs_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    found = FoundInput(Path("/a.png"), Path("a.png"), Path("/"))
    monkeypatch.setattr(jobs, "search_inputs", lambda *_, **__: iter((found,)))
    with pytest.raises(UsageError, match="cannot be written beside") as caught:
        plan("/")
    assert "-o FOLDER" in (caught.value.hint or "")
    assert plan("/", output="out").jobs == (Job(Path("/a.png"), Path("out/a.png")),)


# Subfolders without --recursive


def test_ignored_subfolders_with_images_are_noted_once() -> None:
    make(
        "in/a.png",
        "in/2/b.png",
        "in/10/deep/c.jpg",
        "in/notes/d.txt",
        "in/.hidden/e.png",
        "in/out/f.png",
    )
    Path("in/empty").mkdir()
    (note,) = plan("in", output="in/out").notes
    assert note == f"2 subfolders are skipped, the first is {Path('in/2')}: use --recursive to search them too"
    (note,) = plan("in", "in/out", "in/2", output="elsewhere").notes
    assert note == f"1 subfolder is skipped, {Path('in/10')}: use --recursive to search it too"
    assert plan("in", output="in/out", recursive=True).notes == ()
    assert plan("in/10/deep", "in/a.png").notes == ()
    # Of folders that a pattern matches too: all in one note.
    make("in/2/x/h.png", "in/10/i.png")
    (note,) = plan("in/*").notes
    assert note.startswith("2 subfolders are skipped, the first is ")


def test_a_folder_without_images_reports_images_in_subfolders() -> None:
    make("in/sub/deep/a.png", "none/sub/a.txt")
    (some,), (none,) = plan("in").problems, plan("none").problems
    assert (some.hint, none.hint) == ("its subfolders contain some: use --recursive", None)


def test_the_search_of_ignored_subfolders_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    make("in/a.png", *(f"in/{number}/{name}" for number in range(9) for name in ("a.png", "b.png", "c.png")))
    monkeypatch.setattr(folders, "_MOST_LOOKS", 11)
    (note,) = plan("in").notes
    # Of each the folder itself and its first entry.
    assert note.startswith(f"at least 5 subfolders are skipped, the first is {Path('in/0')}: ")
    monkeypatch.setattr(folders, "_MOST_LOOKS", 3)
    assert plan("in").notes == (f"at least 1 subfolder is skipped, {Path('in/0')}: use --recursive to search it too",)


# -o


@pytest.mark.parametrize("output", ["out", "out/", "out.d", "out/deep", "there", "there.png", "."])
def test_output_folder_keeps_names(output: str) -> None:
    make("in/a.png", "in/b.gif")
    Path("there").mkdir()
    Path("there.png").mkdir()
    folder = "" if output == "." else output.rstrip("/") + "/"
    assert pairs(plan("in/a.png", "in/b.gif", output=output)) == {
        "in/a.png": f"{folder}a.png",
        "in/b.gif": f"{folder}b.png",
    }
    assert pairs(plan("in/a.png", output=output, suffix="_x")) == {"in/a.png": f"{folder}a_x.png"}


def test_trailing_slash_makes_a_folder_of_any_name() -> None:
    make("a.jpg")
    assert pairs(plan("a.jpg", output="out.png/")) == {"a.jpg": "out.png/a.jpg"}


def test_several_folders_keep_their_trees_directly_below_the_output() -> None:
    make("one/a.png", "one/sub/b.png", "two/c.png")
    assert pairs(plan("one", "two", output="out", recursive=True)) == {
        "one/a.png": "out/a.png",
        "one/sub/b.png": "out/sub/b.png",
        "two/c.png": "out/c.png",
    }


def test_output_file() -> None:
    make("a.bmp")
    for output in ("r.png", "new/r.JPEG", "r.tif", "r.tiff", "r.webp", "r.avif", "r.jpg"):
        assert pairs(plan("a.bmp", output=output)) == {"a.bmp": output}


def test_an_output_file_accepts_a_glob_or_list_of_one_image() -> None:
    make("in/a.bmp")
    Path("l.txt").write_text("in/a.bmp\n")
    assert pairs(plan("in/*.bmp", output="r.png")) == {"in/a.bmp": "r.png"}
    assert pairs(plan("l.txt", "in/a.bmp", output="r.png")) == {"in/a.bmp": "r.png"}


@pytest.mark.parametrize(
    ("output", "output_format", "match"),
    [
        ("r.png", "jpg", "-o r.png and --format jpg disagree"),
        ("r.tif", "png", "disagree"),
        ("r.gif", "same", r"\.gif is not an output format"),
        ("r.BMP", "same", r"\.bmp is not an output format"),
        ("r.heic", "same", r"\.heic is not an output format"),
        ("x.xyz", "same", r"\.xyz is not an output format"),
        ("", "same", "-o is empty"),
        ("https://example.org/r.png", "same", "cannot be written to a web server"),
        ("nowhere://bucket/r.png", "same", "storage nowhere is unknown"),
        ("file", "same", "not a folder"),
        ("b.png/", "same", "not a folder"),
    ],
)
def test_invalid_outputs_are_refused(output: str, output_format: str, match: str) -> None:
    make("a.png", "b.png", "file")
    with pytest.raises(UsageError, match=match):
        plan("a.png", output=output, output_format=output_format)


@pytest.mark.parametrize("output", ["r.png", "-"])
def test_one_output_for_several_inputs_is_refused(output: str) -> None:
    make("a.png", "b.png", "in/c.png")
    for inputs in (["a.png", "b.png"], ["a.png", "gone.png"], ["*.png"], ["in"]):
        with pytest.raises(UsageError, match="is for one image, but") as caught:
            plan(*inputs, output=output)
        assert caught.value.hint


def test_output_file_of_a_missing_input_is_that_inputs_problem_only() -> None:
    planned = plan("gone.png", output="r.png")
    assert planned.jobs == ()
    assert messages(planned) == ["gone.png: no such file"]


def test_streams() -> None:
    make("a.png")
    assert plan("-").jobs == (Job(None, None),)
    assert plan("-", output="-").jobs == (Job(None, None),)
    assert plan("-", output="r.png").jobs == (Job(None, Path("r.png")),)
    assert plan("a.png", output="-").jobs == (Job(Path("a.png"), None),)


def test_standard_input_is_alone_and_has_no_name() -> None:
    make("a.png", "-")
    with pytest.raises(UsageError, match="only input"):
        plan("-", "a.png")
    with pytest.raises(UsageError, match="no name"):
        plan("-", output="out/")
    assert pairs(plan("./-")) == {"-": "-_x4.png"}


# Folders


def test_a_folder_gives_images_and_nothing_hidden() -> None:
    make(*(f"in/{index}{suffix}" for index, suffix in enumerate(FORMAT_OF_SUFFIX, 10)))
    make("in/1.JPG", "in/.b.png", "in/.a.png.12-ab.partial", "in/t.txt", "in/noext", "in/.hidden/c.png", "in/x.json")
    found = [Path(source).suffix.lower() for source in pairs(plan("in", output="out", recursive=True))]
    assert found == [".jpg", *FORMAT_OF_SUFFIX]


def test_a_hidden_folder_is_taken_when_named() -> None:
    make(".in/a.png")
    assert pairs(plan(".in", output="out")) == {".in/a.png": "out/a.png"}


def test_order_is_as_named_and_natural_in_folders() -> None:
    make("in/img10.png", "in/img2.png", "in/IMG3.png", "in/d10/a.png", "in/d9/a.png", "z.png", "b10.png", "b9.png")
    assert list(pairs(plan("z.png", "in", "b10.png", "b9.png", output="out", recursive=True))) == [
        "z.png",
        "in/img2.png",
        "in/IMG3.png",
        "in/img10.png",
        "in/d9/a.png",
        "in/d10/a.png",
        "b10.png",
        "b9.png",
    ]


@pytest.mark.parametrize("output", ["in/out", "in/sub/../out/", "in/out/deep"])
def test_the_output_folder_inside_the_input_is_not_an_input(output: str) -> None:
    make("in/a.png", "in/sub/b.png", "in/out/deep/a.png", "in/out/deep/sub/b.png")
    sources = list(pairs(plan("in", output=output, recursive=True)))
    assert sources == ["in/a.png", "in/sub/b.png"]
    assert list(pairs(plan("in/**", output=output))) == sources


def test_an_output_folder_alone_is_not_an_input() -> None:
    make("in/out/a.png")
    planned = plan("in", output="in/out")
    assert messages(planned) == ["in: no images in this folder"]
    assert planned.problems[0].hint is None


def test_an_input_inside_the_output_folder_is_searched() -> None:
    make("out/sub/a.png")
    assert pairs(plan("out/sub", output="out")) == {"out/sub/a.png": "out/a.png"}
    assert pairs(plan("out", output="out", suffix="_x4", recursive=True)) == {"out/sub/a.png": "out/sub/a_x4.png"}


@needs_links
def test_loops_of_links_end_and_real_names_win() -> None:
    make("in/b/1.png", "in/c/2.png", "elsewhere/3.png")
    for folder in ("in", "in/b", "in/c"):
        for name in ("up", "up2"):
            Path(folder, name).symlink_to("..", target_is_directory=True)
        Path(folder, "self").symlink_to(".", target_is_directory=True)
    Path("in/a").symlink_to("b", target_is_directory=True)
    Path("in/other").symlink_to("../elsewhere", target_is_directory=True)
    Path("in/x.png").symlink_to("x.png")
    planned = plan("in", output="out", recursive=True)
    destinations = {job.destination.as_posix() for job in planned.jobs if job.destination}
    assert {"out/b/1.png", "out/c/2.png", "out/other/3.png"} <= destinations
    assert len(destinations) == 3
    assert messages(planned) == ["in/x.png: its symbolic links form a loop"]
    assert len(plan("in/**/*.png", output="out").jobs) == 3


@needs_links
def test_output_reached_by_a_link_is_not_an_input() -> None:
    make("in/a.png", "out/a.png")
    Path("in/results").symlink_to("../out", target_is_directory=True)
    assert list(pairs(plan("in", output="out", recursive=True))) == ["in/a.png"]
    assert list(pairs(plan("in/*", output="out"))) == ["in/a.png"]


def test_a_folder_that_cannot_be_read_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    make("in/a.png", "in/closed/b.png", "in/z/c.png")
    listed = os.scandir

    def scandir(path: Path) -> Any:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    planned = plan("in", recursive=True)
    assert [job.source for job in planned.jobs] == [Path("in/a.png"), Path("in/z/c.png")]
    assert messages(planned) == ["in/closed: no permission to read it"]


# Files that cannot be used


def test_missing_inputs_are_problems_and_the_others_continue() -> None:
    make("a.png")
    planned = plan("gone.png", "a.png", "none/*.png", "gone.txt", "a.png/b.png", "x" * 300 + ".png")
    assert [job.source for job in planned.jobs] == [Path("a.png")]
    assert [message.split(": ")[-1] for message in messages(planned)] == [
        "no such file",
        "no such file",
        "no such file",
        "no such file",
        "the name is too long",
    ]


@needs_links
def test_a_broken_link_is_a_problem() -> None:
    make("in/a.png")
    Path("in/b.png").symlink_to("nowhere.png")
    for planned in (plan("in"), plan("in/*.png"), plan("in/a.png", "in/b.png")):
        assert len(planned.jobs) == 1
        assert messages(planned) == ["in/b.png: a link to a file that does not exist"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_and_devices_are_problems() -> None:
    make("in/a.png")
    os.mkfifo("in/pipe.png")
    Path("l.txt").write_text("in/pipe.png\n/dev/null\n")
    assert messages(plan("in")) == ["in/pipe.png: a device or pipe, not a file"]
    assert messages(plan("/dev/zero")) == ["/dev/zero: a device or pipe, not a file"]
    assert messages(plan("l.txt")) == [
        "l.txt, line 1: in/pipe.png: a device or pipe, not a file",
        "l.txt, line 2: /dev/null: a device or pipe, not a file",
    ]


@pytest.mark.parametrize(
    ("url", "wrong", "hint"),
    [
        ("file:///tmp/a.png", "file:///tmp/a.png is a path", "use the path without file://"),
        ("nowhere://x/*.png", "the kind of storage nowhere is unknown", "use for example s3://, gs:// or hf://"),
    ],
)
def test_unknown_protocols_are_refused(url: str, wrong: str, hint: str) -> None:
    make("a.png")
    with pytest.raises(UsageError, match=wrong) as caught:
        plan("a.png", url)
    assert caught.value.hint == hint


@pytest.mark.skipif(sys.platform == "win32", reason="names have no colon there")
def test_an_existing_path_that_looks_like_a_url_is_a_path() -> None:
    make("http:/x/a.png")
    Path("l.txt").write_text("http://x/a.png")
    assert pairs(plan("http://x/a.png", "l.txt", output="out")) == {"http:/x/a.png": "out/a.png"}


@pytest.mark.parametrize(("inputs", "match"), [([], "no input"), ([""], "input is empty"), (["a.png", ""], "empty")])
def test_an_empty_input_is_refused(inputs: list[str], match: str) -> None:
    make("a.png")
    with pytest.raises(UsageError, match=match):
        plan(*inputs)


def test_messages_stay_one_line() -> None:
    make("in\n/x.md")
    planned = plan("gone\n.png", "in\n", "no\n*.png")
    assert len(planned.problems) == 3
    assert all("\n" not in message for message in messages(planned))


# Globs


def test_globs_are_expanded_without_a_shell() -> None:
    make("in/a10.png", "in/a9.png", "in/b.jpg", "in/.a1.png", "in/a.txt", "in/sub/a5.png")
    assert pairs(plan("in/a*.png")) == {"in/a9.png": "in/a9_x4.png", "in/a10.png": "in/a10_x4.png"}
    assert list(pairs(plan("in/[ab]*.*"))) == ["in/a9.png", "in/a10.png", "in/b.jpg"]
    assert list(pairs(plan("in/a?.png"))) == ["in/a9.png"]
    assert list(pairs(plan("i*/.a*.png"))) == ["in/.a1.png"]
    assert messages(plan("in/*.webp")) == ["in/*.webp: no image matches"]
    assert messages(plan("in/*.txt")) == ["in/*.txt: no image matches"]


def test_globs_keep_their_tree_below_the_fixed_part() -> None:
    make("in/1/a.png", "in/2/a.png", "in/2/deep/a.png", "in/a.png")
    assert pairs(plan("in/*/a.png", output="out")) == {"in/1/a.png": "out/1/a.png", "in/2/a.png": "out/2/a.png"}
    everything = {
        "in/a.png": "out/a.png",
        "in/1/a.png": "out/1/a.png",
        "in/2/a.png": "out/2/a.png",
        "in/2/deep/a.png": "out/2/deep/a.png",
    }
    for pattern in ("in/**", "in/**/*.png", "in/**/**/a.png", "./in/**/[a]*"):
        assert pairs(plan(pattern, output="out")) == everything
    assert pairs(plan("in/**/deep/*", output="out")) == {"in/2/deep/a.png": "out/2/deep/a.png"}


def test_folders_that_a_glob_matches_are_input_folders() -> None:
    make("album1/a.png", "album2/b.png", "album3/notes.md", "album2/sub/c.png")
    assert pairs(plan("album*")) == {"album1/a.png": "album1_x4/a.png", "album2/b.png": "album2_x4/b.png"}
    assert len(plan("album*", recursive=True).jobs) == 3
    assert pairs(plan("**/sub")) == {"album2/sub/c.png": "album2/sub_x4/c.png"}
    assert pairs(plan("**/*", output="out"))["album2/sub/c.png"] == "out/album2/sub/c.png"


def test_an_existing_file_is_not_a_glob() -> None:
    make("a[1].png", "a1.png")
    assert pairs(plan("a[1].png")) == {"a[1].png": "a[1]_x4.png"}
    assert pairs(plan("a[[]*.png")) == {"a[1].png": "a[1]_x4.png"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["a", "ab", "*", "?", "**", "[ab]", "a*", "b.png", "*.png", "sub"]),
        min_size=1,
        max_size=5,
    ).filter(lambda parts: glob.has_magic("".join(parts)))
)
def test_globs_match_as_the_standard_library_does(tmp_path: Path, parts: list[str]) -> None:
    make("a/b.png", "a/sub/b.png", "ab/a.png", "ab/.b.png", "b.png", "sub/a/b/x.png", "sub/.hid/y.png", "c/a")
    pattern = os.path.join(*parts)
    expected = {
        os.path.abspath(path)
        for path in glob.glob(pattern, recursive=True)
        if os.path.isfile(path) and path.endswith(".png")
    }
    planned = plan(pattern)
    found = {os.path.abspath(job.source) for job in planned.jobs if job.source is not None}
    found |= {os.path.abspath(path) for path in planned.earlier_results}
    # A folder that matches is an input folder here.
    for name in glob.glob(pattern, recursive=True):
        expected |= {os.path.abspath(path) for path in glob.glob(os.path.join(name, "*.png"))}
    assert found == expected


# Lists


def test_a_list_names_paths_relative_to_itself() -> None:
    make("data/a.png", "data/b/c.jpg", "data/folder/d.png", "data/#1.png")
    listing = "\n# a comment\n  a.png \nb/c.jpg\r\n\nfolder\n./#1.png"
    Path("data/list.TXT").write_bytes(listing.encode())
    assert pairs(plan("data/list.TXT")) == {
        "data/a.png": "data/a_x4.png",
        "data/b/c.jpg": "data/b/c_x4.jpg",
        "data/folder/d.png": "data/folder_x4/d.png",
        "data/#1.png": "data/#1_x4.png",
    }
    assert pairs(plan("data/list.TXT", output="out")) == {
        "data/a.png": "out/a.png",
        "data/b/c.jpg": "out/b/c.jpg",
        "data/folder/d.png": "out/d.png",
        "data/#1.png": "out/#1.png",
    }


def test_results_of_a_list_never_leave_the_output_folder(tmp_path: Path) -> None:
    make("lists/x.png", "data/a.png", "data/b.png")
    Path("lists/l.txt").write_text(f"../data/a.png\n{tmp_path}/data/b.png\n../lists/x.png\n")
    destinations = [job.destination for job in plan("lists/l.txt", output="out").jobs]
    assert destinations == [Path("out/a.png"), Path("out/b.png"), Path("out/x.png")]


def test_problems_of_a_list_name_the_line() -> None:
    make("a.png", "other.txt")
    Path("l.txt").write_text("a.png\n\ngone.png\nnowhere://x.org/a.png\nother.txt\n")
    planned = plan("l.txt")
    assert len(planned.jobs) == 1
    assert messages(planned) == [
        "l.txt, line 3: gone.png: no such file",
        "l.txt, line 4: nowhere://x.org/a.png: the kind of storage nowhere is unknown",
        "l.txt, line 5: other.txt: a list in a list is not read",
    ]
    assert "list's own folder" in (planned.problems[0].hint or "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_lists(encoding: str) -> None:
    make("ä€.png")
    Path("l.txt").write_bytes("ä€.png\r\n".encode(encoding))
    assert pairs(plan("l.txt")) == {"ä€.png": "ä€_x4.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode there")
def test_names_need_not_be_unicode() -> None:
    Path(os.fsdecode(b"\xff.png")).touch()
    Path("l.txt").write_bytes(b"\xff.png\n")
    assert len(plan("l.txt").jobs) == 1
    assert len(plan(".", output="out").jobs) == 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "contains no images"),
        (b"# x\n\n", "contains no images"),
        (b"PK\0\0", "plain text"),
        (b"\xff\xfea", "plain"),
    ],
)
def test_empty_or_unreadable_lists_are_problems(content: bytes, match: str) -> None:
    Path("l.txt").write_bytes(content)
    (message,) = messages(plan("l.txt"))
    assert message.startswith("l.txt: ")
    assert match in message


def test_a_folder_may_be_named_like_a_list() -> None:
    make("in.txt/a.png")
    assert pairs(plan("in.txt", output="out")) == {"in.txt/a.png": "out/a.png"}


# Duplicates, conflicts, originals


def test_duplicates_are_processed_once_under_their_first_name(tmp_path: Path) -> None:
    make("in/a.png", "in/sub/b.png")
    Path("l.txt").write_text("in/a.png\n")
    inputs = ["in/a.png", "./in/a.png", "in/sub/../a.png", str(tmp_path / "in/a.png"), "in", "in/*.png", "l.txt"]
    assert pairs(plan(*inputs)) == {"in/a.png": "in/a_x4.png"}
    assert pairs(plan("in", "in/a.png", "in/sub", recursive=True)) == {
        "in/a.png": "in_x4/a.png",
        "in/sub/b.png": "in_x4/sub/b.png",
    }


@needs_links
def test_linked_folders_are_the_same_folder_and_linked_images_are_names() -> None:
    make("in/a.png")
    Path("link").symlink_to("in", target_is_directory=True)
    Path("in/b.png").symlink_to("a.png")
    assert pairs(plan("link", "in")) == {"link/a.png": "link_x4/a.png", "link/b.png": "link_x4/b.png"}


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (["x/a.png", "y/a.png"], {"output": "out"}),
        (["x", "y"], {"output": "out"}),
        (["x/a.png", "x/a.gif"], {}),
        (["x/a.png", "x/a.jpg"], {"output_format": "webp"}),
        (["x/a.png", "y/a.png"], {"output": "y/../out/"}),
    ],
)
def test_two_inputs_for_one_output_are_reported_and_the_others_continue(
    inputs: list[str], options: dict[str, Any]
) -> None:
    make("x/a.png", "y/a.png")
    make(*(name for name in inputs if "." in name))
    make("x/clear.png")
    planned = plan(*inputs, "x/clear.png", **options)
    [clash] = planned.problems
    assert "would both become" in clash.message
    assert all(str(Path(name)) in clash.message for name in inputs)
    assert "separate runs" in (clash.hint or "")
    assert [job.source for job in planned.jobs] == [Path("x/clear.png")]


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (["in/a.png"], {"output": "in/a.png"}),
        (["in/a.png"], {"output": "in/../in/a.png"}),
        (["in/a.png"], {"output": "in"}),
        (["in"], {"output": "in"}),
        (["in"], {"output": "in/", "recursive": True}),
        (["in/*.png"], {"output": "in"}),
        (["in/a.png"], {"suffix": ""}),
    ],
)
def test_input_equal_to_output_is_refused(inputs: list[str], options: dict[str, Any]) -> None:
    make("in/a.png")
    with pytest.raises(UsageError, match="overwritten by its own result"):
        plan(*inputs, **options)


@needs_links
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_input_equal_to_output_by_a_link_is_refused(link: Callable[[str, str], None], tmp_path: Path) -> None:
    make("in/a.png")
    Path("out").mkdir()
    link(str(tmp_path / "in/a.png"), "out/a.png")
    with pytest.raises(UsageError, match="same file as"):
        plan("in", output="out")
    with pytest.raises(UsageError, match="same file as"):
        plan("in/a.png", output="out/a.png")


@needs_links
def test_input_equal_to_output_by_a_linked_folder_is_refused() -> None:
    make("in/a.png")
    Path("out").symlink_to("in", target_is_directory=True)
    with pytest.raises(UsageError, match="overwritten"):
        plan("in", output="out")


def test_a_folder_is_its_own_output_with_a_suffix_or_format() -> None:
    make("in/a.jpg")
    assert pairs(plan("in", output="in", suffix="_x4")) == {"in/a.jpg": "in/a_x4.jpg"}
    assert pairs(plan("in", output="in", output_format="png")) == {"in/a.jpg": "in/a.png"}


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (["a.jpg", "a_x4.jpg", "b.png", "b_x4.png"], {}),
        (["*.*g"], {}),
        (["b_x4.png", "a_x4.jpg", "b.png", "a.jpg"], {}),
        (["."], {"output": ".", "suffix": "_x4"}),
    ],
)
def test_results_of_an_earlier_run_are_not_enlarged_again(inputs: list[str], options: dict[str, Any]) -> None:
    make("a.jpg", "a_x4.jpg", "b.png", "b_x4.png")
    planned = plan(*inputs, **options)
    assert sorted(pairs(planned).items()) == [("a.jpg", "a_x4.jpg"), ("b.png", "b_x4.png")]
    assert sorted(planned.earlier_results) == [Path("a_x4.jpg"), Path("b_x4.png")]


def test_before_after_images_of_an_earlier_run_are_not_enlarged() -> None:
    make("a.jpg", "a_x4.jpg", "b_compare.png")
    compared = comparison_path(Path("a_x4.jpg"))
    compared.touch()
    planned = plan("*.*")
    assert list(pairs(planned)) == ["a.jpg", "b_compare.png"]
    assert set(planned.earlier_results) == {Path("a_x4.jpg"), compared}


def test_an_earlier_result_named_alone_is_an_input() -> None:
    make("a_x4.jpg")
    assert pairs(plan("a_x4.jpg")) == {"a_x4.jpg": "a_x4_x4.jpg"}


@needs_case
def test_names_that_differ_in_case_are_two_files() -> None:
    make("in/a.png", "in/A.png")
    assert len(plan("in", output="out").jobs) == 2


def test_names_that_the_file_system_treats_as_equal_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    composed, decomposed = (unicodedata.normalize(form, "x/Ä.png") for form in ("NFC", "NFD"))
    make("x/a.png", "y/A.png", composed)
    assert EntryKeys()(Path(composed)) != EntryKeys()(Path(decomposed))
    monkeypatch.setattr(folders, "_NAMES_FOLD", True)
    assert EntryKeys()(Path(composed)) == EntryKeys()(Path(decomposed)) == EntryKeys()(Path(composed.lower()))
    planned = plan("x/a.png", "y/A.png", output="out")
    assert not planned.jobs
    assert "would both become" in messages(planned)[0]


# Properties

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8)


@given(st.lists(st.lists(names, min_size=1, max_size=4).map(lambda parts: Path(*parts)), max_size=8))
def test_natural_key_is_a_total_order(paths: list[Path]) -> None:
    backwards = paths[::-1]
    assert sorted(backwards, key=natural_key) == sorted(paths, key=natural_key)
    assert len({natural_key(path) for path in paths}) == len(set(paths))


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=20), names)
def test_natural_key_counts(numbers: list[int], name: str) -> None:
    prefix = name.rstrip("0123456789") or "x"
    paths = [Path(f"{prefix}{number}.png") for number in numbers]
    expected = [Path(f"{prefix}{number}.png") for number in sorted(numbers)]
    if not any(set(str(path)) & {"\\", ":"} for path in paths):
        assert sorted(paths, key=natural_key) == expected


def test_natural_key_of_very_long_numbers() -> None:
    assert natural_key(Path("9" * 5000)) < natural_key(Path("1" + "0" * 5000))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(
        st.tuples(
            st.lists(st.sampled_from(["s", "t 1", "é"]), max_size=2),
            st.text(st.sampled_from("aB1\n -é*[#"), min_size=1, max_size=4),
            st.sampled_from([".png", ".JPG", ".gif", ".txt"]),
        ),
        min_size=1,
        max_size=6,
        unique_by=str,
    ),
    suffix=st.sampled_from([None, "", "_y"]),
    output=st.sampled_from([None, "out", "in/out"]),
    output_format=st.sampled_from(["same", "png", "webp"]),
)
def test_any_tree_is_planned_completely(
    tmp_path_factory: pytest.TempPathFactory,
    data: list[tuple[list[str], str, str]],
    suffix: str | None,
    output: str | None,
    output_format: str,
) -> None:
    os.chdir(tmp_path_factory.mktemp("tree"))
    make(*("/".join(["in", *parts, stem + extension]) for parts, stem, extension in data))
    images = {Path(*["in", *parts, stem + ext]) for parts, stem, ext in data if ext != ".txt"}
    options: dict[str, Any] = {"recursive": True, "suffix": suffix, "output_format": output_format}
    extensions = {".png": ".png", ".JPG": ".JPG", ".gif": ".png"}
    if output_format != "same":
        extensions = dict.fromkeys(extensions, f".{output_format}")
    written = [path.with_suffix(extensions[path.suffix]) for path in images]
    planned = plan("in", output=output, **options)
    if len(set(written)) < len(written):
        assert len(planned.problems) == sum(written.count(path) > 1 for path in set(written))
        assert len(planned.jobs) == sum(written.count(path) == 1 for path in set(written))
        return
    assert {job.source for job in planned.jobs} == images
    assert len({job.destination for job in planned.jobs}) == len(planned.jobs)
    assert bool(planned.problems) == (not images)
    for job in planned.jobs:
        assert job.source is not None
        assert job.destination is not None
        below = job.destination.relative_to(output or "in_x4")
        assert below.parent == job.source.relative_to("in").parent
        assert below.stem == job.source.stem + (suffix or "")
