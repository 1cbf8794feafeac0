"""`dinokit match` of many images: one against a folder, or the pairs of a list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dinov2kit.errors import ArgumentError, ImageError

from . import console, options

if TYPE_CHECKING:
    from dinov2kit.batch import Ranking
    from dinov2kit.pairs import PairSpec


def match_several(spec: PairSpec, given: dict[str, Any]) -> None:
    """Match image A to several, print them best first; the folder `--out` gets the matches of each."""
    from functools import partial

    from dinov2kit.batch import match_many
    from dinov2kit.images import list_images
    from dinov2kit.pair_pictures import draw_pair
    from dinov2kit.points import read_points
    from dinov2kit.ranking import check_folder, other_images, ranking_document, write_ranking

    image0, quiet = given["image0"], given["quiet"]
    _refuse(given, ("flow", "cache", "colmap"), "several images B")
    targets = other_images(image0, list_images(given["images1"]))
    folder = _only_out(given, "a folder")
    if folder is not None:
        check_folder(folder, overwrite=given["overwrite"])
    points = read_points(given["points"], image0) if given["points"] is not None else None
    encoder = options.local_encoder(given)
    with console.progress(quiet=quiet) as bars:
        task = bars.add_task("Matching", total=len(targets), note=encoder.identity.name)
        rank = partial(match_many, encoder, image0, targets)
        if folder is not None:
            draw = partial(draw_pair, style=given["style"], num=given["draw_num"], labels=given["label"])
            picture = None if given["no_draw"] else draw
            rank = partial(write_ranking, encoder, image0, targets, folder, picture=picture)
        ranking = rank(points=points, spec=spec, advance=lambda _: bars.advance(task))
    if given["as_json"]:
        console.emit_json("match-many/1", ranking_document(image0, ranking))
    else:
        _print_ranking(ranking)
    for path, reason in ranking.failed:
        console.warn(reason if reason.startswith(str(path)) else f"{path}: {reason}")
    for warning in dict.fromkeys(warning for ranked in ranking.found[:1] for warning in ranked.warnings):
        console.warn(warning)
    if folder is not None and not quiet:
        console.say(f"wrote {len(ranking.found)} results and index.json to {folder}")
    if not ranking.found:
        raise ImageError("no image could be matched")


def match_list(spec: PairSpec, given: dict[str, Any]) -> None:
    """Match the pairs of a list and write them in the layout of hloc, and for COLMAP if that is asked."""
    from dinov2kit.batch import match_pairs
    from dinov2kit.colmap import export_colmap
    from dinov2kit.feature_cache import FeatureCache
    from dinov2kit.hloc import read_pairs

    if given["image0"] is not None:
        raise ArgumentError("--pairs names the images; A and B cannot be given as well")
    _refuse(given, ("points", "flow"), "--pairs")
    out, cache_path = _only_out(given, "a file"), given["cache"]
    if out is None or out.suffix != ".h5":
        raise ArgumentError("--pairs writes one .h5 file", hint="name it with --out matches.h5")
    if given["colmap"] is not None and cache_path is None:
        raise ArgumentError("--colmap needs the keypoints", hint="keep them with --cache features.h5")
    pairs = read_pairs(given["pairs"])
    encoder = options.local_encoder(given)
    cache = None if cache_path is None else FeatureCache(cache_path)
    with console.progress(quiet=given["quiet"]) as bars:
        task = bars.add_task("Matching", total=len(pairs), note=encoder.identity.name)
        report = match_pairs(
            encoder,
            pairs,
            given["root"],
            out,
            features=spec.features,
            matching=spec.matching,
            cache=cache,
            overwrite=given["overwrite"],
            advance=lambda _: bars.advance(task),
        )
    if given["colmap"] is not None:
        export_colmap(cache_path, out, given["colmap"], overwrite=given["overwrite"])
    failed = [{"pair": list(pair), "reason": reason} for pair, reason in report.failed]
    counts = {"out": str(out), "matched": len(report.matched), "skipped": len(report.skipped)}
    if given["as_json"]:
        console.emit_json("match-pairs/1", {**counts, "failed": failed})
    for (name0, name1), reason in report.failed:
        console.warn(f"{name0} {name1}: {reason}")
    if not given["quiet"]:
        console.say(f"{len(report.matched)} pairs matched, {len(report.skipped)} were in {out} already")
    if report.failed and not report.matched and not report.skipped:
        raise ImageError("no pair could be matched")


def _print_ranking(ranking: Ranking) -> None:
    rows = [
        (f"{ranked.confidence:.4f}", f"{ranked.matches.kept.sum()}/{len(ranked.matches)}", str(ranked.path))
        for ranked in ranking.found
    ]
    if not console.on_terminal():
        for row in rows:
            console.emit("\t".join(row))
        return
    table = Table("confidence", "kept", "image", box=None)
    for row in rows:
        table.add_row(*row)
    console.show_table(table)


def _only_out(given: dict[str, Any], wanted: str) -> Path | None:
    """Return the one file or folder that `--out` names."""
    names = given["out"] or []
    if len(names) > 1 or "-" in names:
        raise ArgumentError(f"--out is {', '.join(names)}; wanted {wanted} here, once")
    return Path(names[0]) if names else None


def _refuse(given: dict[str, Any], names: tuple[str, ...], with_: str) -> None:
    for name in names:
        if given[name] is not None:
            raise ArgumentError(f"--{name} does not go with {with_}")
