"""Downloads over real connections: a server on loopback that can be made to misbehave.

The server counts the bytes of content that it sends: a resumed download must not fetch them twice.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dinov2kit.catalogue import find_model
from dinov2kit.download import download, pull_model
from dinov2kit.errors import WeightsError
from dinov2kit.weight_files import verify_file


def archive(nbytes: int, seed: int = 0) -> bytes:
    """Return a ZIP archive, as a PyTorch checkpoint is one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as parts:
        parts.writestr("archive/data/0", random.Random(seed).randbytes(nbytes))
    return file.getvalue()


CONTENT = archive(3_000_000)


class Server:
    """Serves one content at every path; `drops` are the lengths after which successive answers break off."""

    def __init__(self) -> None:
        self.content, self.etag, self.modified = CONTENT, '"one"', ""
        self.drops: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.declared: int | None = None
        self.delay = self.hang = 0.0  # seconds before the body and after it
        self.shift = 0
        self.chunked = False
        self.sent = 0
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.requests.append((request.path, asked, condition))
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            return request.send_error(status)
        body, start = self.content, 0
        if asked and self.ranges and condition in (self.etag, self.modified):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + self.shift  # type: ignore[index]
            if start >= len(body):
                return request.send_error(416)
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if not self.chunked:
            request.send_header("Content-Length", str((self.declared or len(body)) - start))
        if self.etag:
            request.send_header("ETag", self.etag)
        if self.modified:
            request.send_header("Last-Modified", self.modified)
        request.end_headers()
        time.sleep(self.delay)
        stop = start + self.drops.pop(0) if self.drops else len(body)
        for at in range(start, min(stop, len(body)), 65536):
            piece = body[at : min(at + 65536, stop)]
            request.wfile.write(piece)
            self.sent += len(piece)
        time.sleep(self.hang)
        return None

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("DINOKIT_OFFLINE", raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "model.pth"


def fetch(server: Server, path: Path, **options: Any) -> Any:
    return download(f"{server.url}/model.pth", path, **{"backoff": 0.01, "timeout": 5.0, **options})


def names(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")}


def test_a_download_is_the_content_with_its_digest_beside_it(server: Server, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    got = fetch(server, path, progress=lambda here, total: seen.append((here, total)))
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert path.read_bytes() == CONTENT
    assert (got.path, got.sha256) == (path, digest)
    assert (path.parent / "model.pth.sha256").read_text() == f"{digest} {len(CONTENT)}\n"
    assert names(path) == {"model.pth", "model.pth.sha256"}
    assert seen == sorted(seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_what_is_here_is_not_fetched_again(server: Server, path: Path) -> None:
    first, second = fetch(server, path), fetch(server, path)
    assert first == second
    assert len(server.requests) == 1


def test_a_dropped_connection_is_continued_and_no_byte_comes_twice(server: Server, path: Path) -> None:
    server.drops = [1_000_000, 700_000, 5]
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    assert [asked for _, asked, _ in server.requests] == [
        None,
        "bytes=1000000-",
        "bytes=1700000-",
        "bytes=1700005-",
    ]
    assert {condition for _, _, condition in server.requests[1:]} == {'"one"'}


def test_patience_does_not_end_while_bytes_arrive(server: Server, path: Path) -> None:
    server.drops = [300_000] * 9
    fetch(server, path, retries=2)
    assert path.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_what_came_from_another_address_is_not_continued(server: Server, path: Path) -> None:
    server.drops = [1_000_000]
    with pytest.raises(WeightsError):
        fetch(server, path, retries=0)
    download(f"{server.url}/mirror/model.pth", path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1] == ("/mirror/model.pth", None, None)


def test_a_later_call_continues_what_an_earlier_one_left(server: Server, path: Path) -> None:
    server.drops = [2_000_000]
    with pytest.raises(WeightsError, match=r"2\.0 MB have arrived and are kept"):
        fetch(server, path, retries=0)
    assert not path.exists()
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_the_date_serves_where_there_is_no_strong_etag(server: Server, path: Path) -> None:
    server.etag, server.modified = 'W/"weak"', "Mon, 01 May 2023 10:00:00 GMT"
    server.drops = [1_000_000]
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1][2] == server.modified
    assert server.sent == len(CONTENT)


def test_without_any_validator_a_download_starts_over(server: Server, path: Path) -> None:
    server.etag, server.drops = "", [1_000_000]
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked, _ in server.requests] == [None, None]


def test_content_that_changed_meanwhile_is_never_mixed(server: Server, path: Path) -> None:
    server.drops = [1_000_000]
    with pytest.raises(WeightsError):
        fetch(server, path, retries=0)
    server.content, server.etag = archive(2_500_000, seed=1), '"two"'
    fetch(server, path)
    assert path.read_bytes() == server.content


def test_a_part_of_other_content_is_refused_even_when_the_server_ignores_the_condition(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.drops = [1_000_000]
    with pytest.raises(WeightsError):
        fetch(server, path, retries=0)
    server.content, server.etag, server.modified = archive(2_500_000, seed=1), '"two"', '"one"'
    fetch(server, path)
    assert path.read_bytes() == server.content
    assert [asked for _, asked, _ in server.requests] == [None, "bytes=1000000-", None]


def test_a_range_that_was_not_asked_for_is_not_appended(server: Server, path: Path) -> None:
    server.drops, server.shift = [1_000_000], 7
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked, _ in server.requests] == [None, "bytes=1000000-", None]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: Server, path: Path) -> None:
    server.ranges, server.drops = False, [1_000_000]
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1][1] == "bytes=1000000-"
    assert server.sent == len(CONTENT) + 1_000_000


