"""Folders of one's own images: whole ones, hostile ones, and those that are kept decoded."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bpfree
from bpfree.data.files import pixels
from bpfree.data.files.cache import open_cache
from bpfree.data.files.limits import fits, memory_bytes
from bpfree.data.files.rows import Rows
from bpfree.data.sets.image_folder import folder
from bpfree.errors import UserError
from bpfree.pictures.confusion import confusion_figure, predict_classes
from bpfree.runs.config import parse
from tests.test_cli import shell

pytestmark = pytest.mark.usefixtures("undrawn")

CLASSES = ("cat", "dog", "emu")


def image(seed, label, size=(12, 10), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 60, (*size, 3)) + 60 * label
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def fill(root, n=30, *, classes=CLASSES, suffixes=("png", "bmp", "jpg"), start=0, **options):
    """n images in class folders."""
    for i in range(start, start + n):
        place = root / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        image(i, i % len(classes), **options).save(place / f"{i:03}.{suffixes[i % len(suffixes)]}")
    return root


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path / "animals")


def same(first, second):
    splits = ((getattr(first, name), getattr(second, name)) for name in ("train", "validation", "test"))
    return all(a is b or (torch.equal(a.x, b.x) and torch.equal(a.y, b.y)) for a, b in splits)


def test_classes_are_the_folders_and_a_fifth_of_each_is_held_out(root, tmp_path):
    data = folder(tmp_path, path=root)
    assert (data.name, data.classes, data.class_names) == ("folder", 3, CLASSES)
    assert (tuple(data.train.x.shape), data.train.x.dtype) == ((24, 3, 12, 10), torch.uint8)
    assert data.train.y.bincount().tolist() == [8, 8, 8]
    assert data.test.y.bincount().tolist() == [2, 2, 2]
    assert same(data, folder(tmp_path, path=root)), "the same images are held out each time"
    whole = folder(tmp_path, path=root, test=0)
    assert whole.test is None
    assert torch.equal(whole.train.x[0], torch.from_numpy(np.array(image(0, 0))).permute(2, 0, 1)), "a PNG is exact"


def test_splits_are_folders(tmp_path):
    for name, n in (("Train", 12), ("valid", 6), ("test", 3)):
        fill(tmp_path / "in" / name, n)
    data = folder(tmp_path, path=tmp_path / "in")
    assert [len(split.y) for split in (data.train, data.validation, data.test)] == [12, 6, 3]
    train, validation = data.carve(0.5, 0)
    assert (train, validation) == (data.train, data.validation), "in place of a validation split by seed"
    shutil.rmtree(tmp_path / "in" / "test")
    assert folder(tmp_path, path=tmp_path / "in").test is None
    assert len(folder(tmp_path, path=tmp_path / "in", test=0.5).test.y) == 6


def test_a_class_may_be_called_train(tmp_path):
    data = folder(tmp_path, path=fill(tmp_path / "in", classes=("train", "plane")))
    assert data.class_names == ("plane", "train")


def test_images_lie_in_folders_within_and_what_systems_leave_is_passed_over(root, tmp_path):
    expected = folder(tmp_path, path=root)
    for junk in (".DS_Store", "cat/Thumbs.db", "cat/.hidden.png", "readme.txt", ".git/x/y.png"):
        (root / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / junk).write_text("junk")
    (root / "dog" / "zz").mkdir()
    assert same(expected, folder(tmp_path, path=root))
    image(5, 1).save(root / "dog" / "zz" / "deep.png")
    assert len(folder(tmp_path, path=root, test=0).train.y) == 31


@pytest.mark.parametrize(
    ("mode", "channels", "expected"),
    [("L", "auto", 1), ("RGB", "auto", 3), ("L", 3, 3), ("RGB", 1, 1), ("1", "auto", 1)],
)
def test_channels(mode, channels, expected, tmp_path):
    data = folder(tmp_path, path=fill(tmp_path / "in", 10, mode=mode, suffixes=("png",)), channels=channels)
    assert data.train.x.shape[1] == expected


def test_sizes_that_differ_need_one(root, tmp_path):
    fill(root, 3, start=100, size=(9, 20))
    with pytest.raises(
        UserError, match=r"data.size: none was given, and of 33 images 3 .*12x10 .*9x20 \(cat/102.*data.size=\[12, 10\]"
    ):
        folder(tmp_path, path=root)
    assert tuple(folder(tmp_path, path=root, size=8).train.x.shape[1:]) == (3, 8, 8)
    assert tuple(folder(tmp_path, path=root, size=[8, 6]).train.x.shape[1:]) == (3, 8, 6)
    for wrong in (0, [8], [8, -1]):
        with pytest.raises(UserError, match=r"data.size: found .*allowed: one length"):
            folder(tmp_path, path=root, size=wrong)


def break_some(root):
    """Files that are no images; returns their paths."""
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "cat" / "text.jpg").write_text("no image")
    whole = (root / "dog" / "001.bmp").read_bytes()
    (root / "dog" / "half.bmp").write_bytes(whole[:200])
    (root / "emu" / "gone.png").symlink_to(root / "nowhere")
    Image.new("1", (10_000, 10_000)).save(root / "emu" / "huge.png")  # 100 megapixels in 13 kB
    return ["cat/empty.png", "cat/text.jpg", "dog/half.bmp", "emu/gone.png", "emu/huge.png"]


@pytest.mark.parametrize("memory_limit", [None, 0])
def test_broken_images_are_told_all_at_once_and_may_be_left_out(root, tmp_path, memory_limit):
    whole = folder(tmp_path, path=root, test=0)
    broken = break_some(root)
    options = {"path": root, "memory_limit": memory_limit, "channels": 3, "test": 0}
    for _ in range(2):
        with pytest.raises(UserError, match=r"found 5 of 35 files in .*data.skip_broken=true") as caught:
            folder(tmp_path, **options)
        assert all(name in str(caught.value) for name in broken)
        assert "\n" not in str(caught.value)
    assert same(folder(tmp_path, **options, skip_broken=True), whole)


def test_of_many_broken_images_the_first_are_named(root, tmp_path):
    for i in range(50):
        (root / "cat" / f"b{i:02}.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"found 50 of 80 files .*cat/b00.png.*cat/b19.png \([^;]*; and 30 more. Remove"
    ):
        folder(tmp_path, path=root)


def damaged(root, what):
    if what == "nowhere":
        shutil.rmtree(root)
    elif what == "a file":
        shutil.rmtree(root)
        root.write_text("x")
    elif what == "one class":
        shutil.rmtree(root / "cat")
        shutil.rmtree(root / "dog")
    elif what == "no class":
        for name in CLASSES:
            shutil.rmtree(root / name)
    elif what == "empty class":
        (root / "fox").mkdir()
    elif what == "only broken":
        for file in root.rglob("*.*"):
            file.write_bytes(b"")
    else:
        fill(root.parent / "new" / "train", 6)
        fill(root.parent / "new" / what, 3, classes=("cat", "bee") if what == "val" else ("cat",))
        shutil.rmtree(root)
        (root.parent / "new").rename(root)
        if what == "test":
            shutil.rmtree(root / "test" / "cat")
            (root / "test" / "cat").mkdir()
        if what == "valid":
            fill(root / "val", 3)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere", "found nothing at .*animals, allowed: a folder"),
        ("a file", "found a file at"),
        ("one class", "found one, 'emu', of class folders in .*allowed: two or more"),
        ("no class", "found none, of class folders"),
        ("empty class", "found no files in fox of"),
        ("only broken", "found 30 of 30 files"),
        ("val", "found bee in .*val, allowed: the classes of training"),
        ("test", "found no files in the class folders of .*test"),
        ("valid", "found the folder valid and val beside train"),
        ("extra", "found the folder extra beside train"),
    ],
)
def test_folders_that_cannot_work(root, tmp_path, what, message):
    damaged(root, what)
    with pytest.raises(UserError, match=message) as caught:
        folder(tmp_path / "data", path=root)
    assert "\n" not in str(caught.value)


def test_what_broken_images_leave_is_checked_too(root, tmp_path):
    for file in (root / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="without broken images, dog has none left for training"):
        folder(tmp_path, path=root, skip_broken=True)


@pytest.mark.parametrize("share", [-0.1, 1, 0.001])
def test_shares_that_cannot_work(root, tmp_path, share):
    with pytest.raises(UserError, match=f"data.test: found {share}"):
        folder(tmp_path, path=root, test=share)


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "decoded").iterdir())


def test_pixels_in_a_file_are_those_in_memory_and_are_decoded_once(root, tmp_path, monkeypatch):
    expected = folder(tmp_path, path=root)
    assert not (tmp_path / "decoded").exists()
    cold = folder(tmp_path, path=root, memory_limit=0)
    assert isinstance(cold.train.x, Rows)
    assert same(cold, expected)
    monkeypatch.setattr(pixels, "decode", lambda *_, **__: pytest.fail("decoded again"))
    assert same(folder(tmp_path, path=root, memory_limit=0), expected)
    assert not isinstance(folder(tmp_path, path=root).train.x, Rows), "read from there, if it fits"
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("change", ["another", "more", "time", "size", "damage"])
def test_a_cache_of_other_files_is_not_taken(root, tmp_path, change):
    folder(tmp_path, path=root, memory_limit=0)
    (before,) = kept(tmp_path)
    if change == "another":
        image(99, 2).save(root / "cat" / "000.png")
    elif change == "more":
        image(99, 2).save(root / "cat" / "999.png")
    elif change == "time":
        os.utime(root / "cat" / "000.png", (1, 1))
    elif change == "damage":
        file = tmp_path / "decoded" / before / "pixels.bin"
        file.write_bytes(file.read_bytes()[:-1])
    options = {"size": 6} if change == "size" else {}
    again = folder(tmp_path, path=root, memory_limit=0, **options)
    assert same(again, folder(tmp_path / "other", path=root, **options))
    left = {"size": 2, "damage": 1}.get(change, 1)
    assert len(kept(tmp_path)) == left, "what the folder was before is not kept"
    assert (kept(tmp_path) == [before]) == (change == "damage")


WRITE = """
import sys, time
from pathlib import Path
from bpfree.data.files import pixels
from bpfree.data.sets.image_folder import folder
real = pixels.decode
def slow(*args, **options):
    time.sleep(0.05)
    return real(*args, **options)
