"""`index_photos`: folders of photos in, an index that is up to date out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from dinov2kit.catalogue import find_model
from dinov2kit.errors import ImageError, WeightsError
from dinov2kit.images import HEIC_SUFFIXES
from dinov2kit.pipeline import GlobalEncoder

from .ann import check_factory, refresh
from .changes import check_folders, find_changes
from .facts import Facts, read_facts
from .faiss_door import load_faiss
from .generation import AnnFacts
from .layout import Card, Layout, check_model, read_card
from .locate import find_index, place_index, register
from .records import Watch
from .store import Store
from .tune import RECALL_TARGET
from .update import UpdateReport, UpdateRules, update
from .upkeep import merge_small
from .walk import Walk, WalkRules

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
) -> IndexRun:
    """Make an index of folders, or bring it up to date: only new and changed photos are opened.

    Args:
        directory: the index; None finds the one that scans the folders, or chooses a place for a new one.
        folders: to scan; none means those that the index has scanned before.
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

    Raises:
        ImageError: a folder does not exist, or there is no image at all.
        StoreMismatch: the model is not that of the index.
        StoreLocked: another process writes.
        PruneRefused: too many photos are gone at once; everything else is done and committed.
        StoreError: the disk is full or fails; everything up to the last commit stays.
        WeightsError, DeviceError: as for `Encoder`.
        DependencyError: faiss is missing, or there twice.
    """
    rules, ann = rules or UpdateRules(), ann or AnnWishes()
    watch, stop = watch or (lambda *_: None), stop or (lambda: False)
    load_faiss()
    whole = check_folders([Path(folder) for folder in folders])
    named = None if directory is None else Path(directory)
    directory = place_index(whole, named, in_place=in_place) if whole else find_index(named)
    if Layout(directory).card.exists():
        card = read_card(Layout(directory))
        load = _encoder_loader(card, model, encoder, device, precision)
        if if_stale and (facts := read_facts(directory)) and _is_fresh(facts, if_stale):
            return IndexRun(directory, UpdateReport(), facts.items, card.model.name, None, skipped=True)
    else:
        _check_images(whole, rules.walk)
        made = encoder or _make_encoder(model, device, precision)
        Store.create(directory, made.identity)
        card, load = read_card(Layout(directory)), lambda: made
    check_factory(card.model.dim, ann.factory)
    with Store.open(directory, wait=wait) as store:
        whole = whole or [root.path for root in store.roots()]
        lost = [folder for folder in whole if not folder.is_dir()]
        register(directory, [root.path for root in store.roots()] + whole)
        present = check_folders([folder for folder in whole if folder.is_dir()])
        report = update(store, present, load, rules, watch=watch, stop=stop)
        report.unread += [(folder, "it is not there; its photos are kept") for folder in lost]
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
    directory = place_index(whole, named) if whole else find_index(named)
    if not Layout(directory).card.exists():
        _check_images(whole, rules.walk)
        walks = [Walk(folder, rules.walk) for folder in whole]
        sizes = [stat.size for walk in walks for _, stat in walk.images()]
        unsupported = dict(sum((walk.unsupported for walk in walks), Counter[str]()))
        return UpdatePlan(directory, len(sizes), 0, 0, sum(sizes), None, None, unsupported)
    facts = read_facts(directory)
    with Store.open(directory, wait=wait) as store:
        whole = whole or [root.path for root in store.roots() if root.path.is_dir()]
        found = [
            find_changes(
                store,
                folder,
                rules.walk,
                listed=rules.listed,
                open_unchanged=rules.verify_hash,
                retry_errors=rules.retry_errors,
            )
            for folder in check_folders(whole)
        ]
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


def _check_images(folders: list[Path], rules: WalkRules) -> None:
    """Refuse to make an index of nothing.

    Raises:
        ImageError: there is no image in the folders; says what there is instead.
    """
    walks = [Walk(folder, rules) for folder in folders]
    if any(next(walk.images(), None) for walk in walks):
        return
    named = ", ".join(str(folder) for folder in folders)
    met = sum((walk.unsupported for walk in walks), Counter[str]())
    listed = ", ".join(f"{count:,} {suffix}" for suffix, count in met.most_common(5))
    heic = any(suffix in HEIC_SUFFIXES for suffix in met)
    raise ImageError(
        f"there is no image in {named}" + (f"; there are files of other kinds: {listed}" if listed else ""),
        hint="for HEIC files: pip install 'dinov2kit[heic]'" if heic else None,
    )


def _make_encoder(model: str, device: str, precision: str) -> GlobalEncoder:
    from dinov2kit.encoder import Encoder  # torch: only when something has to be described

    return Encoder(model, device=device, precision=precision)


def _encoder_loader(
    card: Card, model: str, encoder: GlobalEncoder | None, device: str, precision: str
) -> Callable[[], GlobalEncoder]:
    """Return what gives the encoder of an index; a model that is named otherwise is checked at once."""

    @cache
    def load() -> GlobalEncoder:
        made = encoder or _make_encoder(card.model.name if same else model, device, precision)
        check_model(card, made.identity)
        return made

    same = model in ("auto", card.model.name) or _released_name(model) == card.model.name
    if encoder is not None or not same:
        load()
    return load


def _released_name(model: str) -> str | None:
    try:
        return find_model(model).name
    except WeightsError:
        return None


def _is_fresh(facts: Facts, seconds: float) -> bool:
    """Say whether the last run went through to its end, not longer ago than that."""
    if facts.last_run is None or facts.last_run.get("interrupted"):
        return False
    ended = datetime.fromisoformat(str(facts.last_run["ended"]))
    return (datetime.now(UTC) - ended).total_seconds() < seconds
