"""`Index`: one moment of an index, opened for searching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float16, Int, Int64

from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.pipeline import GlobalEncoder
from dinov2kit.views import Region

from .layout import check_model
from .locate import find_index
from .query import Query, Question, ask
from .search import Searcher
from .snapshot import Photo, Snapshot

NEAR_DUPLICATE = 0.97  # cosine from which `unique` takes two photos for one


@dataclass(frozen=True)
class Hit:
    """A photo that was found.

    Attributes:
        id: item id.
        score: cosine similarity to the query, in [-1, 1]; not a probability.
        path: the file when it was last seen.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
        taken_at: when the photo was taken, ISO 8601, or None.
        gone: whether there is no file at `path` any more.
    """

    id: int
    score: float
    path: Path
    width: int
    height: int
    taken_at: str | None
    gone: bool

    def to_json(self) -> dict[str, object]:
        """Return the hit as `json.dumps` takes it."""
        return {**vars(self), "path": str(self.path), "score": round(self.score, 6)}


class Index:
    """One moment of an index, opened for searching; a context manager. Threads may share it.

    Writers do not disturb it, and it does not see what they do: open it again for that.

    Attributes:
        directory: where the index lies.
    """

    def __init__(
        self,
        directory: Path,
        *,
        model: str | None = None,
        encoder: GlobalEncoder | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        """Open an index; use `Index.open`."""
        self.directory = directory
        self._model = model
        self._given = encoder
        self._device, self._precision = device, precision
        self.snapshot = Snapshot.open(directory)

    @classmethod
    def open(
        cls,
        directory: Path | str | None = None,
        *,
        model: str | None = None,
        encoder: GlobalEncoder | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Index:
        """Open an index.

        The model is loaded when the first image has to be described, and must be the one of the index.

        Args:
            directory: the index; None finds it as `find_index` does.
            model: another place of the same weights.
            encoder: describes queries instead of `model`.
            device: as for `Encoder`.
            precision: as for `Encoder`.

        Raises:
            StoreMissing: there is no index.
            StoreTooNew: a newer version wrote it.
            StoreCorrupt: manifest or shards are damaged.
        """
        named = None if directory is None else Path(directory)
        return cls(find_index(named), model=model, encoder=encoder, device=device, precision=precision)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self.snapshot.close()

    def __len__(self) -> int:
        return len(self.snapshot)

    @property
    def model(self) -> str:
        """Name of the model of the index."""
        return self.snapshot.card.model.name

    @cached_property
    def encoder(self) -> GlobalEncoder:
        """What describes queries.

        Raises:
            WeightsError: the model cannot be loaded.
            StoreMismatch: it is not that of the index.
        """
        from dinov2kit.encoder import Encoder  # torch: only when an image has to be described

        made = self._given
        if made is None:
            try:
                made = Encoder(self._model or self.model, device=self._device, precision=self._precision)
            except WeightsError as error:
                hint = error.hint or "say where the weights are now with --model PATH"
                raise WeightsError(f"the model of the index: {error.message}", hint=hint) from error
        check_model(self.snapshot.card, made.identity)
        return made

    def search(
        self,
        query: Query | Sequence[Query],
        k: int = 10,
        *,
        where: str | None = None,
        min_score: float | None = None,
        unique: bool = False,
        include_self: bool = False,
        existing: bool = False,
        region: Region | None = None,
        exact: bool = False,
        nprobe: int | None = None,
    ) -> list[Hit]:
        """Return the photos nearest to a query, best first, equal scores by id.

        Args:
            query: path of an image or folder, encoded bytes, PIL image, RGB array, item id, or "id:123"; of
                several, or of a folder, the mean is asked.
            k: how many photos, at most.
            where: an SQL expression over the columns that `where.select_ids` has.
            min_score: lower scores are left out.
            unique: of photos with the same content, or a cosine of 0.97 or more to each other, only the best.
            include_self: also find the photos that the query consists of.
            existing: leave out photos whose file is gone.
            region: the part of each query image that is asked for.
            exact: compare every row.
            nprobe: clusters to look at, instead of the tuned number.

        Raises:
            ImageError: a query cannot be read.
            ArgumentError: an argument makes no sense, or there is no such item.
            WeightsError, StoreMismatch: as `encoder`.
        """
        several = isinstance(query, Sequence) and not isinstance(query, (str, bytes))
        question = self.ask(query if several else [query], region=region)  # type: ignore[list-item, arg-type]
        return self.answer(
            question,
            k,
            where=where,
            min_score=min_score,
            unique=unique,
            include_self=include_self,
            existing=existing,
            exact=exact,
            nprobe=nprobe,
        )

    def ask(self, queries: Sequence[Query], *, region: Region | None = None) -> Question:
        """Make some queries ready to be answered together; arguments and errors as `search`."""
        return ask(self.snapshot, queries, lambda: self.encoder, region=region)

    def answer(
        self,
        question: Question,
        k: int = 10,
        *,
        where: str | None = None,
        min_score: float | None = None,
        unique: bool = False,
        include_self: bool = False,
        existing: bool = False,
        exact: bool = False,
        nprobe: int | None = None,
    ) -> list[Hit]:
        """Return the photos nearest to a question; arguments and errors as `search`."""
        if k < 1:
            raise ArgumentError(f"k must be at least 1, not {k}")
        allowed = None if where is None else self.snapshot.where(where)
        left_out = () if include_self else question.ids
        wanted = k + len(left_out)
        most = len(self) if allowed is None else len(allowed)
        while True:
            ids, scores = self._searcher.search(
                question.descriptor[None], wanted, allowed=allowed, exact=exact, nprobe=nprobe
            )
            good = (ids[0] >= 0) & ~np.isin(ids[0], left_out)
            if min_score is not None:
                good &= scores[0] >= min_score
            found, score = ids[0][good], scores[0][good]
            if existing:
                here = [photo.path.exists() for photo in self.snapshot.photos(found)]
                found, score = found[here], score[here]
            if unique:
                first = self._first_of_each(found)
                found, score = found[first], score[first]
            if len(found) >= k or wanted >= most or (min_score is not None and scores[0][-1] < min_score):
                return self._hits(found[:k], score[:k])
            wanted = min(4 * wanted, most)

    def photos(self, ids: Int[np.ndarray, " n"]) -> list[Photo]:
        """Return what is known of items, in the order of `ids`."""
        return self.snapshot.photos(ids)

    def descriptors(self, ids: Int[np.ndarray, " n"]) -> Float16[np.ndarray, "n dim"]:
        """Return the L2-normalised descriptors of items, in the order of `ids`."""
        return self.snapshot.descriptors(ids)

    @cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self.snapshot)

    def _first_of_each(self, ids: Int64[np.ndarray, " n"]) -> list[int]:
        """Return the places of the photos that are no near-duplicate of one before them."""
        rows = self.snapshot.descriptors(ids).astype(np.float32)
        kept: list[int] = []
        for place in range(len(ids)):
            if not kept or float((rows[kept] @ rows[place]).max()) < NEAR_DUPLICATE:
                kept.append(place)
        return kept

    def _hits(self, ids: Int64[np.ndarray, " n"], scores: np.ndarray) -> list[Hit]:
        photos = self.snapshot.photos(ids)
        return [
            Hit(
                photo.id,
                float(score),
                photo.path,
                photo.width,
                photo.height,
                photo.taken_at,
                gone=not photo.path.exists(),
            )
            for photo, score in zip(photos, scores, strict=True)
        ]
