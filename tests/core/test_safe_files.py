"""What a stranger may have put where we read, lock or write: named and left alone, never opened, followed or changed."""

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from neurobridge.core import files
from neurobridge.core.files import (
    UnsafeFile,
    atomic_write,
    byte_budget,
    is_marked,
    make_folders,
    mark_folder,
    open_append,
    open_lock,
    open_regular,
    over_budget,
    private_folder,
    read_end,
    read_json,
    read_regular,
    who_can_change,
    write_json,
)

root_only = pytest.mark.skipif(
    os.geteuid() != 0, reason="two users are needed, so only root can try this"
)


def as_user(number, work):
    "Run Python code as another user; return how it ended and what it printed."
    code = f"import os; os.setgroups([]); os.setgid({number}); os.setuid({number})\n{work}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/"
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def everybodys(tmp_path):
    "A folder in which every user can write, and which every user reaches."
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path("/tmp") or folder == Path("/"):
            break
        folder.chmod(folder.stat().st_mode | 0o055)
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)
    return shared


def planted(folder, kind):
    "Put something there under the name of a record."
    place, secret = folder / "run.json", folder / "secret"
    secret.write_text("mine")
    if kind == "link":
        place.symlink_to(secret)
    elif kind == "dangling link":
        place.symlink_to(folder / "nowhere")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            os.chdir(folder)
            end.bind("run.json")
    elif kind == "device":
        place.symlink_to("/dev/zero")
    return place, secret


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "socket", "device"])
@pytest.mark.parametrize(
    "opens",
    [
        open_regular,
        lambda path: read_regular(path, 100),
        lambda path: read_end(path, 100),
        read_json,
        open_lock,
        open_append,
    ],
)
def test_only_regular_files_are_opened(tmp_path, monkeypatch, kind, opens):
    monkeypatch.chdir(tmp_path)
    place, secret = planted(tmp_path, kind)
    with pytest.raises(UnsafeFile, match="run.json is a .*expected a regular file"):
        opens(place)
    assert secret.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_a_device_behind_a_followed_link_is_refused(tmp_path):
    place, _ = planted(tmp_path, "device")
    with pytest.raises(UnsafeFile, match="is a device"):
        read_regular(place, 100, follow=True)


def test_a_link_that_the_user_named_is_followed(tmp_path):
    place, _ = planted(tmp_path, "link")
    assert read_regular(place, 4, follow=True) == b"mine"


def test_a_link_put_there_between_looking_and_opening(tmp_path, monkeypatch):
    (place := tmp_path / "run.json").write_text("{}")
    (secret := tmp_path / "secret").write_text("mine")
    opened = os.open

    def exchanged(path, *rest, **named):
        if Path(path) == place:
            place.unlink()
            place.symlink_to(secret)
        return opened(path, *rest, **named)

    monkeypatch.setattr(files.os, "open", exchanged)
    with pytest.raises(UnsafeFile, match="is a link"):
        open_lock(place)
    assert secret.read_text() == "mine"


def test_what_is_missing_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "no.json")


def test_a_giant_and_a_file_that_grows(tmp_path):
    (place := tmp_path / "run.json").write_bytes(b"x" * 101)
    for read in (
        lambda: open_regular(place, 100),
        lambda: read_regular(place, 100),
        lambda: read_json(place, 100),
    ):
        with pytest.raises(UnsafeFile, match="101 bytes; expected at most 100"):
            read()
    with open(place, "wb") as sparse:
        sparse.truncate(8 * 10**9)
    with pytest.raises(UnsafeFile, match="8,000,000,000 bytes"):
        read_json(place)
    assert read_regular(Path("/proc/self/status"), 10**6)  # says it has no bytes, and has some
    with pytest.raises(UnsafeFile, match="more than 10 bytes"):
        read_regular(Path("/proc/self/status"), 10)


@pytest.mark.parametrize("most", [0, 1, 3, 9])
def test_the_end_of_a_file(tmp_path, most):
    (place := tmp_path / "log").write_bytes(b"abc")
    assert read_end(place, most) == b"abc"[max(0, 3 - most) :]


def test_a_lock_is_never_emptied(tmp_path):
    (place := tmp_path / "lock").write_text("keep")
    with open_lock(place):
        pass
    assert place.read_text() == "keep"
    with open_lock(tmp_path / "new"):
        pass
    assert (tmp_path / "new").read_bytes() == b""


# Private folders


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_a_private_folder_is_private_whatever_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        made = private_folder(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700 and private_folder(tmp_path / "a") == made


def test_open_and_linked_folders_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o770)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").touch()
    for name, why in (("a", r"mode 0770.*chmod 700"), ("b", "is a link"), ("c", "is a file")):
        with pytest.raises(UnsafeFile, match=why):
            private_folder(tmp_path / name)


def test_a_folder_above_that_others_can_exchange(tmp_path):
    (above := tmp_path / "above").mkdir()
    above.chmod(0o777)
    with pytest.raises(UnsafeFile, match="can be exchanged: others can write to .*above"):
        private_folder(above / "mine")
    above.chmod(0o1777)
    assert private_folder(above / "mine") and who_can_change(above / "mine") == ""


