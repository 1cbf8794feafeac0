"""What every benchmark prints first: where and of what it measured."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def describe_setting() -> str:
    """Return machine, date, commit and versions in one line."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "faiss-cpu", "pillow", "numpy"))
    cores = len(os.sched_getaffinity(0))
    date = datetime.now(UTC).date().isoformat()
    python = platform.python_version()
    return f"{_processor()}, {cores} cores; {date}; commit {commit}; Python {python}, {versions}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
