"""Folders and patterns: every image that can be read and nothing else, and a note of what was skipped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image, features

from refcli.errors import UsageError
from refcli.inference.output_folder import OutputFolder
from refcli.inference.output_manifest import DRAWINGS
from refcli.inference.requests import read_requests

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "
needs_odd_names = pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not have")
needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


def make(folder: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def found(*inputs: object, exclude: Path | None = None) -> tuple[list[str], str]:
    """The images of the inputs, and the notes."""
    notes: list[str] = []
    requests = read_requests([str(name) for name in inputs], ["x"], exclude=exclude, on_note=notes.append)
    return [request.image for request in requests], "\n".join(notes)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sidecars_hidden_and_system_entries_are_skipped_and_counted(here):
    make(here, "in/a.jpg", "in/export.png/b.jpg", "in/deep/c.jpg")
    make(here, "in/._a.jpg", "in/__MACOSX/._b.jpg", "in/__MACOSX/b.jpg", "in/.thumbnails/a.jpg", content=APPLE_DOUBLE)
    make(here, "in/.hidden.png", "in/Thumbs.db", "in/@eaDir/a.jpg/SYNOPHOTO_THUMB.jpg")
    images, note = found("in")
    assert images == ["in/a.jpg", "in/deep/c.jpg", "in/export.png/b.jpg"]
    assert "6 hidden or system entries" in note


def test_a_hidden_folder_that_is_named_is_read(here):
    make(here, ".cache/a.jpg", ".cache/.b.jpg")
    assert found(".cache")[0] == [".cache/a.jpg"]
    assert found(".cache/.b.jpg")[0] == [".cache/.b.jpg"]


def test_every_format_that_pillow_reads_is_an_image_and_other_files_are_counted_by_suffix(here):
    kinds = ["jfif", "jpe", "JPG", "mpo", "tga", "tif", "pnm", "pbm", "dib", "apng", "gif", "psd", "qoi"]
    kinds += ["jp2", "j2k"] if features.check("jpg_2000") else []
    kinds += ["avif"] if features.check("avif") else []
    make(here, *(f"in/x.{kind}" for kind in kinds))
    make(here, "in/IMG_1.HEIC", "in/IMG_2.heic", "in/x.dng", "in/x.ico")
    make(here, "in/notes.txt", "in/boxes.json", "in/README", "in/v.mpg")
    images, note = found("in")
    assert images == sorted(f"in/x.{kind}" for kind in kinds)
    assert "4 images in unsupported formats (.heic 2, .dng 1, .ico 1; convert to JPEG or PNG)" in note
    assert "4 other files" in note
    assert ".txt 1" in note


def test_a_folder_of_heic_images_only_is_reported(here):
    make(here, "in/IMG_1.HEIC")
    with pytest.raises(UsageError) as caught:
        found("in")
    assert ".heic" in str(caught.value)


def test_answers_below_the_input_are_never_read_again(refcli, here, monkeypatch):
    (here / "in").mkdir()
    Image.new("RGB", (40, 30)).save("in/a.jpg")
    for option in ((), ("--force",), ("--resume",)):
        code, out, _ = refcli("predict", "in", "-e", "the red circle", "--out", "in/answers", *option)
        assert code == 0
        assert len(out.splitlines()) == (0 if option == ("--resume",) else 1)
    code, out, err = refcli("predict", "in", "-e", "the red circle", "--out", "in/other")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "1 output of refcli (in/answers)" in err
    monkeypatch.chdir(here / "in")
    code, out, err = refcli("predict", ".", "-e", "the red circle", "--out", "third")
    assert (code, len(out.splitlines())) == (0, 1)
    code, out, _ = refcli("predict", "../in", "-e", "x", "--out", here / "in/third", "--force")
    assert (code, len(out.splitlines())) == (0, 1)
    assert found("**/*.*g")[0] == ["a.jpg"]
    assert found(".")[0] == ["a.jpg"]


def test_drawings_of_examples_are_never_read_as_images(refcli, here):
    assert refcli("prepare-data", "synthetic", "--size", "2", "--out", "st")[0] == 0
    images, _ = found("st")
    for out in ("st/drawn", "elsewhere"):
        assert refcli("inspect-data", "st", "--sample", "1", "--out", out)[0] == 0
    assert found("st")[0] == images
    assert "1 output of refcli (st/drawn)" in found("st")[1]
    assert found(".")[0] == images
    make(here, "mine/a.jpg")
    make(here, "mine/inspection.json", content=b'{"schema": "of my own"}')
    assert found("mine")[0] == ["mine/a.jpg"]


def test_inputs_without_images_are_noted_and_refused_only_if_there_are_no_others(here):
    make(here, "in/a.jpg", "in/__MACOSX/._b.jpg", "in/docs/notes.txt", "in/o/overlays/00000-a-x.png")
    make(here, "set.jsonl/a.jpg")
    inputs = ["in/__MACOSX", "in/a.jpg", "in/docs", "in/o", "set.jsonl"]
    images, note = found(*inputs, exclude=here / "in/o")
    assert images == ["in/a.jpg", "set.jsonl/a.jpg"]
    assert note.count("contains no readable images") == 3
    assert "in/o: the folder contains no readable images; skipped 1 output of refcli (in/o)" in note
    with pytest.raises(UsageError, match="no input contains readable images"):
        found("in/__MACOSX", "in/docs", "in/o", exclude=here / "in/o")


def test_the_output_folder_is_not_an_input(here):
    make(here, "in/a.jpg", "in/o/b.jpg", "in/o/deep/c.jpg", "in/p/d.jpg")
    assert found("in", exclude=here / "in/o")[0] == ["in/a.jpg", "in/p/d.jpg"]
    assert found("in/*/*.jpg", exclude=here / "in/o")[0] == ["in/p/d.jpg"]
    assert found("in/**/*.jpg", exclude=here / "in/o")[0] == ["in/a.jpg", "in/p/d.jpg"]
    assert found("in/o", exclude=here / "in")[0] == ["in/o/b.jpg", "in/o/deep/c.jpg"], "an input below --out"


def test_the_scenes_of_a_demo_are_read_and_its_drawings_are_not(here):
    with OutputFolder(here / "demo") as folder:
        folder.begin({})
        folder.subfolder("scenes")
        folder.write_files({"scenes/scene-000.png": b"x", "contact_sheet.png": b"x"})
    make(here, "demo/overlays/00000-a-x.png", "old/overlays/00000-a-x.png", "old/predictions.jsonl", "in/a.png")
    (here / "old/masks").mkdir()
    images, note = found("demo")
    assert images == ["demo/scenes/scene-000.png"]
    assert str(Path("demo") / DRAWINGS) in note
    make(here, "all/a.png")
    for name in ("demo", "old"):
        (here / name).rename(here / "all" / name)
    images, note = found("all")
    assert images == ["all/a.png"]
    assert "2 outputs of refcli" in note


@needs_links
def test_linked_files_are_read_but_linked_folders_are_not(here):
    make(here, "elsewhere/x.jpg", "in/deep/b.jpg", "real.jpg")
    (here / "in/a.jpg").symlink_to(here / "real.jpg")
    (here / "in/broken.jpg").symlink_to(here / "none.jpg")
    (here / "in/linked").symlink_to(here / "elsewhere")
    (here / "in/linked.png").symlink_to(here / "elsewhere")
    for loop in ("in/loop", "in/deep/loop", "in/deep/loop2"):
        (here / loop).symlink_to(here / "in")
    (here / "in/self.jpg").symlink_to("self.jpg")
    images, note = found("in")
    assert images == ["in/a.jpg", "in/broken.jpg", "in/deep/b.jpg", "in/self.jpg"]
    assert "5 linked folders (in/deep/loop, in/deep/loop2, in/linked, in/linked.png, in/loop; give it" in note
    assert found("in/**/*.jpg")[0] == ["in/a.jpg", "in/deep/b.jpg"]
    (here / "link").symlink_to(here / "elsewhere")
    assert found("link")[0] == ["link/x.jpg"], "a link that is named is followed"


@needs_links
def test_files_that_a_pattern_skips_are_counted(here):
    make(here, "in/a.jpg", "in/x.jpg/b.jpg")
    (here / "in/broken.jpg").symlink_to(here / "none.jpg")
    (here / "in/zero.jpg").symlink_to("/dev/zero")
    images, note = found("in/*.jpg")
    assert images == ["in/a.jpg"]
    assert "1 special file (in/zero.jpg), 1 broken link (in/broken.jpg)" in note
    assert found("in/**/b.jpg") == (["in/x.jpg/b.jpg"], "")
    with pytest.raises(UsageError) as caught:
        found("in/b*.jpg")
    assert "1 broken link" in str(caught.value.hint)


@pytest.mark.parametrize("inputs", [("",), ("in", "")])
def test_an_empty_text_is_not_the_current_folder(here, inputs):
    make(here, "in/a.jpg")
    with pytest.raises(UsageError, match="empty text"):
        found(*inputs)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_or_a_device_in_a_folder_is_skipped(here):
    make(here, "in/a.jpg")
    os.mkfifo(here / "in/b.jpg")
    (here / "in/c.png").symlink_to("/dev/zero")
    images, note = found("in")
    assert images == ["in/a.jpg"]
    assert "2 special files (in/b.jpg, in/c.png)" in note


@needs_odd_names
def test_brackets_in_an_existing_path_are_not_a_pattern(here):
    make(here, "photos [2024]/a[1].jpg", "photos [2024]/a1.jpg", "photos [2024]/b?.jpg", "photos 2/c.jpg")
    assert found("photos [2024]")[0] == [
        "photos [2024]/a1.jpg", "photos [2024]/a[1].jpg", "photos [2024]/b?.jpg",
    ]  # fmt: skip
    assert found("photos [2024]/a[1].jpg")[0] == ["photos [2024]/a[1].jpg"]
    assert found("photos [2024]/*1*.jpg")[0] == ["photos [2024]/a1.jpg", "photos [2024]/a[1].jpg"]
    assert found("photos [2024]/a[0-9].jpg")[0] == ["photos [2024]/a1.jpg"]
    assert found("photos [0-9]/*.jpg")[0] == ["photos 2/c.jpg"]
    assert found(here / "photos [2024]" / "a?.jpg")[0] == [str(here / "photos [2024]/a1.jpg")]


def test_patterns_match_neither_folders_nor_hidden_names(here):
    make(here, "in/a.jpg", "in/x.jpg/b.jpg", "in/._a.jpg", "in/.git/c.jpg", "in/__MACOSX/d.jpg")
    assert found("in/*.jpg")[0] == ["in/a.jpg"]
    assert found("in/.*.jpg")[0] == ["in/._a.jpg"]
    assert found("in/**")[0] == ["in/a.jpg", "in/x.jpg/b.jpg"]
    assert found("**/**/*.jpg")[0] == ["in/a.jpg", "in/x.jpg/b.jpg"]
    for pattern in ("in/*.png", "none/*.jpg", "in/a.jpg/*", "[", "in/[!"):
        with pytest.raises(UsageError, match="matches no file"):
            found(pattern)


def test_names_that_no_file_can_have_get_an_answer(here):
    names = ["data:image/png;base64,x", "https://example.org/a.jpg?x=[1]", "x" * 5000, "none.jpg"]
    requests = list(read_requests(names, ["x"]))
    assert [request.image for request in requests] == names
    assert [bool(request.error) for request in requests] == [True, True, True, False]


@needs_odd_names
def test_a_note_about_many_kinds_of_files_is_short_and_printable(refcli, here, monkeypatch):
    make(here, *(f"in/x.{kind}" for kind in "abcdefgh"), "in/x.\x1b[31m", "in/y.\nfake")
    Image.new("RGB", (30, 20)).save("in/a.png")
    code, out, err = refcli("predict", "in", "-e", "x")
    assert (code, len(out.splitlines())) == (0, 1)
    (note,) = [line for line in err.splitlines() if "skipped" in line]
    assert "10 other files" in note
    assert "(.\\nfake 1, .\\x1b[31m 1, .a 1, .b 1, .c 1, ...)" in note
    assert note.isprintable()


def test_a_deep_folder_is_searched(here):
    deep = here / "in"
    for _ in range(400):
        deep = deep / "d"
    deep.mkdir(parents=True)
    make(deep, "a.jpg")
    assert len(found("in")[0]) == len(found("in/**/*.jpg")[0]) == 1


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_without_read_permission_is_reported(here):
    make(here, "in/a.jpg", "in/closed/b.jpg")
    (here / "in/closed").chmod(0)
    images, note = found("in")
    (here / "in/closed").chmod(0o700)
    assert images == ["in/a.jpg"]
    assert "1 folder that cannot be read (in/closed)" in note