def test_a_whole_part_file_is_taken_without_asking_again(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("dinov2kit.download._accept", stop)
        with pytest.raises(Stop):
            fetch(server, path)
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_part_longer_than_the_content_is_thrown_away(server: Server, path: Path) -> None:
    server.chunked, server.drops = True, [1_000_000]  # without a length the end is not known
    with pytest.raises(WeightsError, match="its end is missing"):
        fetch(server, path)
    server.drops = [2_000_000]
    with pytest.raises(KeyboardInterrupt):
        fetch(server, path, progress=interrupt_after(2_000_000))
    server.content = archive(1_000_000)
    fetch(server, path)
    assert path.read_bytes() == server.content
    assert [asked for _, asked, _ in server.requests] == [None, None, "bytes=2000000-", None]


def interrupt_after(nbytes: int) -> Any:
    def progress(here: int, total: int | None) -> None:
        if here >= nbytes:
            raise KeyboardInterrupt

    return progress


def test_an_interrupt_keeps_what_has_arrived(server: Server, path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(server, path, progress=interrupt_after(1_000_000))
    kept = (path.parent / "model.pth.part").stat().st_size
    assert 1_000_000 <= kept < len(CONTENT)
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1][1] == f"bytes={kept}-"


def test_a_length_that_is_too_long_ends_in_an_error(server: Server, path: Path) -> None:
    server.declared = len(CONTENT) + 100
    with pytest.raises(WeightsError, match="cannot download"):
        fetch(server, path, retries=2)
    assert not path.exists()


def test_a_length_that_is_too_short_is_noticed(server: Server, path: Path) -> None:
    server.declared = len(CONTENT) - 100
    with pytest.raises(WeightsError, match="its end is missing"):
        fetch(server, path)
    assert names(path) <= {"model.pth.part.json"}


def test_a_wrong_checksum_throws_the_content_away(server: Server, path: Path) -> None:
    with pytest.raises(WeightsError, match="its SHA-256 is"):
        fetch(server, path, sha256="0" * 64)
    assert names(path) <= {"model.pth.part.json"}
    fetch(server, path, sha256=hashlib.sha256(CONTENT).hexdigest().upper())
    with pytest.raises(WeightsError, match="damaged"):
        fetch(server, path, sha256="0" * 64)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_reported_at_once(server: Server, path: Path, status: int) -> None:
    server.statuses = [status] * 9
    with pytest.raises(WeightsError, match=f"answered {status}") as caught:
        fetch(server, path)
    assert "DINOKIT_WEIGHTS_URL" in str(caught.value.hint)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server: Server, path: Path) -> None:
    server.statuses = [503, 429, 500]
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_patience_ends_after_the_retries(server: Server, path: Path) -> None:
    server.statuses = [503] * 9
    with pytest.raises(WeightsError, match="answered 503"):
        fetch(server, path, retries=3)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "it is a web page"),
        (b"\n <html><body>portal</body></html>", "it is a web page"),
        (b"", "it is empty"),
        (b"quota exceeded", "it begins with b'quota ex'"),
    ],
)
def test_what_is_no_model_is_refused(server: Server, path: Path, content: bytes, said: str) -> None:
    server.content = content
    with pytest.raises(WeightsError, match=re.escape(said)) as caught:
        fetch(server, path)
    assert str(path) in str(caught.value.hint)
    assert not path.exists()
    server.content, server.etag = CONTENT, '"two"'
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_safetensors_are_a_model(server: Server, path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    server.content = len(header).to_bytes(8, "little") + header + bytes(4)
    assert fetch(server, path).sha256 == hashlib.sha256(server.content).hexdigest()


def test_silence_counts_as_a_dropped_connection(server: Server, path: Path) -> None:
    server.drops, server.hang = [1_000_000], 20.0
    started = time.monotonic()
    fetch(server, path, timeout=0.4)
    assert path.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    assert time.monotonic() - started < 15.0


def test_a_machine_that_does_not_answer_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("DINOKIT_OFFLINE", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/model.pth"
        with pytest.raises(WeightsError, match="Connection refused") as caught:
            download(url, path, retries=1, backoff=0.01)
    assert str(path) in str(caught.value.hint)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://here/model.pth", "model.pth"])
def test_only_http_is_spoken(url: str, path: Path) -> None:
    with pytest.raises(WeightsError, match="https://"):
        download(url, path)


def test_offline_never_asks_the_server(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    with pytest.raises(WeightsError, match="DINOKIT_OFFLINE") as caught:
        fetch(server, path)
    assert str(path) in str(caught.value.hint)
    assert server.requests == []
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_bytes(CONTENT)  # put there by hand
    assert fetch(server, path).sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_a_full_disk_is_said_before_anything_is_written(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1_500_000))
    with pytest.raises(WeightsError, match=r"needs 3\.0 MB more, and 1\.5 MB are free") as caught:
        fetch(server, path)
    assert "free some space" in str(caught.value.hint)
    assert names(path) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_meanwhile_is_said(server: Server, path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "model.pth.part").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=os.strerror(errno.ENOSPC)) as caught:
        fetch(server, path)
    assert "free some space" in str(caught.value.hint)
    assert len(server.requests) == 1


def test_a_folder_that_cannot_be_made_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(WeightsError, match="cannot keep weights in") as caught:
        fetch(server, tmp_path / "taken" / "model.pth")
    assert "DINOKIT_HOME" in str(caught.value.hint)
    assert server.requests == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o500)
    with pytest.raises(WeightsError, match="Permission denied") as caught:
        fetch(server, path)
    assert "DINOKIT_HOME" in str(caught.value.hint)


