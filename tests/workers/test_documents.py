"""What workers agree on: one change at a time, seen whole."""

import os
import threading
from pathlib import Path

import pytest

from stroboscope.errors import FolderError
from stroboscope.workers.documents import Document
from stroboscope.workers.folder import Folder


def test_no_change_is_lost(tmp_path: Path) -> None:
    """Many who count up at once count every time."""
    folder = Folder(str(tmp_path), "shop")

    def count() -> None:
        document = Document(folder, "settings")
        for _ in range(20):
            with document.changing() as value:
                value["count"] = value.get("count", 0) + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Document(folder, "settings").changed() == {"count": 80}


def test_a_change_is_seen_once(tmp_path: Path) -> None:
    """Who looks again sees that nothing changed."""
    folder = Folder(str(tmp_path), "shop")
    reader, writer = Document(folder, "settings"), Document(folder, "settings")

    assert reader.changed() == {}
    assert reader.changed() is None
    with writer.changing() as value:
        value["a"] = 1
    assert reader.changed() == {"a": 1}
    assert reader.changed() is None


def test_a_change_that_fails_leaves_what_was(tmp_path: Path) -> None:
    """And lets the next one change."""
    document = Document(Folder(str(tmp_path), "shop"), "settings")
    with document.changing() as value:
        value["a"] = 1

    def fail() -> None:
        with document.changing() as value:
            value["a"] = 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    with document.changing() as value:
        assert value == {"a": 1}


def test_garbage_is_an_empty_object(tmp_path: Path) -> None:
    """Whatever another version, or a full disk, has left there."""
    folder = Folder(str(tmp_path), "shop")
    for text in (b"{", b"[1]", b"\xff", b"[" * 100_000, b""):
        folder.write("settings", text)
        assert Document(folder, "settings").changed() == {}


def test_who_stands_still_in_a_change_stops_nobody_for_long(tmp_path: Path) -> None:
    """The others are refused after half a second."""
    folder = Folder(str(tmp_path), "shop")
    held = folder.lock("settings.lock")
    assert held is not None

    with pytest.raises(FolderError, match="stands still"):
        Document(folder, "settings").changing().__enter__()
    os.close(held)
