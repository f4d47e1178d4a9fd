"""Files appear whole, or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from rgbd_jax.atomic_write import atomic_write


def test_a_file_appears_with_its_folder_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as unfinished:
        unfinished.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left"), "{path} cannot be written: No space left; buy a disk"),
        (FileNotFoundError(errno.ENOENT, "No such file", "clip.avi"), "[Errno 2] No such file: 'clip.avi'"),
        (FileExistsError("there already: give another name"), "there already: give another name"),
        (KeyboardInterrupt("stopped"), "stopped"),
    ],
)
def test_after_an_error_the_file_is_as_before(tmp_path, error, told):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as raised, atomic_write(path, "buy a disk") as unfinished:  # noqa: PT012
        unfinished.write_text("half")
        raise error
    assert str(raised.value) == told.format(path=path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("taken", ["folder", "file"])
def test_where_nothing_can_be_written_the_file_is_named(tmp_path, taken):
    path = tmp_path / "file.txt" if taken == "folder" else tmp_path / "other" / "file.txt"
    if taken == "folder":
        path.mkdir()
    else:
        path.parent.write_text("no folder")
    reason = "Is a directory" if taken == "folder" else f"{path.parent}: File exists"
    with (
        pytest.raises(OSError, match=f"^{path} cannot be written: {reason}; make room"),
        atomic_write(path) as unfinished,
    ):
        unfinished.write_text("all of it")
    assert list(tmp_path.iterdir()) == [path if taken == "folder" else path.parent]


def test_a_kill_amid_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from rgbd_jax.atomic_write import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, path], check=False, cwd=os.getcwd())
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
