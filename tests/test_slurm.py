import os
import stat
import subprocess
from pathlib import Path

import pytest

from dinov2kit.errors import ArgumentError, DependencyError
from dinov2kit.train.slurm import SlurmRequest, job_file, read_request, submit

ARGUMENTS = ["train", "data=my photos/", "out=runs/a", "optim.lr=1e-3"]


def test_a_request_is_read_and_the_rest_keeps_its_default() -> None:
    assert read_request("nodes=4,time=2d,partition=gpu") == SlurmRequest(nodes=4, time="2d", partition="gpu")


@pytest.mark.parametrize(
    ("time", "minutes"), [("24h", 1440), ("90m", 90), ("2d", 2880), ("1-12:30:00", 2190), ("03:20:00", 200)]
)
def test_times_are_understood(time: str, minutes: int) -> None:
    assert SlurmRequest(time=time).minutes == minutes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("node=4", "'node=4' is nothing to ask"),
        ("nodes=four", "nodes is 'four'"),
        ("time=soon", "'soon' is no time"),
        ("nodes=0", "0 nodes"),
        ("partition=a;rm -rf /", "cannot stand in a job file"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ArgumentError, match=complaint.replace("(", r"\(")):
        read_request(text)


def test_the_job_runs_the_command_and_queues_itself_again_after_130(tmp_path: Path) -> None:
    """Run the job file itself, with commands that stand for those of SLURM."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {
        "srun": 'printf "%s\\n" "$@" > srun.txt; exit 130',
        "scontrol": 'echo "$@" > requeued',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    text = job_file(SlurmRequest(nodes=2, gpus=8, time="25h"), ARGUMENTS, Path("runs/a"))
    (tmp_path / "job").write_text(text)
    done = subprocess.run(
        ["bash", "job"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"},
        check=False,
    )
    assert done.returncode == 130
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert (tmp_path / "srun.txt").read_text().splitlines()[-4:] == ARGUMENTS
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=1-01:00:00", "--requeue"):
        assert f"#SBATCH {line}\n" in text


def test_the_file_is_submitted_where_sbatch_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    assert submit(SlurmRequest(), ARGUMENTS, tmp_path / "run") == (tmp_path / "run" / "train.sbatch", None)
    sbatch = programs / "sbatch"
    sbatch.write_text("#!/bin/bash\necho '4711;cluster'\n")
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    assert submit(SlurmRequest(), ARGUMENTS, tmp_path / "run")[1] == "4711"
    sbatch.write_text("#!/bin/bash\necho 'no such partition' >&2; exit 1\n")
    with pytest.raises(DependencyError, match="no such partition"):
        submit(SlurmRequest(), ARGUMENTS, tmp_path / "run")
