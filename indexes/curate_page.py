"""A page about a curation: its counts, its clusters, and pictures of what stayed and what went, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinov2kit.files import written_whole
from dinov2kit.page import Section, Tile, sections_page

from .cluster_sampling import ClusterUse
from .curate_report import CurateReport, Dropped
from .curate_sets import PhotoSet
from .curated_files import Chosen
from .gallery import thumbnail
from .snapshot import Photo, Snapshot

SHOWN_KEPT, SHOWN_DROPPED = 24, 12  # pictures; of what went, for each reason
SHOWN_CLUSTERS = 40


def write_curate_page(
    path: Path,
    report: CurateReport,
    snapshot: Snapshot,
    chosen: Chosen,
    dropped: Sequence[Dropped],
    references: Sequence[PhotoSet],
) -> None:
    """Write the page: one HTML file with the pictures inside.

    Args:
        path: the file.
        report: the counts.
        snapshot: the pool.
        chosen: what stayed; a sample drawn by the seed is shown.
        dropped: what went; likewise.
        references: the sets of evaluation photos, as `Dropped.reference` counts them.

    Raises:
        ArgumentError: the file cannot be written.
    """
    rng = np.random.default_rng(report.seed)
    sections = [Section("Stages", _stages(report)), Section("Rows", _accounting(report))]
    if report.clusters is not None:
        sections.append(_cluster_section(report.clusters))
    places = _sample(len(chosen), SHOWN_KEPT, rng)
    tiles = [
        _tile(photo, float(chosen.score[place]), _place_of(chosen, int(place)))
        for place, photo in zip(places, snapshot.photos(chosen.ids[places]), strict=True)
    ]
    sections.append(Section(f"Kept: {len(tiles):,} of {len(chosen):,}", tiles=tiles))
    for loss in dropped:
        if not len(loss.ids):
            continue
        places = _sample(len(loss.ids), SHOWN_DROPPED, rng)
        photos = snapshot.photos(loss.ids[places])
        details = _resembled(loss, places, snapshot, references)
        scores = [float(loss.score[place]) for place in places]
        tiles = [_tile(*facts) for facts in zip(photos, scores, details, strict=True)]
        heading = f"Dropped by {loss.stage}, {loss.reason}: {len(tiles):,} of {len(loss.ids):,}"
        sections.append(Section(heading, tiles=tiles))
    note = f"{report.mode}, seed {report.seed}, {len(snapshot):,} photos in {report.index}, {report.model}"
    with written_whole(path) as temporary:
        temporary.write_text(sections_page("Curation", sections, note=note), "utf-8")


def _stages(report: CurateReport) -> list[list[str | float]]:
    first = max((stage.came for stage in report.stages), default=1)
    rows: list[list[str | float]] = [["stage", "in", "out", "dropped", ""]]
    for stage in report.stages:
        why = ", ".join(f"{count:,} {reason}" for reason, count in stage.why.items())
        rows.append([stage.name, f"{stage.came:,}", f"{stage.left:,}", why, stage.left / first])
    return rows


def _accounting(report: CurateReport) -> list[list[str | float]]:
    counts = vars(report.accounting)
    return [list(counts), [f"{count:,}" for count in counts.values()]]


def _cluster_section(use: ClusterUse) -> Section:
    most = max(int(use.pool.max()), 1)
    rows: list[list[str | float]] = [["cluster", "photos", "queries", "chosen", ""]]
    for label in use.largest(SHOWN_CLUSTERS).tolist():
        counts = [int(column[label]) for column in (use.pool, use.hits, use.chosen)]
        rows.append([str(label), *(f"{count:,}" for count in counts), counts[2] / most])
    used, held = int((use.chosen > 0).sum()), int((use.pool > 0).sum())
    shown = f"; the {len(rows) - 1:,} that gave most" if len(rows) - 1 < len(use.pool) else ""
    return Section(f"Clusters: {used:,} of {held:,} used, entropy {use.entropy:.3f}{shown}", rows)


def _place_of(chosen: Chosen, place: int) -> str:
    """Say in words why a photo was chosen."""
    facts = []
    if chosen.rank[place]:
        facts.append(f"number {chosen.rank[place]} of query {chosen.query[place] + 1}")
    if chosen.cluster.shape[1]:
        facts.append("cluster " + "/".join(map(str, chosen.cluster[place])))
    return ", ".join(facts)


def _resembled(
    loss: Dropped, places: np.ndarray, snapshot: Snapshot, references: Sequence[PhotoSet]
) -> list[str]:
    """Say what each photo resembles."""
    like = loss.like[places]
    source = snapshot if loss.reference < 0 else references[loss.reference].snapshot
    known = like >= 0
    names = iter(source.photos(like[known]))
    return [f"like {next(names).path}" if one else loss.reason for one in known]


def _sample(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(count, min(count, most), replace=False))


def _tile(photo: Photo, score: float, detail: str) -> Tile:
    shown = None if np.isnan(score) else score
    return Tile(thumbnail(photo.path), photo.path.name, shown, f"{photo.width} x {photo.height}, {detail}")
