"""Many pairs: one image against many, and lists of pairs that survive any interruption.

The matches of a list go to small files in `OUT.parts/`, each written whole and never changed; they are joined
to `OUT`, again written whole, at the end of a run, at an interrupt, and at the start of the run after a kill.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import h5py

from dinov2kit.errors import ArgumentError, ImageError, MatchError
from dinov2kit.feature_cache import (
    CachedEncoder,
    FeatureCache,
    RecentEncoder,
    check_features_file,
    write_features,
)
from dinov2kit.features import FeatureSpec
from dinov2kit.grid import PatchGrid
from dinov2kit.hloc import (
    MATCHES,
    Pair,
    distinct_pairs,
    make_folder,
    new_file,
    own_file,
    pair_key,
    pair_keys,
    write_pair_group,
)
from dinov2kit.images import image_digest
from dinov2kit.matches import Matches
from dinov2kit.matching import MatchSpec, match_all
from dinov2kit.pairs import LocalEncoder, MatchedPair, PairSpec, match_images
from dinov2kit.points import NamedPoints

PAIRS_PER_PART = 16  # a kill loses at most so many

Digests = tuple[str, str]  # SHA-256 of the files of image 0 and image 1


@dataclass(frozen=True)
class Ranked:
    """One image that image 0 was matched to.

    Attributes:
        path: its file.
        matches: of image 0 with it.
        confidence: mean confidence of the kept matches; 0 when none is kept.
        warnings: what may be wrong with the answer, in words.
    """

    path: Path
    matches: Matches
    confidence: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """What `match_many` found.

    Attributes:
        found: the images by falling confidence; of equals in the order given.
        failed: (path, reason) of those that could not be matched.
    """

    found: list[Ranked]
    failed: list[tuple[Path, str]]


@dataclass(frozen=True)
class PairsReport:
    """What `match_pairs` did; every pair of the list is in one of the three.

    Attributes:
        out: the file with the matches.
        matched: pairs that were matched now.
        skipped: pairs that were in the file, made from the same images.
        failed: (pair, reason) of those that could not be matched.
    """

    out: Path
    matched: list[Pair] = field(default_factory=list)
    skipped: list[Pair] = field(default_factory=list)
    failed: list[tuple[Pair, str]] = field(default_factory=list)


def match_many(
    encoder: LocalEncoder,
    path0: Path,
    targets: Sequence[Path],
    *,
    points: NamedPoints | None = None,
    spec: PairSpec | None = None,
    each: Callable[[MatchedPair], None] | None = None,
    advance: Callable[[Path], None] | None = None,
) -> Ranking:
    """Match one image to many, and rank these; image 0 is encoded once.

    Args:
        encoder: the model.
        path0: file of image 0.
        targets: files of the images to match it to.
        points: keypoints of image 0 to carry over; without them they are chosen for each pair.
        spec: what is wanted of each pair.
        each: called with each pair as soon as it is matched, for instance to write it; the pair with its
            features is then forgotten.
        advance: called with each target, matched or not.

    Raises:
        ImageError: image 0 cannot be read. A target that cannot be read is listed.
        ArgumentError: a point is not on image 0, or an option is out of range.
    """
    spec = spec or PairSpec()
    features0 = encoder.encode(path0, spec.features)
    ranking = Ranking([], [])
    for path in targets:
        try:
            pair = match_images(encoder, path0, path, points=points, spec=spec, features0=features0)
        except (ImageError, MatchError) as error:
            ranking.failed.append((path, error.message))
        else:
            kept = pair.matches.confidence[pair.matches.kept]
            confidence = float(kept.mean()) if len(kept) else 0.0
            ranking.found.append(Ranked(path, pair.matches, confidence, pair.warnings))
            if each is not None:
                each(pair)
        if advance is not None:
            advance(path)
    ranking.found.sort(key=lambda ranked: -ranked.confidence)
    return ranking


def match_pairs(
    encoder: LocalEncoder,
    pairs: Sequence[Pair],
    root: Path,
    out: Path,
    *,
    features: FeatureSpec | None = None,
    matching: MatchSpec | None = None,
    cache: FeatureCache | None = None,
    overwrite: bool = False,
    advance: Callable[[Pair], None] | None = None,
) -> PairsReport:
    """Match every patch of image 0 of each pair, and write all pairs to one file in the layout of hloc.

    Pairs that are in the file already are not matched again, unless the content of an image has changed. A
    run that was interrupted or killed and run again ends with the same content as one that was not. Only one
    run may write a file.

    Args:
        encoder: the model.
        pairs: names of images, as `hloc.read_pairs` reads them. A pair that comes again, either way round, is
            matched once.
        root: the folder where the names begin.
        out: the file of matches, .h5.
        features: which local descriptors are wanted.
        matching: how matches are read and which are kept.
        cache: keeps the features of each image; at the end of a whole run all of them are written to
            `cache.path` for hloc. None: they are computed again in every run.
        overwrite: start anew and replace the file.
        advance: called with each pair of the list, matched or not.

    Raises:
        ArgumentError: a name does not lie below a root, two names are one for hloc, the file was made with
            other settings or by another program, or there is no folder for it.
    """
    features, matching = features or FeatureSpec(), matching or MatchSpec()
    distinct = distinct_pairs(pairs)
    if not out.parent.is_dir():
        raise ArgumentError(f"cannot write {out}: there is no folder {out.parent}")
    if cache is not None:
        check_features_file(cache.path)
        encoder = CachedEncoder(encoder, cache)
    encoder = RecentEncoder(encoder)
    facts = {
        "model": encoder.identity.to_json(),
        "features": features.describe(),
        "matching": matching.describe(),
    }
    report = PairsReport(out)
    digests: dict[str, str] = {}
    with _Growing(out, facts, overwrite=overwrite) as file:
        for pair in distinct:
            try:
                for name in pair:
                    digests[name] = digests.get(name) or image_digest(root / name)
                made_from = (digests[pair[0]], digests[pair[1]])
                if file.holds(pair, made_from):
                    report.skipped.append(pair)
                else:
                    sides = [encoder.encode(root / name, features) for name in pair]
                    matches, _ = match_all(*sides, spec=matching)
                    file.add(pair, [side.grid for side in sides], matches, made_from)
                    report.matched.append(pair)
            except (ImageError, MatchError) as error:
                report.failed.append((pair, error.message))
            if advance is not None:
                advance(pair)
    if cache is not None:
        write_features(encoder, {name: root / name for name in digests}, cache.path, spec=features)
    return report


class _Growing:
    """A file of matches that is complete at every moment, and the parts that will join it."""

    def __init__(self, path: Path, facts: Mapping[str, object], *, overwrite: bool) -> None:
        self._path, self._facts = path, facts
        self._folder = path.with_name(path.name + ".parts")
        if overwrite:
            path.unlink(missing_ok=True)
            self._drop_parts()
        self._waiting: list[tuple[Pair, Sequence[PatchGrid], Matches, Digests]] = []
        self._made_from: dict[str, Digests] = {}

    def __enter__(self) -> _Growing:
        self._join()
        if self._path.exists():
            with own_file(self._path, MATCHES) as (file, facts):
                _check_same(self._path, facts, self._facts)
                self._made_from = {key: _made_from(file[key]) for key in pair_keys(file)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_part()
        self._join()
        if kind is None and not self._path.exists():  # not one pair could be matched
            with new_file(self._path, MATCHES, self._facts):
                pass

    def holds(self, pair: Pair, made_from: Digests) -> bool:
        """Say whether the pair is there, made from images with these digests, whichever came first."""
        return made_from == self._made_from.get(pair_key(*pair)) or made_from[::-1] == self._made_from.get(
            pair_key(*pair[::-1])
        )

    def add(self, pair: Pair, grids: Sequence[PatchGrid], matches: Matches, made_from: Digests) -> None:
        self._waiting.append((pair, grids, matches, made_from))
        if len(self._waiting) >= PAIRS_PER_PART:
            self._write_part()

    def _write_part(self) -> None:
        if not self._waiting:
            return
        make_folder(self._folder)
        part = self._folder / f"{len(list(self._folder.glob('*.h5'))):08}.h5"
        with new_file(part, MATCHES, self._facts) as file:
            for pair, grids, matches, made_from in self._waiting:
                group = write_pair_group(file, pair, grids, matches)
                group.attrs["sha256_0"], group.attrs["sha256_1"] = made_from
        self._waiting.clear()

    def _join(self) -> None:
        """Write what the file and its parts hold to a new file, the newest of each pair; drop the parts."""
        parts = sorted(self._folder.glob("*.h5"))
        if parts:
            sources = [path for path in (self._path, *parts) if path.exists()]
            newest: dict[str, Path] = {}
            for path in sources:
                with own_file(path, MATCHES) as (file, facts):
                    _check_same(path, facts, self._facts)
                    for key in pair_keys(file):
                        newest.pop("/".join(key.split("/")[::-1]), None)
                        newest[key] = path
            with new_file(self._path, MATCHES, self._facts) as joined:
                for path in sources:
                    with own_file(path, MATCHES) as (file, _):
                        for key in (key for key, source in newest.items() if source == path):
                            file.copy(key, joined, name=key)
        self._drop_parts()

    def _drop_parts(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)


def _check_same(path: Path, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Refuse a file of matches that was made with other settings."""
    old, new = _flat(found), _flat(json.loads(json.dumps(wanted)))
    differing = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    if differing:
        said = "; ".join(f"{name} {old.get(name)!r}, not {new.get(name)!r}" for name in differing)
        raise ArgumentError(
            f"{path} was made with {said}", hint="name another --out, or add --overwrite to start anew"
        )


def _flat(facts: Mapping[str, object]) -> dict[str, object]:
    """Return the settings behind facts, by dotted name; the name of the model changes nothing."""
    flat = {
        f"{part}.{name}": setting
        for part, settings in facts.items()
        if isinstance(settings, Mapping)
        for name, setting in settings.items()
    }
    flat.pop("model.name", None)
    return flat


def _made_from(group: h5py.Group) -> Digests:
    return str(group.attrs["sha256_0"]), str(group.attrs["sha256_1"])
