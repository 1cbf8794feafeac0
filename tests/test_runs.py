"""What a folder tells of its run: healthy, killed, elsewhere, half written; and run.json itself."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from dinov2kit.errors import ArgumentError
from dinov2kit.train import runs
from dinov2kit.train.metrics import MetricsLog
from dinov2kit.train.run_record import read_record, write_record
from dinov2kit.train.runs import Score, follow_run, list_runs, run_status


def begin(run: Path, *, pid: int | None = None, host: str | None = None, **facts: object) -> Path:
    """Write a run of 1,000 steps of 64 images that has done 300."""
    run.mkdir(parents=True, exist_ok=True)
    who = {"pid": os.getpid() if pid is None else pid, "host": host or socket.gethostname()}
    usual = {"state": "running", "model": "vits14", "steps": 1000, "batch": 64, "images": 5000, "step": 260}
    write_record(run, **{**usual, **who, **facts})
    with MetricsLog(run) as log:
        for step in range(20, 301, 20):
            speed = 100.0 if step < 220 else 200.0 + step / 10
            numbers = {"loss": 12 - step / 100, "loss_over_lnk": 1 - step / 1e4, "images_per_second": speed}
            log.append({"kind": "train", "step": step, "images": 64 * step, **numbers})
        for step, knn in ((0, 0.156), (100, 0.42), (200, 0.31), (300, None)):
            numbers = {"rankme": 12 + step / 10} if knn is None else {"knn": knn, "knn_kind": "labels"}
            log.append({"kind": "eval", "step": step, "images": 64 * step, **numbers})
        for step, code, cleared in ((40, "a", False), (60, "b", False), (80, "a", True), (90, "c", False)):
            said = {"code": code, "sentence": f"{code} is wrong", "remedy": "mend it", "cleared": cleared}
            log.append({"kind": "diagnosis", "step": step, "images": 64 * step, **said})
    return run


def dead_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_a_running_run_is_told_from_its_folder(tmp_path: Path) -> None:
    run = begin(tmp_path / "a")
    (run / "export").mkdir()
    (run / "export" / "teacher.safetensors").write_bytes(bytes(5000))
    with FileLock(run / "run.lock"):
        facts = run_status(run)
    assert (facts.state, facts.model, facts.error, facts.problems) == ("running", "vits14", None, ())
    assert (facts.step, facts.steps, facts.share, facts.images) == (300, 1000, 0.3, 19200)
    assert facts.images_per_second == pytest.approx(226)  # mean of 222, 224, ... 230
    assert facts.eta_s == pytest.approx(700 * 64 / 226)
    assert (facts.loss, facts.loss_over_lnk) == (pytest.approx(9.0), pytest.approx(0.97))
    assert (facts.knn, facts.best_knn, facts.knn_kind) == (Score(0.31, 200), Score(0.42, 100), "labels")
    assert facts.rankme == 42
    assert [(one["code"], one["step"], one["sentence"]) for one in facts.diagnoses] == [
        ("c", 90, "c is wrong"),
        ("b", 60, "b is wrong"),
    ]
    assert facts.export == run / "export" / "teacher.safetensors"
    assert facts.nbytes == sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) > 5000
    said = json.loads(json.dumps(facts.to_json()))
    assert (said["run"], said["knn"]) == (str(run), {"value": 0.31, "step": 200})


def test_a_run_whose_process_has_gone_is_stopped(tmp_path: Path) -> None:
    for name, lock in (("without", False), ("with", True)):
        run = begin(tmp_path / name, pid=dead_pid())
        if lock:
            (run / "run.lock").touch()
        facts = run_status(run)
        assert (facts.state, facts.eta_s) == ("stopped", None)
        assert read_record(run)["state"] == "running"  # nothing was changed


def test_a_number_that_another_process_got_since_does_not_keep_a_run_alive(tmp_path: Path) -> None:
    run = begin(tmp_path / "a")  # the pid of this test
    assert run_status(run).state == "running"  # its lock is about to be taken
    (run / "run.lock").touch()
    assert run_status(run).state == "stopped"
    with FileLock(run / "run.lock"):
        assert run_status(run).state == "running"


def test_of_a_run_on_another_machine_silence_is_the_sign(tmp_path: Path) -> None:
    run = begin(tmp_path / "a", host="elsewhere", pid=dead_pid())
    (run / "run.lock").touch()
    assert run_status(run).state == "running"
    for path in (run / "run.json", run / "metrics.jsonl"):
        os.utime(path, (0, time.time() - 700))
    assert run_status(run).state == "stopped"
    with FileLock(run / "run.lock"):  # where locks travel
        assert run_status(run).state == "running"


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_what_has_ended_stays_ended(tmp_path: Path, state: str) -> None:
    run = begin(tmp_path / "a", state=state, error="no memory" if state == "failed" else None)
    with FileLock(run / "run.lock"):
        facts = run_status(run)
    assert facts.state == state
    assert facts.error == ("no memory" if state == "failed" else None)


def test_half_written_runs_are_told_as_far_as_they_can_be_read(tmp_path: Path) -> None:
    run = begin(tmp_path / "torn")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert run_status(run).step == 300
    (run / "run.json").write_text('{"schema": "dinokit.run/1", "cre')
    facts = run_status(run)
    assert (facts.state, facts.step, facts.steps, facts.share, facts.knn) == (
        "unknown",
        300,
        None,
        None,
        Score(0.31, 200),
    )
    assert "damaged" in facts.problems[0]
    (run / "metrics.jsonl").write_text("\n\n")
    assert len(run_status(run).problems) == 2
    bare = tmp_path / "bare"
    bare.mkdir()
    write_record(bare)
    facts = run_status(bare)
    assert (facts.step, facts.images, facts.knn, facts.loss, facts.images_per_second) == (
        0,
        None,
        None,
        None,
        None,
    )
    with pytest.raises(ArgumentError, match="is no run"):
        run_status(tmp_path)


def test_runs_are_found_at_some_depth_and_not_inside_of_runs(tmp_path: Path) -> None:
    for name in ("b", "group/a", "group/deep/c", "group/deep/er/d", ".hidden/e", "b/export/f"):
        begin(tmp_path / name)
    (tmp_path / "photos").mkdir()
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "metrics.jsonl").touch()
    found = [str(facts.run.relative_to(tmp_path)) for facts in list_runs(tmp_path)]
    assert found == ["b", "group/a", "group/deep/c", "log"]
    assert [facts.run for facts in list_runs(tmp_path / "b")] == [tmp_path / "b"]
    assert list_runs(tmp_path / "photos") == []
    with pytest.raises(ArgumentError, match="no such folder"):
        list_runs(tmp_path / "nowhere")


def test_following_ends_when_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path / "a")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        with MetricsLog(run) as log:
            log.append({"kind": "train", "step": 300 + 20 * len(waits), "images": 0})
        if len(waits) == 3:
            write_record(run, state="finished", step=1000)

    monkeypatch.setattr(runs.time, "sleep", wait)
    seen = [(facts.step, facts.state) for facts in follow_run(run, every=0.5)]
    assert seen == [(300, "running"), (320, "running"), (340, "running"), (1000, "finished")]
    assert waits == [0.5] * 3
    assert [facts.state for facts in follow_run(run)] == ["finished"]


def test_a_record_keeps_what_is_not_changed_and_appears_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_record(tmp_path, model="vits14", steps=10, state="running", digest="ab")
    assert first.keys() == {"created", "updated", "state", "step", "steps", "model", "digest"}
    second = write_record(tmp_path, step=4, error=None)
    assert second == {**first, "step": 4, "error": None, "updated": second["updated"]}
    assert read_record(tmp_path) == second
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["schema"] == "dinokit.run/1"
    (tmp_path / "run.json").write_text(json.dumps({**document, "later": 1}))
    assert read_record(tmp_path) == second  # a key of a later version
    before = (tmp_path / "run.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(ArgumentError, match="No space left"):
            write_record(tmp_path, step=5)
    assert (tmp_path / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"stepp": 3}, "unknown fact of a run 'stepp'"), ({"state": "done"}, "unknown state of a run 'done'")],
)
def test_facts_and_states_that_there_are_not_are_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        write_record(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ("[]", "has the schema None"),
        ('{"schema": "dinokit.run/2"}', "'dinokit.run/2'; wanted 'dinokit.run/1'"),
        (
            '{"schema": "dinokit.run/1", "created": "x", "updated": "x", "state": "running", "step": "4"}',
            "step is '4'",
        ),
        ('{"schema": "dinokit.run/1", "created": "x", "updated": "x", "state": "odd", "step": 4}', "'odd'"),
    ],
)
def test_a_record_that_makes_no_sense_is_said_to(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ArgumentError, match=said):
        read_record(tmp_path)
    with pytest.raises(ArgumentError, match=r"has no run\.json"):
        read_record(tmp_path / "nowhere")
