"""What reads and describes the files of an update when it is not this process, and what it hands back.

Whatever the engine, one process commits, file by file in the order in which they were met.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16

from dinov2kit.catalogue import find_model
from dinov2kit.errors import WeightsError
from dinov2kit.pipeline import Description, GlobalEncoder, describe

from .contents import hashed
from .layout import Card, check_model
from .records import as_stored

if TYPE_CHECKING:
    from .changes import Sighting
    from .store import Store
    from .update import UpdateRules


@dataclass(frozen=True)
class Reading:
    """What a worker says of one file; `Store.put` takes it when it has a descriptor.

    Attributes:
        digest: of its content; None when it cannot be read.
        descriptor: as a shard keeps it; None with an error, and when the index has this content already.
        error: why it cannot be read or described.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
        orientation: EXIF orientation, 1 to 8.
        taken_at: when the photo was taken, ISO 8601.
    """

    digest: bytes | None
    descriptor: Float16[np.ndarray, " dim"] | None = None
    error: str | None = None
    width: int = 0
    height: int = 0
    orientation: int = 1
    taken_at: str | None = None


@runtime_checkable
class Engine(Protocol):
    """What reads files in other processes, perhaps on other machines."""

    def read(
        self,
        sightings: Sequence[Sighting],
        store: Store,
        load_encoder: Callable[[], GlobalEncoder],
        rules: UpdateRules,
        stop: Callable[[], bool],
    ) -> Generator[tuple[Sighting, Reading]]:
        """Yield the files with what was read, in their order; fewer when `stop` said True.

        Args:
            sightings: the files.
            store: the index; only read.
            load_encoder: has to travel: an `EncoderSource`, or a function that can be pickled.
            rules: how files are decoded.
            stop: asked now and then.
        """

    def committed(self) -> None:
        """Take note that everything yielded so far survives a crash."""


class Digests:
    """A set of digests in two arrays, which all processes of a machine can share.

    Args:
        digests: of 16 bytes each.
    """

    def __init__(self, digests: Iterable[bytes]) -> None:
        halves = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        self._high, self._low = np.ascontiguousarray(halves[order].T)

    def __contains__(self, digest: bytes) -> bool:
        high, low = np.frombuffer(digest, ">u8").astype(np.uint64)
        start, stop = (self._high.searchsorted(high, side) for side in ("left", "right"))
        return bool((self._low[start:stop] == low).any())


class EncoderSource:
    """The encoder of an index: made when it is asked for, once; another process makes its own.

    Args:
        card: of the index.
        model: as for `Encoder`; "auto" is the model of the index.
        device: as for `Encoder`.
        precision: as for `Encoder`.
        given: an encoder to take instead; it travels as it is.
        made: one that was made from these names already.
    """

    def __init__(
        self,
        card: Card,
        model: str,
        device: str,
        precision: str,
        *,
        given: GlobalEncoder | None = None,
        made: GlobalEncoder | None = None,
    ) -> None:
        own = model in ("auto", card.model.name) or _released_name(model) == card.model.name
        self._card, self._model = card, card.model.name if own else model
        self.device, self._precision = device, precision
        self._given, self._made = given, made
        self.is_own = own and given is None

    def __call__(self) -> GlobalEncoder:
        """Return the encoder.

        Raises:
            StoreMismatch: it is not that of the index.
            WeightsError, DeviceError: as for `Encoder`.
        """
        if self._made is None:
            self._made = self._given or make_encoder(self._model, self.device, self._precision)
            check_model(self._card, self._made.identity)
        return self._made

    def on(self, device: str) -> EncoderSource:
        """Return what makes the same encoder on another device, in another process."""
        file = Path(self._model)
        model = str(file.absolute()) if file.exists() else self._model
        return EncoderSource(self._card, model, device, self._precision, given=self._given)


def make_encoder(model: str, device: str, precision: str) -> GlobalEncoder:
    """Make the encoder of a model; errors as for `Encoder`."""
    from dinov2kit.encoder import Encoder  # torch: only when something has to be described

    return Encoder(model, device=device, precision=precision)


def _released_name(model: str) -> str | None:
    try:
        return find_model(model).name
    except WeightsError:
        return None


def read_files(
    files: Sequence[Sighting],
    known: Digests,
    load_encoder: Callable[[], GlobalEncoder],
    rules: UpdateRules,
    stop: Callable[[], bool],
) -> list[Reading]:
    """Hash files, and describe those whose content is not known; what a worker does.

    Args:
        files: to read.
        known: contents that need no descriptor.
        load_encoder: called when something has to be described.
        rules: how files are decoded.
        stop: asked between files; when it says True, what was begun is finished.

    Returns: one reading per file, in order; fewer when stopped.
    """
    digests: list[bytes | OSError] = []
    described: dict[bytes, Reading] = {}
    waiting: deque[bytes] = deque()

    def contents() -> Iterator[Path]:
        for sighting, digest in hashed(files, stop):
            digests.append(digest)
            if isinstance(digest, bytes) and digest not in described and digest not in known:
                described[digest] = Reading(digest)
                waiting.append(digest)
                yield sighting.path

    paths = contents()
    first = next(paths, None)
    if first is not None:
        encoder = load_encoder()
        descriptions = describe(
            encoder,
            chain([first], paths),
            workers=rules.workers,
            batch_size=rules.batch_size,
            timeout=rules.timeout,
            max_pixels=rules.max_pixels,
        )
        for description in descriptions:
            digest = waiting.popleft()
            described[digest] = _read(digest, description, encoder.identity.dim)
    return [
        Reading(None, error=digest.strerror or str(digest))
        if isinstance(digest, OSError)
        else described.get(digest) or Reading(digest)
        for digest in digests
    ]


def _read(digest: bytes, description: Description, dim: int) -> Reading:
    row = description.descriptor
    return Reading(
        digest,
        None if row is None else as_stored(row, dim),
        description.error,
        description.width,
        description.height,
        description.orientation,
        description.taken_at,
    )
