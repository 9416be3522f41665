"""Paths of users, and files that are no regular files."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from bpfree.disk.paths import check_regular, open_regular, user_path
from bpfree.errors import UserError
from tests.test_cli import shell


def test_the_home_folder_is_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x", "data.path") == Path("~/x").expanduser()
    assert user_path("a/b", "data.path") == Path("a/b")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "^data.path: found '', allowed: a path. Is a variable of the shell empty"),
        ("a\0b", r"^data.path: found 'a\\x00b', allowed: a path without NUL characters"),
        ("~nouser/x", "^data.path: found '~nouser/x', but that user does not exist. Give the whole path"),
    ],
)
def test_paths_that_cannot_be(path, message):
    with pytest.raises(UserError, match=message):
        user_path(path, "data.path")


def test_regular_files_and_links_to_them_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name in ("a", "b"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "c")
    check_regular(tmp_path / "c")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX") or os.name == "nt", reason="no sockets among files")
def test_nothing_else_is_opened(tmp_path):
    kinds = {"folder": "a folder", "device": "a device"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to(os.devnull)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        kinds["pipe"] = "a named pipe"
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s")  # paths of sockets must be short
        (tmp_path / "socket").symlink_to(f"{short}/s")
        for name, kind in {**kinds, "socket": "a socket"}.items():
            for look in (check_regular, open_regular):
                with pytest.raises(UserError, match=rf"{name}: found {kind}.*, allowed: a regular file$"):
                    look(tmp_path / name)


@pytest.mark.parametrize("command", [("data", "list"), ("data", "check"), ("data", "get", "digits")])
def test_commands_say_so_in_one_line(command):
    result = shell(*command, "--data-dir", "~nouser/x")
    assert result.exit_code == 2
    assert "found '~nouser/x'" in result.stderr
