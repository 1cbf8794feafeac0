"""Reading files on a Ray cluster: an actor per GPU or core, blocks of files, and one committer: this process.

A worker writes what it finds to `incoming`, on storage that all share, and returns hardly more than a name.
A worker that dies costs its block: Ray starts another and gives it the block again.
"""

from __future__ import annotations

import logging
import math
import pickle
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov2kit.decoding import MOST_WORKERS
from dinov2kit.errors import ArgumentError, DeviceError, KitError, StoreError
from dinov2kit.pipeline import GlobalEncoder

from .changes import Sighting
from .engine import Digests, EncoderSource, Reading, read_files
from .incoming import MOST_TRIES, Incoming, file_key
from .layout import Card, Layout, read_card
from .ray_session import connected, load_ray
from .walk import WalkRules

if TYPE_CHECKING:
    from .store import Store
    from .update import UpdateRules

logger = logging.getLogger(__name__)

_MOST_ROWS, _MOST_ROWS_GPU, _LEAST_ROWS = 512, 4096, 16  # files in a block
_BLOCKS_PER_WORKER = 4  # at least, if the files suffice: so that all end at about the same time
_ASK_S = 0.5  # between two looks at the stop sign


class RayEngine:
    """Reads files on a Ray cluster.

    Args:
        address: of the cluster, as for `connected`.
        workers: actors; 0 takes one for each GPU of the cluster, or for each core if it has none.
        decoders: decoding processes of each actor; None shares out the cores, 0 decodes in the actor itself.
        block_rows: files in a block; 0 takes what suits their number.

    Raises:
        DependencyError: Ray is missing.
        ArgumentError: a number is below 0.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int = 0,
        decoders: int | None = None,
        block_rows: int = 0,
    ) -> None:
        if min(workers, decoders or 0, block_rows) < 0:
            raise ArgumentError(
                f"workers {workers}, decoders {decoders}, block rows {block_rows}; wanted 0 or more"
            )
        load_ray()
        self._address = address
        self._workers, self._decoders, self._block_rows = workers, decoders, block_rows
        self._incoming: Incoming | None = None
        self._used: list[str] = []
        self._complete = False

    def read(
        self,
        sightings: Sequence[Sighting],
        store: Store,
        load_encoder: Callable[[], GlobalEncoder],
        rules: UpdateRules,
        stop: Callable[[], bool],
    ) -> Generator[tuple[Sighting, Reading]]:
        """Yield the files with what was read, in their order; see `Engine.read`.

        Raises:
            KitError: the cluster cannot be reached or fails, or a worker does.
            DeviceError: a GPU is asked for, and the cluster has none.
        """
        directory = store.layout.directory.absolute()
        self._incoming, self._complete = Incoming(directory, store.card), False
        self._used.clear()
        known = _known_digests(store)
        finished = self._incoming.open(known, () if rules.verify_hash else sightings)
        left = [sighting for sighting in sightings if file_key(sighting) not in finished]
        job = _Job(directory, store.card, known, load_encoder, rules, socket.gethostname())
        with closing(self._run(left, job, stop)) as fresh:
            for sighting in sightings:
                reading = finished.get(file_key(sighting)) or next(fresh, None)
                if reading is None:  # stopped
                    return
                yield sighting, reading
        self._complete = True

    def committed(self) -> None:
        """Delete the blocks that have been committed to their end."""
        if self._incoming is not None:
            for key in self._used:
                self._incoming.path(key).unlink(missing_ok=True)
            self._used.clear()
            if self._complete:
                self._incoming.clear()

    def _run(self, files: list[Sighting], job: _Job, stop: Callable[[], bool]) -> Generator[Reading]:
        """Yield the readings of files in their order, from all workers of the cluster."""
        if not files:
            return
        incoming = Incoming(job.directory, job.card)
        with connected(self._address) as resources, _signalled(incoming.stop_sign, stop):
            pool = self._share_out(resources, len(files), job)
            blocks = [files[start : start + pool.rows] for start in range(0, len(files), pool.rows)]
            ready: dict[int, dict[str, Any]] = {}
            whole, place = True, 0
            for answer in _answers(pool, blocks, incoming):
                ready[answer["number"]] = answer
                while whole and place in ready:
                    answer = ready.pop(place)
                    if answer["error"]:
                        raise pickle.loads(answer["error"])
                    if answer["count"]:
                        yield from incoming.read(answer["key"])
                        self._used.append(answer["key"])
                    whole = answer["count"] == len(blocks[place])  # else the worker was stopped
                    place += 1

    def _share_out(self, resources: dict[str, float], files: int, job: _Job) -> _Pool:
        """Say how many actors there are, what each gets, and how many files are in a block.

        Raises:
            DeviceError: a GPU is asked for, and the cluster has none.
        """
        source = job.load_encoder
        device = source.device if isinstance(source, EncoderSource) else "auto"
        cores, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
        if device.startswith("cuda") and not gpus:
            raise DeviceError(
                "the Ray cluster reports no GPU", hint="leave out --device, or add machines with GPUs"
            )
        if device not in ("auto", "cuda") and not device.startswith("cuda"):
            gpus = 0
        actors = min(self._workers or gpus or cores, gpus or files)
        most = _MOST_ROWS_GPU if gpus else _MOST_ROWS
        rows = min(most, max(_LEAST_ROWS, math.ceil(files / (_BLOCKS_PER_WORKER * actors))))
        decoders = self._decoders
        if decoders is None:
            decoders = min(MOST_WORKERS, max(1, cores // actors))
        if isinstance(source, EncoderSource):
            source = source.on("cuda" if gpus else "cpu" if device == "auto" else device)
        rules = replace(job.rules, walk=WalkRules(), listed=None, workers=decoders)
        logger.info("%d workers with %d decoders each, %d GPUs", actors, decoders, gpus)
        return _Pool(
            job=replace(job, load_encoder=source, rules=rules),
            actors=actors,
            cores=min(1.0, cores / actors),
            gpus=1.0 if gpus else 0.0,
            rows=self._block_rows or rows,
        )


@dataclass(frozen=True)
class _Job:
    """What a worker has to know, whatever its files."""

    directory: Path
    card: Card
    known: Digests
    load_encoder: Callable[[], GlobalEncoder]
    rules: UpdateRules
    host: str


@dataclass(frozen=True)
class _Pool:
    """How a job is shared out: actors, cores and GPUs of each, files in a block."""

    job: _Job
    actors: int
    cores: float
    gpus: float
    rows: int


class _Worker:
    """An actor: reads one block after another, with one encoder."""

    def __init__(self, job: Any) -> None:
        self._job: _Job = load_ray().get(job)
        self._incoming = Incoming(self._job.directory, self._job.card)
        self._load_encoder = cache(self._job.load_encoder)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Read a block and say how many of its files were read; an error travels as bytes."""
        key, count, error = str(task["key"]), 0, b""
        try:
            count = self._read(key, pickle.loads(task["files"]))
        except (KitError, OSError) as problem:
            error = pickle.dumps(self._located(problem))
        return {"number": task["number"], "key": key, "count": count, "error": error}

    def _read(self, key: str, files: list[Sighting]) -> int:
        job = self._job
        self._check_storage(files)
        if self._incoming.path(key).exists():  # its worker died after it had written it
            return len(self._incoming.read(key))
        stopped = _watched(self._incoming.stop_sign)
        if stopped():
            return 0
        if self._incoming.begin(key):
            readings = read_files(files, job.known, self._load_encoder, job.rules, stopped)
        else:
            lost = f"the worker died {MOST_TRIES} times on the {len(files)} files read together with it"
            readings = [Reading(None, error=lost)] * len(files)
        if readings:
            self._incoming.write(key, files, readings)
        return len(readings)

    def _check_storage(self, files: list[Sighting]) -> None:
        """Raise StoreError when the index or the photos are not what the driver sees under their paths."""
        hint = "index and photos have to lie on storage that all machines see under the same paths"
        if read_card(Layout(self._job.directory)).uuid != self._job.card.uuid:
            raise StoreError(f"{self._job.directory} is another index here", hint=hint)
        for root in {sighting.root.path for sighting in files}:
            if not root.exists():
                raise StoreError(f"{root} is not here", hint=hint)

    def _located(self, problem: KitError | OSError) -> KitError:
        """Return an error that says on which machine it came up."""
        here = "" if socket.gethostname() == self._job.host else f"on {socket.gethostname()}: "
        if isinstance(problem, KitError):
            return type(problem)(here + problem.message, hint=problem.hint)
        return StoreError(f"{here}cannot write to {self._incoming.folder}: {problem.strerror or problem}")


