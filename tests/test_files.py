import errno
import io
import os
import stat

import pytest

from sam2_jax.files import PartialFile, write_file


def test_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "a.bin"
    for data in (b"first", b"second"):
        write_file(path, data)
        assert path.read_bytes() == data
    # Readable by whoever may read other files here: no leftover of a private temporary file.
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a.bin", "other")]
    assert modes[0] == modes[1]
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "other"]


def test_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, disk_of):
    path = tmp_path / "a.bin"
    path.write_bytes(b"an older file")
    with disk_of(1000), pytest.raises(OSError, match=r"too large: '.*/a\.bin'"):
        write_file(path, bytes(2000))
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"an older file"


def test_error_keeps_its_number(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builtins.open", lambda *_: type("Full", (io.BytesIO,), {"write": full})())
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.bin'") as error:
        write_file(tmp_path / "a.bin", b"data")
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_place_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*gone"):
        write_file(tmp_path / "gone" / "a.bin", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_file(tmp_path / "folder", b"data")
    assert os.listdir(tmp_path) == ["folder"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    first, second = PartialFile(tmp_path / "a"), PartialFile(tmp_path / "a")
    assert first.partial != second.partial