@root_only
def test_another_users_folder_is_refused(everybodys):
    ended, said = as_user(65531, f"import os; os.mkdir({str(everybodys / 'mine')!r}, 0o700)")
    assert ended == 0, said
    with pytest.raises(UnsafeFile, match="belongs to another user"):
        private_folder(everybodys / "mine")
    assert "belongs to another user" in who_can_change(everybodys / "mine")


@root_only
def test_a_link_is_asked_where_it_lies_and_where_it_leads(everybodys, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    ended, said = as_user(
        65531,
        f"import os; os.mkdir({str(everybodys / 'theirs')!r}); "
        f"os.symlink({str(tmp_path / 'mine')!r}, {str(everybodys / 'theirs' / 'link')!r})",
    )
    assert ended == 0, said
    assert "belongs to another user" in who_can_change(everybodys / "theirs" / "link")
    (tmp_path / "mine" / "out").symlink_to(everybodys / "theirs")
    assert "belongs to another user" in who_can_change(tmp_path / "mine" / "out")


@root_only
def test_a_link_of_another_user_in_a_sticky_folder_can_be_turned(everybodys, tmp_path):
    "It is one of two links on the way, and neither where the path begins nor where it ends."
    (tmp_path / "mine").mkdir(mode=0o700)
    ended, said = as_user(
        65531, f"import os; os.symlink({str(tmp_path / 'mine')!r}, {str(everybodys / 'hop')!r})"
    )
    assert ended == 0, said
    (tmp_path / "first").symlink_to(everybodys / "hop")
    for place in (everybodys / "hop", tmp_path / "first", tmp_path / "mine" / ".." / "first"):
        assert "hop belongs to another user" in who_can_change(place)
    assert who_can_change(tmp_path / "mine") == ""


def test_who_can_add_to_a_folder_knows_no_sticky_bit_and_circles_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o1777)
    assert who_can_change(tmp_path / "a") == "" and "others can write" in who_can_change(
        tmp_path / "a", inside=True
    )
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        who_can_change(tmp_path / "round" / "x")


def test_what_is_private_is_private_from_the_first_moment(tmp_path):
    before = os.umask(0)
    try:
        make_folders(tmp_path / "a" / "b")
        with atomic_write(tmp_path / "a" / "b" / "f", private=True) as file:
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/f")] == [
        0o700,
        0o700,
        0o600,
    ]


# Writing


def test_a_link_planted_under_the_temporary_name_is_not_written_through(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (secret := tmp_path / "secret").write_text("mine")
    (tmp_path / ".f.guessed.part").symlink_to(secret)
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "f") as file:
        file.write("x")
    assert secret.read_text() == "mine"


def test_a_linked_target_is_replaced_not_written_through(tmp_path):
    place, secret = planted(tmp_path, "link")
    write_json(place, {})
    assert secret.read_text() == "mine" and read_json(place) == {} and not place.is_symlink()


# Budgets and marks


def test_a_budget_comes_from_the_argument_the_environment_or_the_default(monkeypatch):
    monkeypatch.delenv("NEUROBRIDGE_MAX_BYTES", raising=False)
    assert byte_budget("f") == 2**31 and byte_budget("f", 7) == 7
    monkeypatch.setenv("NEUROBRIDGE_MAX_BYTES", "5")
    assert byte_budget("f") == 5 and byte_budget("f", 7) == 7
    assert over_budget(
        7, 7
    ) == "" and "pass max_bytes=8 or set NEUROBRIDGE_MAX_BYTES=8" in over_budget(8, 7)


@pytest.mark.parametrize("wrong", ["0", "-1", "4e9", "2GB", "nan", "²"])
def test_a_wrong_budget_is_named(monkeypatch, wrong):
    monkeypatch.setenv("NEUROBRIDGE_MAX_BYTES", wrong)
    with pytest.raises(ValueError, match="f: NEUROBRIDGE_MAX_BYTES is"):
        byte_budget("f")
    for value in (0, -1, 1.5, True):
        with pytest.raises((ValueError, TypeError), match="f: max_bytes"):
            byte_budget("f", value)


def test_only_our_own_mark_counts(tmp_path):
    (tmp_path / "a").mkdir()
    assert not is_marked(tmp_path / "a", "site") and not is_marked(tmp_path / "nowhere", "site")
    mark_folder(tmp_path / "a", "site")
    assert is_marked(tmp_path / "a", "site") and not is_marked(tmp_path / "a", "run")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not is_marked(tmp_path / "b", "site")
    (tmp_path / "a" / ".neurobridge").unlink()
    (tmp_path / "a" / ".neurobridge").symlink_to(tmp_path / "mark")
    (tmp_path / "mark").write_text("site\n")
    assert not is_marked(tmp_path / "a", "site")


def test_threads_make_one_private_folder(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(private_folder(tmp_path / "a")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "a"] * 8
