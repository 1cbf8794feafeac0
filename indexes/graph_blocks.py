"""Finished blocks of a graph on disk, so that an interrupted run goes on where it was.

    <work>/pairs-<key>/plan.json            how the neighbours are searched, chosen once
    <work>/pairs-<key>/ivf.faiss            the inverted file, if there is one
    <work>/pairs-<key>/block-00000000.npz   the edges of 4,096 rows

The key is a digest of what the edges depend on: the ids of both indexes and all settings. A changed index has
another key, so blocks of different states never mix. What other keys left behind is not touched: the folder
belongs to the caller, who deletes it when the edges have been used.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from dinov2kit.errors import StoreError

from .graph_search import BLOCK, PairsPlan
from .layout import write_durably
from .plan import AnnPlan
from .snapshot import Snapshot

logger = logging.getLogger(__name__)

_METHOD = 1  # raised when the same settings give other edges


@dataclass(frozen=True)
class BlockEdges:
    """The edges of the items of some rows, and how many of these items have as many as they may."""

    source: Int64[np.ndarray, " e"]
    target: Int64[np.ndarray, " e"]
    score: Float32[np.ndarray, " e"]
    saturated: int


class BlockFolder:
    """Where the blocks of one graph lie; without a folder nothing is kept."""

    def __init__(self, work: Path | None, snapshots: tuple[Snapshot, Snapshot], **settings: object) -> None:
        """Name the folder of the graph of two snapshots under some settings, and make it.

        Raises:
            StoreError: it cannot be made.
        """
        self.folder: Path | None = None
        if work is None:
            return
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([_METHOD, BLOCK, settings], sort_keys=True).encode())
        for snapshot in snapshots:
            digest.update(f"{snapshot.card.uuid} {len(snapshot)} ".encode())
            digest.update(snapshot.ids.tobytes())
        self.folder = work / f"pairs-{digest.hexdigest()}"
        _or_say(lambda folder: folder.mkdir(parents=True, exist_ok=True), self.folder)

    @property
    def index(self) -> Path | None:
        """The file of the inverted file."""
        return self.folder / "ivf.faiss" if self.folder else None

    def plan(self, make: Callable[[], PairsPlan]) -> PairsPlan:
        """Return the plan that the first run made: the memory that is free now must not change it."""
        if self.folder is None:
            return make()
        path = self.folder / "plan.json"
        try:
            facts = json.loads(path.read_bytes())
            ann = None if facts["ann"] is None else AnnPlan(**facts["ann"])
            return PairsPlan(**{**facts, "ann": ann})
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be used, it is made anew: %s", path, error)
        plan = make()
        _or_say(lambda file: write_durably(file, json.dumps(asdict(plan)).encode()), path)
        return plan

    def read(self, number: int) -> BlockEdges | None:
        """Return a finished block; None when there is none, or it is damaged."""
        if self.folder is None:
            return None
        try:
            with np.load(self._block(number), allow_pickle=False) as arrays:
                return BlockEdges(
                    arrays["source"], arrays["target"], arrays["score"], int(arrays["saturated"])
                )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("block %d cannot be used, it is made anew: %s", number, error)
            return None

    def write(self, number: int, edges: BlockEdges) -> None:
        """Keep a finished block.

        Raises:
            StoreError: it cannot be written.
        """
        if self.folder is not None:
            content = io.BytesIO()
            np.savez(content, **asdict(edges))
            _or_say(lambda file: write_durably(file, content.getvalue()), self._block(number))

    def _block(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{number:08d}.npz"


def _or_say(work: Callable[[Path], None], path: Path) -> None:
    try:
        work(path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space, or name another folder for the work; finished blocks stay",
        ) from error
