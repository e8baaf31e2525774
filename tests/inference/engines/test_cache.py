"""The cache of compiled engines: it does not grow without end, tells what is in it, and leaves other files alone."""

import os

import pytest
from commands import run

from uxnet.events import Warn
from uxnet.inference.engines.cache import Cache, cache_name, cached_files, clear_cache, is_damaged

BLOB = b"x" * 968  # with its digest 1,000 bytes


def name(number, model="made", kind="blob"):
    return cache_name(model, f"{number:064x}", kind)


def fill(folder, numbers, cache=None):
    """Files, the first of them not used for longest."""
    for number in numbers:
        (cache or Cache(folder)).write(name(number), BLOB)
        os.utime(folder / name(number), (number, number))


def there(folder):
    return {file.path.name for file in cached_files(folder)}


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    fill(tmp_path, range(1, 6))
    assert Cache(tmp_path).read(name(1)) == BLOB  # used again
    Cache(tmp_path, limit=4000).write(name(9), BLOB)
    assert there(tmp_path) == {name(n) for n in (1, 4, 5, 9)}


def test_what_was_just_written_stays_however_large(tmp_path):
    fill(tmp_path, (1, 2))
    Cache(tmp_path, limit=100).write(name(3), BLOB)
    assert there(tmp_path) == {name(3)}
    assert Cache(tmp_path).read(name(3)) == BLOB


def test_files_of_others_are_never_touched(tmp_path):
    fill(tmp_path, (1, 2))
    mine = [tmp_path / one for one in ("scan.nii.gz", "notes.json", "model.blob", ".hidden.part.json")]
    for path in mine:
        path.write_bytes(b"mine")
        os.utime(path, (0, 0))
    Cache(tmp_path, limit=0).write(name(3), BLOB)
    clear_cache(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(mine)


def test_what_a_killed_process_left_half_written_is_never_used_and_goes(tmp_path):
    fill(tmp_path, (1,))
    (tmp_path / name(1)).write_bytes((tmp_path / name(1)).read_bytes()[:500])
    old, new = (tmp_path / f".{name(n).removesuffix('.blob')}.12345678.part.blob" for n in (2, 3))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert Cache(tmp_path).read(name(1)) is None
    kinds = {file.path: file.kind for file in cached_files(tmp_path)}
    assert kinds == {tmp_path / name(1): "blob", old: "part", new: "part"}
    assert [is_damaged(file) for file in cached_files(tmp_path) if file.kind == "blob"] == [True]
    Cache(tmp_path).write(name(4), BLOB)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it
    clear_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_tell_the_model_whatever_it_is_called(tmp_path):
    for model in ("hippocampus-shipped", "a/b c\nd", "", "x" * 300):
        Cache(tmp_path).write(name(1, model, "json"), b"{}")
    assert {file.model for file in cached_files(tmp_path)} == {"hippocampus-shipped", "a_b_c_d", "", "x" * 60}
    (tmp_path / f"{5:064x}.graph").write_bytes(b"of an earlier version")
    assert "" in {file.model for file in cached_files(tmp_path)}


def test_a_folder_that_cannot_be_read_or_written_is_no_cache(tmp_path):
    events = []
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file", events.append)
    cache.write(name(1), BLOB)
    assert cache.read(name(1)) is None
    assert isinstance(events[0], Warn)
    assert cached_files(tmp_path / "none") == []


def test_the_command_shows_and_clears(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    folder = tmp_path / "uxnet"
    assert run("cache") == 0
    assert capsys.readouterr().out.strip() == f"{folder}: empty"
    fill(folder, (1, 2))
    (folder / name(2)).write_bytes(b"half")
    Cache(folder).write(name(3, "organs", "json"), b"{}")
    for arguments in ((), (folder,)):
        assert run("cache", *arguments) == 0
        told = capsys.readouterr().out
        for words in (
            "organs",
            "self-check",
            "compiled engine, damaged",
            "1.0 kB",
            "1970-01-01",
            f"{folder}: 3 files, 1.0 kB of at most 2.0 GB",
        ):
            assert words in told
    assert run("cache", "--clear") == 0
    assert f"{folder}: 3 files removed" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
    assert run("cache", tmp_path / "none") == 2
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["graph", "blob", "json"])
def test_every_kind_has_a_name_of_its_own(tmp_path, kind):
    Cache(tmp_path).write(name(1, kind=kind), b"something")
    assert [file.kind for file in cached_files(tmp_path)] == [kind]
