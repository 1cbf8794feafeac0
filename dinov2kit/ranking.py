"""One image against many: their matches in files of one folder, and the list of them, best first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dinov2kit.batch import Ranking, match_many
from dinov2kit.errors import ArgumentError
from dinov2kit.files import written_whole
from dinov2kit.pair_files import write_pair
from dinov2kit.pair_pictures import draw_pair
from dinov2kit.pairs import LocalEncoder, MatchedPair, PairSpec
from dinov2kit.points import NamedPoints

LIST = "index.json"
SCHEMA = "dinokit.match-many/1"


def other_images(path0: Path, images: Sequence[Path]) -> list[Path]:
    """Return the images that are not image 0 itself, each once, in their order.

    Raises:
        ArgumentError: none is left.
    """
    others = [path for path in dict.fromkeys(images) if path.resolve() != path0.resolve()]
    if not others:
        raise ArgumentError(f"there is no image to match {path0} to but itself")
    return others


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a folder that `write_ranking` could not fill.

    Raises:
        ArgumentError: it is a file, holds something and nothing may be replaced, or there is none above it.
    """
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(
            f"{folder} is a file; several images need a folder", hint="name a folder with --out"
        )
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ArgumentError(f"{folder} holds files already", hint="name another folder, or add --overwrite")
    if not folder.parent.is_dir():
        raise ArgumentError(f"cannot write {folder}: there is no folder {folder.parent}")


def write_ranking(
    encoder: LocalEncoder,
    path0: Path,
    targets: Sequence[Path],
    folder: Path,
    *,
    points: NamedPoints | None = None,
    spec: PairSpec | None = None,
    picture: Callable[[MatchedPair, Path], None] | None = draw_pair,
    advance: Callable[[Path], None] | None = None,
) -> Ranking:
    """Match one image to many, write the matches and a picture of each, and the list of them, best first.

    Args:
        encoder: the model.
        path0: file of image 0.
        targets: files of the images to match it to.
        folder: where to; it is made if need be. Image number i, from 0, has `i-NAME.json` and `i-NAME.jpg`.
        points: keypoints of image 0 to carry over; without them they are chosen for each pair.
        spec: what is wanted of each pair.
        picture: draws a pair to a file; None: no pictures.
        advance: called with each target, matched or not.

    Raises:
        ImageError: image 0 cannot be read. A target that cannot be read is listed.
        ArgumentError: a point is not on image 0, or the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    digits = len(str(len(targets) - 1))
    stems = {path: f"{number:0{digits}}-{path.stem}" for number, path in enumerate(targets)}

    def write(pair: MatchedPair) -> None:
        stem = stems[pair.paths[1]]
        write_pair(pair, folder / f"{stem}.json")
        if picture is not None:
            picture(pair, folder / f"{stem}.jpg")

    ranking = match_many(encoder, path0, targets, points=points, spec=spec, each=write, advance=advance)
    document = ranking_document(path0, ranking, files={path: f"{stem}.json" for path, stem in stems.items()})
    with written_whole(folder / LIST) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return ranking


def ranking_document(
    path0: Path, ranking: Ranking, *, files: dict[Path, str] | None = None
) -> dict[str, object]:
    """Return the document that `--json` prints and `index.json` holds.

    Args:
        path0: file of image 0.
        ranking: what was found.
        files: name of the file with the matches of each image, where they were written.
    """
    return {
        "schema": SCHEMA,
        "image0": str(path0),
        "images": [
            {
                "path": str(ranked.path),
                "confidence": round(ranked.confidence, 5),
                "kept": int(ranked.matches.kept.sum()),
                "matches": len(ranked.matches),
                "file": files[ranked.path] if files else None,
                "warnings": list(ranked.warnings),
            }
            for ranked in ranking.found
        ],
        "failed": [{"path": str(path), "reason": reason} for path, reason in ranking.failed],
    }