def _answers(pool: _Pool, blocks: list[list[Sighting]], incoming: Incoming) -> Iterator[dict[str, Any]]:
    """Yield the answer of a worker to each block, as they come.

    Raises:
        KitError: the cluster fails.
    """
    ray = load_ray()
    tasks = [
        {
            "number": number,
            "key": incoming.key(block),
            "files": pickle.dumps([_light(file) for file in block]),
        }
        for number, block in enumerate(blocks)
    ]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = -1  # a block may take long
    answers = dataset.map(
        _Worker,
        fn_constructor_args=(ray.put(pool.job),),
        compute=ray.data.ActorPoolStrategy(
            size=min(pool.actors, len(tasks)), max_tasks_in_flight_per_actor=2
        ),
        num_cpus=pool.cores,
        num_gpus=pool.gpus or None,
    )
    try:
        yield from answers.iter_rows()
    except ray.exceptions.RayError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1:]
        raise KitError(
            f"Ray gave up: {type(error).__name__}: {''.join(last).strip()}",
            hint="what is finished is kept; run the same command again to go on",
        ) from error


@contextmanager
def _signalled(sign: Path, stop: Callable[[], bool]) -> Iterator[None]:
    """Put up the stop sign for the workers as soon as `stop` says True."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_ASK_S / 2):
            if stop():
                sign.touch()
                return

    thread = threading.Thread(target=look, name="stop sign", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        sign.unlink(missing_ok=True)


def _watched(sign: Path) -> Callable[[], bool]:
    """Return what says whether the stop sign is up; it looks at the storage only now and then."""
    seen = [sign.exists(), time.monotonic()]

    def stopped() -> bool:
        if not seen[0] and time.monotonic() - seen[1] > _ASK_S:
            seen[:] = [sign.exists(), time.monotonic()]
        return bool(seen[0])

    return stopped


def _light(sighting: Sighting) -> Sighting:
    return replace(sighting, record=None)


def _known_digests(store: Store) -> Digests:
    """Return the contents that live items of an index have."""
    return Digests(
        {
            record.hash
            for root in store.roots()
            for record in store.files(root.id).values()
            if record.hash is not None and record.item_id is not None
        }
    )