pixels.decode = slow
folder(Path(sys.argv[1]), path=Path(sys.argv[2]), memory_limit=0, channels=3, size=8)
"""


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(root, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), str(root)])
    while not (tmp_path / "decoded").exists() or not kept(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (begun,) = kept(tmp_path)
    assert begun.startswith(".")
    assert open_cache(tmp_path / "decoded" / begun) is None
    options = {"path": root, "memory_limit": 0, "channels": 3, "size": 8}
    assert same(folder(tmp_path, **options), folder(tmp_path / "other", **options))
    os.utime(tmp_path / "decoded" / begun, (1, 1))
    for file in (tmp_path / "decoded" / begun).iterdir():
        os.utime(file, (1, 1))
    fill(root, 1, start=200)
    folder(tmp_path, **options)
    assert begun not in kept(tmp_path), "what nobody has written to for a day is removed"


def test_a_cache_without_room_or_place(root, tmp_path, monkeypatch):
    (tmp_path / "decoded").write_text("in the way")
    with pytest.raises(UserError, match=r"data.cache: .*decoded cannot be written"):
        folder(tmp_path, path=root, memory_limit=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match=r"data.cache: the decoded images take 0 MiB, and .* has room for 0"):
        folder(tmp_path, path=root, memory_limit=0, cache=tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_limit():
    assert memory_bytes() > 1 << 28
    assert fits(1 << 20, 2.0)
    assert not fits((1 << 20) + 1, 2.0)
    assert fits(1 << 20, None)
    with pytest.raises(UserError, match="data.memory_limit: found -1"):
        fits(1, -1)


def test_a_run_is_the_same_with_and_without_a_cache_and_knows_its_classes(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = {"name": "folder", "path": "animals", "test": 0.3}
    options = {"epochs": 2, "batch_size": 4, "augment": {"flip": True}, "validation": 0.2}
    first = bpfree.fit("mlp", spec, "mono_forward", **options, out="a")
    second = bpfree.fit("mlp", {**spec, "memory_limit": 0, "cache": "kept"}, "mono_forward", **options, out="b")
    assert kept_weights(first) == kept_weights(second)
    assert first.result["test"] == second.result["test"]
    config = parse({"data": first.config.plain()["data"]})
    assert config.data.model_extra["path"] == str(tmp_path / "animals")
    monkeypatch.chdir("/")
    loaded = bpfree.load(tmp_path / "b")
    assert loaded.preprocess.class_names == CLASSES
    assert len(loaded.config.data.load().test.y) == 9
    page = bpfree.report(tmp_path / "b").read_text()
    assert "emu" in page


def test_answers_are_told_by_name_and_images_scaled_as_in_training(root, tmp_path):
    spec = {"name": "folder", "path": root, "size": 6}
    run = bpfree.fit("mlp", spec, "backprop", epochs=30, out=tmp_path / "run")
    image(7, 2, size=(40, 50)).save(tmp_path / "other.png")
    shown = shell("predict", tmp_path / "run", tmp_path / "other.png", root / "cat" / "000.png").stdout.splitlines()
    assert [line.split("\t")[1] for line in shown] == ["emu", "cat"]
    answers = predict_classes(run, run.test)
    axes = confusion_figure(answers.confusion(), ["cat", "a $ sign", "a name that is too long"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", r"a \$ sign", "a name that is \u2026"]
    (tmp_path / "broken.png").write_bytes(b"")
    assert (
        "broken.png: not an image that can be read"
        in shell("predict", tmp_path / "run", tmp_path / "broken.png").stderr
    )


def kept_weights(run):
    return {name: value.tolist() for name, value in run.net.state_dict().items()}


def test_a_relative_path_counts_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse({"data": {"name": "folder", "path": "x/../y"}}).data.model_extra["path"] == str(
        Path("x/../y").absolute()
    )
    assert parse({"data": {"name": "folder", "path": "/x"}}).data.model_extra["path"] == "/x"
    with pytest.raises(UserError, match=r"data.path: missing; folder needs it"):
        parse({"data": "folder"})
    with pytest.raises(UserError, match=r"data.channels: found 2, allowed: 1 or 3 or auto"):
        parse({"data": {"name": "folder", "path": "x", "channels": 2}})


def test_images_of_12_bits_are_refused_until_their_range_is_known(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        place = tmp_path / "deep" / CLASSES[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 4096, (6, 6)).astype(np.uint16)).save(place / f"{i}.png")
    with pytest.raises(UserError, match="its top bits are empty.*data.bits=12"):
        folder(tmp_path, path=tmp_path / "deep", skip_broken=True)
    data = folder(tmp_path, path=tmp_path / "deep", bits=12)
    assert int(data.train.x.max()) > 240
    with pytest.raises(UserError, match="data.bits: found 20, allowed: 8 to 16"):
        folder(tmp_path, path=tmp_path / "deep", bits=20)
    spec = {"name": "folder", "path": tmp_path / "deep", "bits": 12, "size": 6}
    bpfree.fit("mlp", spec, "backprop", epochs=1, out=tmp_path / "run")
    assert shell("predict", tmp_path / "run", tmp_path / "deep" / "cat" / "0.png").stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_among_images_is_told_of_and_not_waited_for(root):
    os.mkfifo(root / "cat" / "pipe.png")
    with pytest.raises(UserError, match="1 of 31 files.*cat/pipe.png .found a named pipe"):
        folder(root.parent, path=root, size=6)
    assert len(folder(root.parent, path=root, size=6, skip_broken=True, test=0).train.y) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": Path("~nouser/x")}, r"data.path: found '~nouser/x', but that user does not exist"),
        ({"path": Path("a\0b")}, r"data.path: found 'a\\x00b', allowed: a path without NUL"),
        ({"cache": Path("~nouser/x")}, r"data.cache: found '~nouser/x'"),
        ({"cache": Path("a\0b")}, r"data.cache: found 'a\\x00b'"),
    ],
)
def test_paths_that_cannot_be(root, options, message):
    with pytest.raises(UserError, match=message):
        folder(root.parent, **{"path": root, "size": 6, "memory_limit": 0, **options})
    with pytest.raises(UserError, match=message):
        bpfree.fit("mlp", {"name": "folder", "path": str(root), **{k: str(v) for k, v in options.items()}})
