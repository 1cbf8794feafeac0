"""`Index`: one moment of an index, opened for searching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float16, Int, Int64

from dinov2kit.errors import WeightsError
from dinov2kit.images import is_there
from dinov2kit.pipeline import GlobalEncoder

from .aggregate import Aggregation
from .answering import Filters, answer
from .expansion import ALPHA
from .layout import check_model
from .locate import find_index
from .query import Query, Question, Regions, ask
from .records import Watch
from .search import Searcher
from .snapshot import Photo, Snapshot

if TYPE_CHECKING:
    from dinov2kit.features import FeatureSpec
    from dinov2kit.geometry import GeometryKind
    from dinov2kit.matching import MatchSpec
    from dinov2kit.pairs import LocalEncoder

    from .reranking import Reranked, SourceEncoder


@dataclass(frozen=True)
class Hit:
    """A photo that was found.

    Attributes:
        id: item id.
        score: cosine similarity to the query, in [-1, 1]; not a probability. Of several queries what ranks
            the hits: a cosine, or with "rrf" a sum of reciprocal ranks.
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
        self._photos: dict[Path | None, tuple[SourceEncoder, LocalEncoder]] = {}  # by their cache

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
        weights: Sequence[float] | None = None,
        agg: Aggregation = "mean",
        expand: int = 0,
        alpha: float = ALPHA,
        where: str | None = None,
        min_score: float | None = None,
        unique: bool = False,
        include_self: bool = False,
        existing: bool = False,
        region: Regions = None,
        exact: bool = False,
        nprobe: int | None = None,
    ) -> list[Hit]:
        """Return the photos nearest to a query, best first, equal scores by id.

        Args:
            query: path of an image or folder, encoded bytes, PIL image, RGB array, item id, "id:123", or a
                descriptor; or several of these. A folder is as many queries as it has images.
            k: how many photos, at most.
            weights: how much each query counts; what has a weight below 0 the hits shall be unlike, and is
                never among them.
            agg: several queries are asked by their weighted "mean", by the highest ("max") or the lowest
                ("min") of their cosines, or by the sum of 1 / (60 + rank) of a photo over them ("rrf").
            expand: so many of the best photos are added to the query, and it is asked again.
            alpha: a photo counts its score to this power then; see `expansion.expand`.
            where: an SQL expression over the columns that `where.select_ids` has.
            min_score: lower scores are left out.
            unique: of photos with the same content, or a cosine of 0.97 or more to each other, only the best.
            include_self: also find the photos that the query consists of.
            existing: leave out photos whose file is gone.
            region: the part of each query image that is asked for: one for all queries, or one for each.
            exact: compare every row.
            nprobe: clusters to look at, instead of the tuned number.

        Raises:
            ImageError: a query cannot be read.
            ArgumentError: an argument makes no sense, there is no such item, or the queries cancel each other
                out.
            WeightsError, StoreMismatch: as `encoder`.
        """
        several = isinstance(query, Sequence) and not isinstance(query, (str, bytes))
        queries: Sequence[Query] = query if several else [query]  # type: ignore[assignment, list-item]
        return self.answer(
            self.ask(queries, weights=weights, region=region),
            k,
            agg=agg,
            expand=expand,
            alpha=alpha,
            where=where,
            min_score=min_score,
            unique=unique,
            include_self=include_self,
            existing=existing,
            exact=exact,
            nprobe=nprobe,
        )

    def ask(
        self, queries: Sequence[Query], *, weights: Sequence[float] | None = None, region: Regions = None
    ) -> Question:
        """Make some queries ready to be answered together; arguments and errors as `search`."""
        return ask(self.snapshot, queries, lambda: self.encoder, weights=weights, region=region)

    def answer(
        self,
        question: Question,
        k: int = 10,
        *,
        agg: Aggregation = "mean",
        expand: int = 0,
        alpha: float = ALPHA,
        where: str | None = None,
        min_score: float | None = None,
        unique: bool = False,
        include_self: bool = False,
        existing: bool = False,
        exact: bool = False,
        nprobe: int | None = None,
    ) -> list[Hit]:
        """Return the photos nearest to a question; arguments and errors as `search`."""
        found = answer(
            self._searcher,
            question,
            k,
            agg=agg,
            expansion=expand,
            alpha=alpha,
            where=where,
            filters=Filters(min_score=min_score, unique=unique, existing=existing),
            include_self=include_self,
            exact=exact,
            nprobe=nprobe,
        )
        return self._hits(*found)

    def rerank(
        self,
        question: Question,
        hits: Sequence[Hit],
        *,
        count: int | None = None,
        features: FeatureSpec | None = None,
        matching: MatchSpec | None = None,
        geometry: GeometryKind | None = "homography",
        cache: Path | None = None,
        watch: Watch | None = None,
    ) -> list[Reranked]:
        """Order hits anew by how well their patches match; arguments and errors as `reranking.rerank`.

        Features are kept in memory for the next question, as far as 1 GiB goes.

        Args:
            question: what was asked.
            hits: what was found, best first.
            count: how many of them to compare.
            features: which local descriptors are compared.
            matching: which matches are kept.
            geometry: what the matches have to agree on; None: nothing.
            cache: features are also kept beside this .h5 file, see `dinov2kit.feature_cache`.
            watch: called with the stage of the work.
        """
        from .reranking import open_photos, rerank  # torch: only when images are matched

        if cache not in self._photos:
            self._photos[cache] = open_photos(self.encoder, cache)
        encoder, photos = self._photos[cache]
        return rerank(
            encoder,
            question,
            hits,
            count=count,
            photos=photos,
            features=features,
            matching=matching,
            geometry=geometry,
            watch=watch,
        )

    def photos(self, ids: Int[np.ndarray, " n"]) -> list[Photo]:
        """Return what is known of items, in the order of `ids`."""
        return self.snapshot.photos(ids)

    def descriptors(self, ids: Int[np.ndarray, " n"]) -> Float16[np.ndarray, "n dim"]:
        """Return the L2-normalised descriptors of items, in the order of `ids`."""
        return self.snapshot.descriptors(ids)

    @cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self.snapshot)

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
                gone=not is_there(photo.path),
            )
            for photo, score in zip(photos, scores, strict=True)
        ]
