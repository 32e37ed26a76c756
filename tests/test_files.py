"""Replaced files and folders: at any moment the old one or the new one is there, or can be put back."""

import os

import pytest

from tfinv import files
from tfinv.files import remove_partial, replacing


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    return tmp_path / "out"


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def replace(folder):
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / "new").touch()


def fail_at_second_rename(monkeypatch):
    rename, seen = os.replace, []

    def failing(source, target):
        seen.append(target)
        if len(seen) == 2:
            raise OSError("interrupted")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)


def test_folder_is_replaced_and_nothing_stays_beside_it(folder, tmp_path):
    replace(folder)
    assert contents(tmp_path) == ["out", "out/new"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_the_new_one_is_on_the_disk_before_it_gets_the_name(folder, tmp_path, monkeypatch, what):
    events, rename, sync = [], os.replace, os.fsync

    def note_sync(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def note_rename(source, target):
        events.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    if what == "folder":
        replace(folder)
        assert {"new"} < set(events[:2]) and events[2:] == ["renamed", "renamed", tmp_path.name]
    else:
        with replacing(tmp_path / "file.txt") as partial:
            partial.write_text("x")
        assert events[0].endswith("-file.txt") and events[1:] == ["renamed", tmp_path.name]


def test_interrupted_between_its_renames_the_old_folder_is_back(folder, tmp_path, monkeypatch):
    fail_at_second_rename(monkeypatch)
    with pytest.raises(OSError, match="interrupted"):
        replace(folder)
    assert contents(tmp_path) == ["out", "out/old"]


def test_killed_between_its_renames_the_old_folder_is_put_back(folder, tmp_path, monkeypatch):
    fail_at_second_rename(monkeypatch)
    monkeypatch.setattr(files, "_put_back", lambda *paths: None)  # a kill has no `finally`
    monkeypatch.setattr(files, "_remove", lambda path: None)
    with pytest.raises(OSError, match="interrupted"):
        replace(folder)
    monkeypatch.undo()
    remove_partial(tmp_path, "t")
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 2, "it is of another name"
    remove_partial(tmp_path, "out")
    assert contents(tmp_path) == ["out", "out/old"]


def test_what_is_left_of_an_old_folder_is_removed_when_the_new_one_is_there(folder, tmp_path):
    (tmp_path / f".partial-{'0' * 32}.old-out").mkdir()
    (tmp_path / ".partial-mine").touch()  # nobody's of ours
    remove_partial(tmp_path)
    assert contents(tmp_path) == [".partial-mine", "out", "out/old"]