def test_two_processes_fetch_a_file_once(server: Server, path: Path) -> None:
    server.delay = 1.0  # long enough for the second to come while the first is at it
    program = (
        "import sys; from pathlib import Path; from dinov2kit.download import download;"
        "print(download(sys.argv[1], Path(sys.argv[2])).sha256)"
    )
    command = [sys.executable, "-c", program, f"{server.url}/model.pth", str(path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [
        hashlib.sha256(CONTENT).hexdigest()
    ] * 2
    assert len(server.requests) == 1


def test_a_damaged_file_is_recognised_and_the_way_out_is_said(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    digest = verify_file(path).sha256  # put there by hand: gets a record
    assert verify_file(path).sha256 == digest
    path.write_bytes(CONTENT[:1000] + b"\0" + CONTENT[1001:])
    with pytest.raises(WeightsError, match=f"not {digest}") as caught:
        verify_file(path)
    assert "model.pth.sha256" in str(caught.value.hint)
    path.write_bytes(CONTENT[:-5])
    with pytest.raises(WeightsError, match=f"it has {len(CONTENT) - 5:,} bytes, not {len(CONTENT):,}"):
        verify_file(path)


def test_a_page_saved_by_hand_as_weights_gets_no_record(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"<html>log in</html>")
    with pytest.raises(WeightsError, match="it is a web page"):
        verify_file(path)
    assert names(path) == {"model.pth"}


def test_a_released_model_comes_from_its_address_into_the_folder_of_weights(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path))
    monkeypatch.setenv("DINOKIT_WEIGHTS_URL", f"{server.url}/mirror/")
    got = pull_model("vits14-reg")
    assert got.path == tmp_path / "weights" / find_model("vits14_reg").file_name
    assert pull_model("facebook/dinov2-with-registers-small") == got
    assert [where for where, _, _ in server.requests] == [
        "/mirror/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"
    ]
