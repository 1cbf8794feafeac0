"""Results of the long stages of a work, each kept in a folder that is named by all that it depends on.

    <folder>/pairs-3f2a9c0e11d4b6a7/stage.json      what it depends on, for people
    <folder>/pairs-3f2a9c0e11d4b6a7/result.npz      its arrays; there when the stage is done
    <folder>/pairs-3f2a9c0e11d4b6a7/work/           what an unfinished stage keeps

A changed setting changes the name of those stages that depend on it, and of no other. It may all be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dinov2kit.errors import StoreError

from .layout import move_durably, write_durably

Arrays = dict[str, np.ndarray]
_FORMAT = 1  # raised when a stage computes something else from the same settings
RESULT, FACTS, WORK = "result.npz", "stage.json", "work"


class StageCache:
    """Runs stages, or takes their results from an earlier run.

    Attributes:
        folder: where the results lie; made when the first one is written.
        fresh: compute everything anew.
        computed: names of the stages that were computed.
        reused: names of the stages whose results were there.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.folder = folder
        self.fresh = fresh
        self.computed: list[str] = []
        self.reused: list[str] = []

    def run(
        self, stage: str, depends: Mapping[str, object], compute: Callable[[Path], Mapping[str, np.ndarray]]
    ) -> Arrays:
        """Return the arrays of a stage.

        Args:
            stage: its name.
            depends: everything that its result depends on, as JSON takes it; arrays count by their digest.
            compute: called when there is no result, with a folder that outlives an interruption.

        Raises:
            StoreError: the folder cannot be written.
        """
        facts = {name: _fact(value) for name, value in depends.items()}
        text = json.dumps({"format": _FORMAT, "stage": stage, **facts}, sort_keys=True)
        folder = self.folder / f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if not self.fresh and (kept := _read(folder / RESULT)) is not None:
            self.reused.append(stage)
            return kept
        work = folder / WORK
        try:
            if self.fresh and work.exists():
                shutil.rmtree(work)
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from error
        made = dict(compute(work))
        try:
            write_durably(folder / FACTS, text.encode() + b"\n")
            _write(folder / RESULT, made)
        except OSError as error:
            raise self._refusal(error) from error
        shutil.rmtree(work, ignore_errors=True)
        self.computed.append(stage)
        return made

    def _refusal(self, error: OSError) -> StoreError:
        return StoreError(
            f"stages cannot be kept in {self.folder}: {error.strerror or error}",
            hint="name a folder that can be written with --work DIR",
        )


def digest(array: np.ndarray) -> str:
    """Return a short name for the contents of an array."""
    whole = np.ascontiguousarray(array)
    name = hashlib.blake2b(f"{whole.dtype.str}{whole.shape}".encode(), digest_size=16)
    name.update(whole.data if whole.size else b"")
    return name.hexdigest()


def _fact(value: object) -> object:
    return digest(value) if isinstance(value, np.ndarray) else value


def _read(path: Path) -> Arrays | None:
    """Return the arrays of a finished stage; one that is missing or torn is as good as none."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        move_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
