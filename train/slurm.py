"""One sbatch file for a run on a SLURM cluster: written, and submitted where sbatch is at hand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from dinov2kit.errors import ArgumentError, DependencyError
from dinov2kit.files import written_whole

_UNITS = {"m": 1, "h": 60, "d": 1440}
_WARNING_SECONDS = 180  # before the end: time to finish a step and to save


@dataclass(frozen=True)
class SlurmRequest:
    """What a run asks of the cluster.

    Attributes:
        nodes: how many machines.
        gpus: GPUs, and processes, on each; 0 asks for CPU nodes with one process each.
        time: longest time of one sitting, as 24h, 90m, 2d, or as SLURM writes it.
        cpus: cores for each process.
        partition: where to run; "" leaves it to the cluster.
        account: whom to bill; "" leaves it to the cluster.
        name: of the job.
    """

    nodes: int = 1
    gpus: int = 8
    time: str = "24h"
    cpus: int = 10
    partition: str = ""
    account: str = ""
    name: str = "dinokit"

    @property
    def minutes(self) -> int:
        """The time in minutes."""
        found = re.fullmatch(r"(\d+)([mhd])", self.time)
        if found:
            return int(found[1]) * _UNITS[found[2]]
        clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::\d\d)?", self.time)
        if clock:
            return int(clock[1] or 0) * 1440 + int(clock[2]) * 60 + int(clock[3])
        raise ArgumentError(f"{self.time!r} is no time", hint="write time=24h, 90m, 2d or 1-12:00:00")


def read_request(text: str) -> SlurmRequest:
    """Read `nodes=4,gpus=8,time=24h`.

    Raises:
        ArgumentError: a part is unknown, or its value makes no sense.
    """
    known = {field.name: field.type for field in fields(SlurmRequest)}
    chosen: dict[str, object] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or name not in known:
            raise ArgumentError(
                f"{part!r} is nothing to ask of SLURM", hint=f"write {', '.join(known)}, as nodes=4,time=24h"
            )
        if known[name] == "int" and not value.isdecimal():
            raise ArgumentError(f"{name} is {value!r}; wanted a whole number")
        if not re.fullmatch(r"[\w:.+-]+", value):
            raise ArgumentError(f"{name} is {value!r}, which cannot stand in a job file")
        chosen[name] = int(value) if known[name] == "int" else value
    request = SlurmRequest(**chosen)  # type: ignore[arg-type]
    if request.nodes < 1 or request.minutes < 1:
        raise ArgumentError(f"{request.nodes} nodes for {request.time}; wanted at least one node and 1m")
    return request


def job_file(request: SlurmRequest, arguments: Sequence[str], out: Path) -> str:
    """Return the text of the job: it trains, saves before its time ends, and queues itself again.

    Args:
        request: what to ask of the cluster.
        arguments: of `dinokit`, the command first.
        out: folder of the run, where the job writes its output.
    """
    days, minutes = divmod(request.minutes, 1440)
    settings = {
        "job-name": request.name,
        "nodes": request.nodes,
        "ntasks-per-node": request.gpus or 1,
        "cpus-per-task": request.cpus,
        **({"gpus-per-node": request.gpus} if request.gpus else {}),
        "time": f"{days}-{minutes // 60:02d}:{minutes % 60:02d}:00",
        **({"partition": request.partition} if request.partition else {}),
        **({"account": request.account} if request.account else {}),
        "signal": f"USR1@{_WARNING_SECONDS}",
        "output": f"{out}/slurm-%j.txt",
        "open-mode": "append",
    }
    header = [f"#SBATCH --{name}={value}" for name, value in settings.items()]
    command = shlex.join([sys.executable, "-m", "dinov2kit.cli", *arguments])
    return "\n".join(
        [
            "#!/bin/bash",
            *header,
            "#SBATCH --requeue",
            "",
            "# Before the time ends, SLURM sends USR1 to all processes: they finish their step, save, and",
            "# end with 130. The job then queues itself again, and goes on from there.",
            f"srun --kill-on-bad-exit=0 {command}",
            "code=$?",
            'if [ "$code" -eq 130 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            'exit "$code"',
            "",
        ]
    )


def submit(request: SlurmRequest, arguments: Sequence[str], out: Path) -> tuple[Path, str | None]:
    """Write OUT/train.sbatch and submit it.

    Returns: the file, and the number of the job; None where no sbatch is at hand.

    Raises:
        ArgumentError: the file cannot be written.
        DependencyError: SLURM refuses the job.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "train.sbatch"
    with written_whole(path) as temporary:
        temporary.write_text(job_file(request, arguments, out), "utf-8")
    if shutil.which("sbatch") is None:
        return path, None
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DependencyError(f"sbatch refuses {path}: {done.stderr.strip() or done.returncode}")
    return path, done.stdout.strip().partition(";")[0]
