"""One writer: who holds the lock is said, the dead hold nothing, readers never wait."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from small_index import make_index, put

from dinov2kit import StoreLocked
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.lock import WriterLock
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store


def note(**changes: object) -> str:
    boot = "another-boot"
    facts = {"pid": 4121, "host": "nas01", "boot_id": boot, "started": 1_700_000_000.0, "rows": 312004}
    return json.dumps({**facts, **changes})


def test_second_writer_is_told_who_writes_since_when_and_how_much(tmp_path):
    make_index(tmp_path / "ix", 3)
    with Store.open(tmp_path / "ix") as store:
        for seed in range(10, 10 + 1234):
            put(store, f"{seed}.jpg", seed)
        store.commit()
        with pytest.raises(StoreLocked) as caught:
            Store.open(tmp_path / "ix")
    since = time.strftime("%Y-%m-%d")
    assert f"pid {os.getpid()} on {socket.gethostname()} (started {since}" in caught.value.message
    assert "1,234 images so far" in caught.value.message
    assert "--wait" in caught.value.hint


def test_readers_open_while_a_writer_holds_the_lock(tmp_path):
    make_index(tmp_path / "ix", 3)
    with Store.open(tmp_path / "ix") as store:
        put(store, "new.jpg", 9)
        with Snapshot.open(tmp_path / "ix") as snapshot:
            assert snapshot.ids.tolist() == [1, 2, 3]


def test_waiting_takes_the_lock_when_it_is_given_back(tmp_path):
    make_index(tmp_path / "ix")
    store = Store.open(tmp_path / "ix")
    threading.Timer(0.4, store.close).start()
    before = time.monotonic()
    with Store.open(tmp_path / "ix", wait=20.0):
        assert 0.3 < time.monotonic() - before < 10


def test_lock_of_a_killed_writer_is_free(tmp_path):
    make_index(tmp_path / "ix")
    code = (
        "import sys, time; from pathlib import Path; from dinov2kit.indexes.store import Store\n"
        "store = Store.open(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "ix")], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"held\n"
    with pytest.raises(StoreLocked, match=f"pid {writer.pid} on"):
        Store.open(tmp_path / "ix")
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert (tmp_path / "ix" / "lock.json").exists()  # the dead left their note
    Store.open(tmp_path / "ix").close()
    assert not (tmp_path / "ix" / "lock.json").exists()


def test_note_of_another_machine_is_respected_until_a_person_removes_it(tmp_path):
    layout = Layout(make_index(tmp_path / "ix"))
    layout.lock_facts.write_text(note())
    with pytest.raises(StoreLocked, match=r"pid 4121 on nas01 .*312,004 images") as caught:
        Store.open(tmp_path / "ix")
    assert str(layout.lock_facts) in caught.value.hint
    layout.lock_facts.unlink()
    Store.open(tmp_path / "ix").close()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 3}', note(rows="many"), note(started="long ago")])
def test_unreadable_note_never_blocks_a_free_lock(tmp_path, text):
    layout = Layout(make_index(tmp_path / "ix"))
    layout.lock_facts.write_text(text)
    Store.open(tmp_path / "ix").close()


def test_a_writer_without_a_note_is_refused_all_the_same(tmp_path):
    layout = Layout(make_index(tmp_path / "ix"))
    with Store.open(tmp_path / "ix"):
        layout.lock_facts.unlink()
        with pytest.raises(StoreLocked, match="written by another process"):
            Store.open(tmp_path / "ix")


def test_note_of_this_host_is_stale_once_the_kernel_gives_the_lock(tmp_path):
    layout = Layout(make_index(tmp_path / "ix"))
    layout.lock_facts.write_text(note(host=socket.gethostname(), pid=os.getpid()))
    Store.open(tmp_path / "ix").close()


def test_lock_is_given_back_when_opening_fails(tmp_path):
    layout = Layout(make_index(tmp_path / "ix"))
    layout.manifest.write_bytes(b"no database at all, but long enough to be looked at" * 10)
    for _ in range(2):  # the second try must meet the same error, not a lock
        with pytest.raises(Exception, match="cannot be used"):
            Store.open(tmp_path / "ix")
    with WriterLock(layout):
        assert json.loads(layout.lock_facts.read_bytes())["pid"] == os.getpid()
