"""`index_photos`: folders of photos in, an index that is up to date out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dinov2kit.errors import ImageError
from dinov2kit.pipeline import GlobalEncoder

from .ann import check_factory, refresh
from .changes import UNSCANNED, can_scan, check_folders
from .engine import EncoderSource, Engine, make_encoder
from .facts import Facts, read_facts
from .faiss_door import load_faiss
from .generation import AnnFacts
from .layout import Layout, read_card
from .listed import common_folders, find_listed, nothing_listed, survey
from .locate import find_index, place_index, register
from .records import Watch
from .store import Store
from .tune import RECALL_TARGET
from .update import UpdateRules, update
from .update_report import UpdateReport
from .upkeep import merge_small
from .walk import Walk, advise

_ONLY_LISTED = "only listed files of it are indexed; name it to scan it, or give a list with --list"
_ROW_BYTES = 300  # of a photo in shard and manifest, beside its descriptor


@dataclass(frozen=True)
class AnnWishes:
    """What is asked of the faiss index.

    Attributes:
        memory: bytes that it may take; a quarter of what is free when not given.
        factory: a faiss factory string instead of the automatic choice; "auto" returns to it.
        recall: recall@10 to tune to.
        rebuild: train and fill it anew.
    """

    memory: int | None = None
    factory: str | None = None
    recall: float = RECALL_TARGET
    rebuild: bool = False


@dataclass(frozen=True)
class IndexRun:
    """What `index_photos` did.

    Attributes:
        directory: the index.
        report: what happened to the photos.
        items: photos in the index now.
        model: name of the model that describes them.
        ann: the faiss index in use; None when every row is compared.
        skipped: whether the index was fresh enough to be left alone.
    """

    directory: Path
    report: UpdateReport
    items: int
    model: str
    ann: AnnFacts | None
    skipped: bool = False

    @property
    def advice(self) -> list[str]:
        """How files that were left out can be read, in a sentence for each kind."""
        return advise(self.report.unsupported)

    def to_json(self) -> dict[str, object]:
        """Return the run as `json.dumps` takes it."""
        faiss = None
        if self.ann is not None:
            faiss = {"factory": self.ann.factory, "nprobe": self.ann.nprobe, "recall_at_10": self.ann.recall}
        errors = [{"path": str(path), "reason": reason} for path, reason in self.report.errors]
        unread = [{"path": str(path), "reason": reason} for path, reason in self.report.unread]
        return {
            "index": str(self.directory),
            "model": self.model,
            "items": self.items,
            "skipped": self.skipped,
            **self.report.to_json(),
            "error_files": errors,
            "unread": unread,
            "faiss": faiss,
        }


@dataclass(frozen=True)
class UpdatePlan:
    """What `index_photos` would do.

    Attributes:
        directory: the index; it need not exist yet.
        open: files that are new or not as they were, to be hashed and perhaps described.
        unchanged: files that need not be opened.
        gone: files that the index knows and that are not there.
        bytes_to_read: size of the files to open.
        bytes_to_write: about how much the index grows, if all of them are new.
        seconds: about how long it takes at the speed of the last run; None when there was none.
        unsupported: how many files of each suffix are no images that can be read here.
    """

    directory: Path
    open: int
    unchanged: int
    gone: int
    bytes_to_read: int
    bytes_to_write: int | None
    seconds: float | None
    unsupported: dict[str, int]


def index_photos(
    directory: Path | str | None,
    folders: Sequence[Path | str] = (),
    *,
    model: str = "auto",
    encoder: GlobalEncoder | None = None,
    device: str = "auto",
    precision: str = "auto",
    rules: UpdateRules | None = None,
    ann: AnnWishes | None = None,
    in_place: bool = False,
    if_stale: float = 0.0,
    wait: float = 0.0,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
    engine: Engine | None = None,
) -> IndexRun:
    """Make an index of folders, or bring it up to date: only new and changed photos are opened.

    Args:
        directory: the index; None finds the one that scans the folders, or chooses a place for a new one.
        folders: to scan, tar archives and videos among them; none means those that the index has scanned
            before, or, with `rules.listed`, that listed files may lie anywhere.
        model: catalogue name, weight file, or "auto": that of the index, else the default model.
        encoder: describes the photos instead of `model`.
        device: as for `Encoder`.
        precision: as for `Encoder`.
        rules: how photos are found, opened and removed.
        ann: what is asked of the faiss index.
        in_place: a new index goes into the first folder, as `.dinokit`.
        if_stale: do nothing when the last run ended less than so many seconds ago.
        wait: seconds to wait for another writer.
        watch: called with the stage of the work.
        stop: asked between files; when it says True, what was begun is finished and committed.
        engine: reads and describes the photos elsewhere, for instance a `RayEngine`.

    Raises:
        ImageError: a folder does not exist, or there is no image at all.
        StoreMismatch: the model is not that of the index.
        StoreLocked: another process writes.
        PruneRefused: too many photos are gone at once; everything else is done and committed.
        StoreError: the disk is full or fails; everything up to the last commit stays.
        WeightsError, DeviceError: as for `Encoder`.
        DependencyError: faiss is missing, or there twice.
        KitError: the engine cannot be reached, or fails; what is finished is kept for the next run.
    """
    rules, ann = rules or UpdateRules(), ann or AnnWishes()
    watch, stop = watch or (lambda *_: None), stop or (lambda: False)
    load_faiss()
    whole = check_folders([Path(folder) for folder in folders])
    named = None if directory is None else Path(directory)
    homes = whole or common_folders(rules.listed or ())
    directory = place_index(homes, named, in_place=in_place) if homes else find_index(named)
    if Layout(directory).card.exists():
        card = read_card(Layout(directory))
        load = EncoderSource(card, model, device, precision, given=encoder)
        if not load.is_own:
            load()
        if if_stale and (facts := read_facts(directory)) and _is_fresh(facts, if_stale):
            return IndexRun(directory, UpdateReport(), facts.items, card.model.name, None, skipped=True)
    else:
        _check_images(whole, rules)
        made = encoder or make_encoder(model, device if engine is None else "auto", precision)
        Store.create(directory, made.identity)
        card = read_card(Layout(directory))
        load = EncoderSource(card, model, device, precision, given=encoder, made=made)
    check_factory(card.model.dim, ann.factory)
    with Store.open(directory, wait=wait) as store:
        roots = store.roots()
        register(directory, list(dict.fromkeys([*(root.path for root in roots), *homes])))
        partly = []
        if not whole and rules.listed is None:
            whole = [root.path for root in roots if root.fs_id != UNSCANNED]
            partly = [root.path for root in roots if root.fs_id == UNSCANNED]
        lost = [folder for folder in whole if not can_scan(folder)]
        present = check_folders([folder for folder in whole if can_scan(folder)])
        report = update(store, present, load, rules, watch=watch, stop=stop, engine=engine)
        report.unread += [(folder, "it is not there; its photos are kept") for folder in lost]
        report.unread += [(folder, _ONLY_LISTED) for folder in partly]
        generation = None
        if not report.interrupted:
            merge_small(store)
            generation = refresh(
                store,
                memory=ann.memory,
                factory=ann.factory,
                target=ann.recall,
                rebuild=ann.rebuild,
                watch=watch,
            )
    return IndexRun(directory, report, read_facts(directory).items, card.model.name, generation)


def plan_photos(
    directory: Path | str | None,
    folders: Sequence[Path | str] = (),
    *,
    rules: UpdateRules | None = None,
    wait: float = 0.0,
) -> UpdatePlan:
    """Say what `index_photos` would do, from names and stats alone; nothing is changed.

    Args and errors as there.
    """
    rules = rules or UpdateRules()
    whole = check_folders([Path(folder) for folder in folders])
    named = None if directory is None else Path(directory)
    homes = whole or common_folders(rules.listed or ())
    directory = place_index(homes, named) if homes else find_index(named)
    if not Layout(directory).card.exists():
        _check_images(whole, rules)
        walks = _walks(whole, rules)
        sizes = [size for walk in walks for size in _sizes(walk, whole, rules)]
        unsupported = dict(sum((walk.unsupported for walk in walks), Counter[str]()))
        return UpdatePlan(directory, len(sizes), 0, 0, sum(sizes), None, None, unsupported)
    facts = read_facts(directory)
    with Store.open(directory, wait=wait) as store:
        if not whole and rules.listed is None:
            scanned = [root.path for root in store.roots() if root.fs_id != UNSCANNED]
            whole = check_folders([folder for folder in scanned if can_scan(folder)])
        found = survey(
            store,
            whole,
            rules.walk,
            listed=rules.listed,
            open_unchanged=rules.verify_hash,
            retry_errors=rules.retry_errors,
        )
    sizes = [sighting.stat.size for changes in found for sighting in changes.sightings]
    last = facts.last_run or {}
    speed = float(str(last.get("described", 0))) / (float(str(last.get("seconds", 0))) or 1.0)
    return UpdatePlan(
        directory,
        open=len(sizes),
        unchanged=sum(changes.unchanged for changes in found),
        gone=sum(len(changes.gone) for changes in found),
        bytes_to_read=sum(sizes),
        bytes_to_write=len(sizes) * (2 * facts.card.model.dim + _ROW_BYTES),
        seconds=len(sizes) / speed if speed else None,
        unsupported=dict(sum((changes.walk.unsupported for changes in found), Counter[str]())),
    )


def _walks(folders: list[Path], rules: UpdateRules) -> list[Walk]:
    return [Walk(folder, rules.walk) for folder in (folders if rules.listed is None else [Path("/")])]


def _sizes(walk: Walk, folders: list[Path], rules: UpdateRules) -> Iterator[int]:
    """Yield the sizes of the images that a walk finds, or of those that are listed."""
    found = walk.images() if rules.listed is None else find_listed(walk, rules.listed, folders)
    return (stat.size for _, stat in found)


def _check_images(folders: list[Path], rules: UpdateRules) -> None:
    """Refuse to make an index of nothing.

    Raises:
        ImageError: there is no image in the folders; says what there is instead.
    """
    walks = _walks(folders, rules)
    if any(next(_sizes(walk, folders, rules), None) is not None for walk in walks):
        return
    if rules.listed is not None:
        raise nothing_listed(walks[0], len(rules.listed))
    named = ", ".join(str(folder) for folder in folders)
    met = sum((walk.unsupported for walk in walks), Counter[str]())
    listed = ", ".join(f"{count:,} {suffix}" for suffix, count in met.most_common(5))
    wrong = "".join(f"; {path}: {reason}" for walk in walks for path, reason in walk.damaged[:3])
    raise ImageError(
        f"there is no image in {named}"
        + (f"; there are files of other kinds: {listed}" if listed else "")
        + wrong,
        hint="; ".join(advise(met)) or None,
    )


def _is_fresh(facts: Facts, seconds: float) -> bool:
    """Say whether the last run went through to its end, not longer ago than that."""
    if facts.last_run is None or facts.last_run.get("interrupted"):
        return False
    ended = datetime.fromisoformat(str(facts.last_run["ended"]))
    return (datetime.now(UTC) - ended).total_seconds() < seconds
