"""A file is read again when it has changed, and only then."""

import hashlib
import os
from pathlib import Path

import pytest

from fskd.errors import SettingError
from fskd.runs import hashes


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "teacher.pth", list[str]()
    plain = hashlib.file_digest

    def counted(stream: object, name: str) -> object:
        reads.append(name)
        return plain(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashes.hashlib, "file_digest", counted)
    for n, content in enumerate((b"one", b"two", b"three"), 1):
        path.write_bytes(content)
        os.utime(path, ns=(n, n))  # clocks of file systems tick in milliseconds
        for _ in range(2):
            expected = hashlib.sha256(content).hexdigest()
            assert hashes.file_hash(path, "teacher.checkpoint") == expected
        assert len(reads) == n
    path.unlink()
    with pytest.raises(SettingError, match=r"teacher\.checkpoint"):
        hashes.file_hash(path, "teacher.checkpoint")
