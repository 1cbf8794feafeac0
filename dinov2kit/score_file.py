"""The scores of an unfinished evaluation in a file that grows: a line of settings, then a line per pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from dinov2kit.errors import ArgumentError
from dinov2kit.keypoint_scores import PairScore


class ScoreFile:
    """Scores that outlive the process; to be used in a `with` block.

    Args:
        out: the report that the scores are for, which they lie beside; None keeps nothing.
        settings: everything that changes a score. Scores of other settings are refused.

    Attributes:
        path: the file, `out` + ".partial"; None where nothing is kept.
        scores: those there are, by the name of their pair.
    """

    def __init__(self, out: Path | None, settings: Mapping[str, object]) -> None:
        self.path = None if out is None else out.with_name(out.name + ".partial")
        self.scores: dict[str, PairScore] = {}
        self._settings = json.loads(json.dumps(settings))

    def __enter__(self) -> None:
        """Take the scores of an earlier run and get ready for more.

        Raises:
            ArgumentError: they were made with other settings, or the file cannot be read or written.
        """
        if self.path is None:
            return
        try:
            if self.path.exists():
                self._read(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise ArgumentError(f"cannot write {self.path}: {error.strerror or error}") from error
        if not self.path.stat().st_size:
            self._write(self._settings)

    def __exit__(self, *_: object) -> None:
        """Close the file and leave it where it is."""
        if self.path is not None:
            self._file.close()

    def add(self, score: PairScore) -> None:
        """Keep one more score."""
        self.scores[score.name] = score
        if self.path is not None:
            self._write(score.to_json())

    def drop(self) -> None:
        """Remove the file: the evaluation is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, row: Mapping[str, object]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _read(self, path: Path) -> None:
        """Take the scores of the whole lines; a line that a kill cut off is dropped from the file."""
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode("utf-8").splitlines()
        if lines and json.loads(lines[0]) != self._settings:
            raise ArgumentError(
                f"{path} holds an unfinished run with other settings", hint="remove it, or name another --out"
            )
        for line in islice(lines, 1, None):
            score = PairScore.from_json(json.loads(line))
            self.scores[score.name] = score
        if whole != content:
            path.write_bytes(whole)
