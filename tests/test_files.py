import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fused_preact._files import remove_temporaries, write_atomically


def test_writes_a_new_file_and_replaces_an_old_one(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("old", "new"):
        write_atomically(path, lambda p, text=text: p.write_text(text))
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half of it")
        assert path.read_text() == "old"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_has_the_suffix_of_the_path(tmp_path):
    seen = []
    write_atomically(tmp_path / "plot.png", lambda p: seen.append(p))
    assert seen[0].suffix == ".png"
    assert seen[0].parent == tmp_path


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", lambda p: p.write_text(""))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, lambda path: path.write_text("all of it"))
    assert os.read(reader, 100) == b"all of it"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_link_stays_a_link(tmp_path):
    """/dev/stdout is one, and may lead to a regular file."""
    (tmp_path / "real").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    write_atomically(link, lambda path: path.write_text("new"))
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_the_folder_is_flushed_after_the_rename(tmp_path, monkeypatch):
    """Or else a power cut may take the new name back."""
    path, flushed, fsync = tmp_path / "a.txt", [], os.fsync

    def watched(descriptor):
        # (a folder?, is the new file in place?)
        flushed.append((os.path.isdir(f"/dev/fd/{descriptor}"), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomically(path, lambda p: p.write_text("new"))
    assert flushed == [(False, False), (True, True)]


@pytest.mark.parametrize(
    ("code", "ignored"),
    [
        pytest.param(errno.EINVAL, True, id="file-systems-that-can-not"),
        pytest.param(errno.EBADF, True, id="systems-that-can-not"),
        pytest.param(errno.EIO, False, id="a-broken-disk"),
    ],
)
def test_a_folder_that_can_not_be_flushed_is_no_error(tmp_path, monkeypatch, code, ignored):
    path, fsync = tmp_path / "a.txt", os.fsync

    def failing(descriptor):
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    if ignored:
        write_atomically(path, lambda p: p.write_text("new"))
    else:
        with pytest.raises(OSError, match=r"a\.txt'$"):
            write_atomically(path, lambda p: p.write_text("new"))
    assert path.read_text() == "new"


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_whatever_fails_the_old_file_stays_and_the_error_names_it(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def failing(*args):
        # os.fsync is given a number, and its errors name no file.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *[str(arg) for arg in args[:1] if not isinstance(arg, int)])

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OSError, match=r"^\[Errno \d+\] No space left on device: '.*/a\.txt'$"):
            write_atomically(path, lambda p: p.write_text("new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"elsewhere'$"):
        write_atomically(tmp_path / "a.txt", lambda p: p.write_text(Path(tmp_path / "elsewhere").read_text()))


def test_a_path_below_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"file/a\.txt'$"):
        write_atomically(tmp_path / "file" / "a.txt", lambda p: p.write_text("new"))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from fused_preact._files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_atomically(Path(sys.argv[1]), lambda path: path.write_bytes(bytes(2000)))
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from fused_preact._files import write_atomically
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), lambda path: path.write_text("new"))
"""


@pytest.mark.skipif(os.name != "posix", reason="limits and signals are POSIX")
def test_a_file_that_grows_too_large_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    run = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == f"OSError: [Errno {errno.EFBIG}] File too large: '{path}'"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("name", ["a.txt", "events.out.tfevents.fused_preact", "no_suffix"])
def test_a_writer_killed_before_the_rename_leaves_what_can_be_removed(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, path]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a-0123abcd.txt", id="no-dot"),
        pytest.param(".a-0123abc.txt", id="seven-digits"),
        pytest.param(".a-0123abcde.txt", id="nine-digits"),
        pytest.param(".a-0123ABCD.txt", id="capitals"),
        pytest.param(".a-0123abcg.txt", id="no-digits"),
        pytest.param(".-0123abcd.txt", id="no-stem"),
        pytest.param(".a-0123abcd.tar.gz", id="two-suffixes"),
    ],
)
def test_other_names_are_not_removed(tmp_path, name):
    (tmp_path / name).write_text("somebody's")
    remove_temporaries(tmp_path)
    assert (tmp_path / name).exists()


def test_temporaries_of_other_files_stay(tmp_path):
    for name in (".a-0123abcd.txt", ".b-0123abcd", ".a-0123abcd.json", ".ab-0123abcd.txt"):
        (tmp_path / name).write_text("somebody's")
    remove_temporaries(tmp_path, "a.txt", "b")
    assert {path.name for path in tmp_path.iterdir()} == {".a-0123abcd.json", ".ab-0123abcd.txt"}


def test_only_regular_files_are_removed(tmp_path):
    (tmp_path / "real").write_text("somebody's")
    (tmp_path / ".link-0123abcd.txt").symlink_to(tmp_path / "real")
    (tmp_path / ".folder-0123abcd.txt").mkdir()
    remove_temporaries(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
