"""Random lives of an index against a dictionary: readers see the dictionary, to the last byte."""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from small_index import MODEL, Shot, content, direction, put, stored

from dinov2kit.indexes.facts import FileError, list_errors, read_facts
from dinov2kit.indexes.records import FileStat
from dinov2kit.indexes.snapshot import Photo, Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.upkeep import compact, merge_small
from dinov2kit.indexes.verifying import verify

PLACES = [
    (Path(root), name)
    for root in ("/photos", "/photos/sub", "/mnt/\udcff")  # one root inside another, one that is no text
    for name in (b"a.jpg", b"b'\".JPG", b"x/\xff\xfe.jpg")
]
places, seeds = st.sampled_from(PLACES), st.integers(1, 6)
stats = st.builds(
    FileStat, st.integers(0, 2**40), st.integers(-(10**18), 2 * 10**18), st.integers(0, 2**64 - 1)
)
shots = st.builds(
    Shot, seeds.map(direction), st.integers(1, 2**31), st.integers(1, 2**31), st.integers(1, 8),
    st.sampled_from([None, "1999-12-31T23:59:59", "2020-01-02T03:04:05"]),
)  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What the model knows of a file; `error` is None for a photo."""

    stat: FileStat
    item: int | None = None
    digest: bytes = b""
    row: bytes = b""
    shot: Shot | None = None
    error: str | None = None


Model = dict[tuple[Path, bytes], Known]


def photos(model: Model) -> list[tuple[Photo, bytes]]:
    """Return what a reader must see: all photos with their descriptors, by id."""
    live = sorted((known.item, place, known) for place, known in model.items() if known.item is not None)
    return [
        (Photo(item, root / os.fsdecode(name), known.shot.width, known.shot.height, known.stat.size,
               known.stat.mtime_ns, known.shot.taken_at, known.digest), known.row)
        for item, (root, name), known in live
    ]  # fmt: skip


def seen(snapshot: Snapshot) -> list[tuple[Photo, bytes]]:
    """Return what a reader sees."""
    rows = b"".join(block.tobytes() for _, block in snapshot.blocks(3))
    size = 2 * MODEL.dim
    cut = [rows[start : start + size] for start in range(0, len(rows), size)]
    return list(zip(snapshot.photos(snapshot.ids), cut, strict=True))


class StoreModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.directory = self.folder / "ix"
        Store.create(self.directory, MODEL, shard_rows=6)
        self.store = Store.open(self.directory, retire_after=-1.0)
        self.model: Model = {}
        self.committed: Model = {}
        self.highest = self.committed_highest = 0
        self.held: list[tuple[Snapshot, list[tuple[Photo, bytes]]]] = []

    def file(self, place: tuple[Path, bytes]) -> int:
        return self.store.files(self.store.root_id(place[0]))[place[1]].id

    @rule(place=places, seed=seeds, stat=stats, shot=shots)
    def put(self, place, seed, stat, shot):
        shot = replace(shot, descriptor=direction(seed))
        item = self.store.put(self.store.root_id(place[0]), place[1], stat, content(seed), shot)
        assert item > self.highest
        self.highest = item
        self.model[place] = Known(stat, item, content(seed), stored(seed).tobytes(), shot)

    @rule(place=places, seed=seeds)
    def put_same_content_again(self, place, seed):
        known = self.store.find_hash(content(seed))
        live = sorted(k.item for k in self.model.values() if k.item is not None and k.digest == content(seed))
        assert (known.item_id if known else None) == (live[0] if live else None)
        if known:
            first = next(k for k in self.model.values() if k.item == live[0])
            item = self.store.put(self.store.root_id(place[0]), place[1], first.stat, content(seed), known)
            assert item > self.highest
            self.highest = item
            self.model[place] = replace(first, item=item)

    @rule(place=places, stat=stats, reason=st.sampled_from(["broken", "too small"]))
    def put_error(self, place, stat, reason):
        self.store.put_error(self.store.root_id(place[0]), place[1], stat, None, reason)
        self.model[place] = Known(stat, error=reason)

    @precondition(lambda self: self.model)
    @rule(draw=st.data(), goal=places, stat=stats)
    def move(self, draw, goal, stat):
        place = draw.draw(st.sampled_from(sorted(self.model)))
        self.store.move(self.file(place), self.store.root_id(goal[0]), goal[1], stat)
        self.model[goal] = replace(self.model.pop(place), stat=stat)

    @precondition(lambda self: self.model)
    @rule(draw=st.data(), stat=stats)
    def touch(self, draw, stat):
        place = draw.draw(st.sampled_from(sorted(self.model)))
        self.store.touch(self.file(place), stat)
        self.model[place] = replace(self.model[place], stat=stat)

    @precondition(lambda self: self.model)
    @rule(draw=st.data())
    def remove(self, draw):
        gone = draw.draw(st.lists(st.sampled_from(sorted(self.model)), min_size=1, unique=True))
        self.store.remove([self.file(place) for place in gone])
        for place in gone:
            del self.model[place]

    @rule()
    def commit(self):
        self.store.commit()
        self.committed, self.committed_highest = dict(self.model), self.highest
        self.check()

    @rule()
    def reopen(self):
        self.store.close()
        self.store = Store.open(self.directory, retire_after=-1.0)
        self.model, self.highest = dict(self.committed), self.committed_highest
        self.check()

    @rule(seed=seeds)
    def crash_between_shard_and_transaction(self, seed):
        put(self.store, b"crash.jpg", seed)
        self.store._add_shard(self.store._rows, np.stack(self.store._descriptors))
        self.reopen()  # what is not committed is rolled back, as after a crash; the shard stays

    @rule(small=st.integers(1, 4))
    def merge(self, small):
        self.commit()
        merge_small(self.store, small_shards=small)
        self.check()

    @rule()
    def compact(self):
        self.store.close()
        done = compact(self.directory)
        self.store = Store.open(self.directory, retire_after=-1.0)
        self.model, self.highest = dict(self.committed), self.committed_highest
        assert sum(rows - live for _, rows, live in self.store.shard_uses()) == 0
        assert done.shards_after == len(self.store.shard_uses())
        self.check()

    @precondition(lambda self: len(self.held) < 3)
    @rule()
    def hold_a_snapshot(self):
        self.held.append((Snapshot.open(self.directory), photos(self.committed)))

    @precondition(lambda self: self.held)
    @rule()
    def look_again_at_a_held_snapshot(self):
        snapshot, truth = self.held.pop(0)
        with snapshot:
            assert seen(snapshot) == truth

    def check(self) -> None:
        """Compare a fresh reader with the last commit, in every way that a reader can ask."""
        truth = photos(self.committed)
        with Snapshot.open(self.directory) as snapshot:
            assert seen(snapshot) == truth
            for root, name in PLACES:
                known = self.committed.get((root, name))
                assert snapshot.find(root / os.fsdecode(name)) == (known.item if known else None)
            wide = [photo.id for photo, _ in truth if photo.width >= 2**30 and photo.taken_at is not None]
            assert snapshot.where(f"width >= {2**30} AND taken_at IS NOT NULL").tolist() == wide
        errors = sorted((place, known.error) for place, known in self.committed.items() if known.error)
        wanted = [FileError(root / os.fsdecode(name), reason) for (root, name), reason in errors]
        assert sorted(list_errors(self.directory), key=str) == sorted(wanted, key=str)
        facts = read_facts(self.directory)
        assert (facts.items, facts.files, facts.errors) == (len(truth), len(self.committed), len(errors))

    @invariant()
    def writer_knows_the_present(self):
        for root in self.store.roots():
            for name, file in self.store.files(root.id).items():
                known = self.model[root.path, name]
                assert (FileStat(file.size, file.mtime_ns, file.inode), file.item_id, file.error) == (
                    known.stat, known.item, known.error,
                )  # fmt: skip
        assert sum(len(self.store.files(root.id)) for root in self.store.roots()) == len(self.model)

    def teardown(self):
        for snapshot, truth in self.held:
            with snapshot:
                assert seen(snapshot) == truth
        self.store.close()
        self.check()
        found = verify(self.directory, deep=True)
        shutil.rmtree(self.folder)
        assert found.ok, found


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
