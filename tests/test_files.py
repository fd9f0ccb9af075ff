from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from mdp_fx.errors import InputError, MdpFxError, ModelError, OutputError
from mdp_fx.files import atomic_write, check_output, holds_json, reading, together


def test_check_output_accepts_a_new_file_and_an_old_one_with_force(tmp_path: Path) -> None:
    check_output(tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(b"old")
    check_output(tmp_path / "old.pt", force=True)
    assert (tmp_path / "old.pt").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.pt"]


def test_check_output_names_what_is_wrong(tmp_path: Path) -> None:
    old = tmp_path / "old.pt"
    old.touch()
    with pytest.raises(OutputError, match="exists; pass --force"):
        check_output(old)
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, force=True)
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "missing" / "a.pt")


@pytest.mark.parametrize(
    ("content", "found"),
    [(b'{"a": 1}', True), (b"\xef\xbb\xbf \n{}", True), (b"(dp0\n.", False), (b"PK\x03\x04{", False), (b"", False)],
)
def test_json_is_known_by_how_it_begins(content: bytes, found: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert holds_json(tmp_path / "file") is found


def test_what_cannot_be_read_holds_no_json(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing", "x" * 300, ""):
        assert not holds_json(tmp_path / name)


def test_special_files_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="not a regular file"):
        check_output(pipe, force=True)
    with pytest.raises(OutputError, match="not a regular file"):
        atomic_write(pipe, lambda file: file.write(b"x"))
    assert pipe.is_fifo()


def test_check_output_reports_a_folder_without_write_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(OutputError, match="not writable"):
        check_output(tmp_path / "a.pt")


def test_atomic_write_replaces_the_content_and_follows_links(tmp_path: Path) -> None:
    real = tmp_path / "real.bin"
    real.write_bytes(b"old")
    link = tmp_path / "link.bin"
    link.symlink_to(real)
    atomic_write(link, lambda file: file.write(b"new"))
    assert real.read_bytes() == b"new"
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="disk full") as caught:
        atomic_write(path, write)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a.bin", write)
    assert list(tmp_path.iterdir()) == []


def test_files_written_together_appear_together_or_not_at_all(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"before")
    with together():
        atomic_write(tmp_path / "new", lambda file: file.write(b"1"))
        atomic_write(old, lambda file: file.write(b"2"))
        assert not (tmp_path / "new").exists()
        assert old.read_bytes() == b"before"
    assert (tmp_path / "new").read_bytes() == b"1"
    assert old.read_bytes() == b"2"

    def write_all() -> None:
        with together():
            atomic_write(old, lambda file: file.write(b"3"))
            atomic_write(tmp_path / "other", lambda file: file.write(b"4"))
            atomic_write(tmp_path / "missing" / "file", lambda file: file.write(b"5"))

    with pytest.raises(OutputError, match="missing"):
        write_all()
    assert old.read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


@pytest.mark.parametrize("kind", [ModelError, InputError])
def test_what_cannot_be_read_is_one_line(kind: type[MdpFxError], tmp_path: Path) -> None:
    with pytest.raises(kind, match=r"^cannot read .*absent: no such file or directory$"), reading("absent", kind):
        (tmp_path / "absent").read_bytes()
