"""`dinokit match`: which places of two images show the same thing; of many images, by a folder or a list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dinov2kit.errors import ArgumentError

from . import console, match_many, options


def match(
    image0: Annotated[
        Path | None, typer.Argument(metavar="A", help="Image with the keypoints.", show_default=False)
    ] = None,
    images1: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="B...", help="Image to find them in; several, or a folder.", show_default=False
        ),
    ] = None,
    points: Annotated[
        str | None,
        typer.Option(metavar="FILE|X,Y;X,Y", help="Carry these points of A over (.csv, .json, COCO, .h5)."),
    ] = None,
    outside: Annotated[
        str, typer.Option(metavar="error|clip|skip", help="What becomes of points that are not on A.")
    ] = "error",
    num: Annotated[int, typer.Option(metavar="N", help="Keypoints to choose when none are given.")] = 50,
    keypoints: Annotated[
        str, typer.Option(metavar="spread|kmeans|grid|sift", help="How they are chosen.")
    ] = "spread",
    mutual: Annotated[bool, options.flag("--mutual", help="Keep only nearest neighbours both ways.")] = False,
    max_cycle: Annotated[
        float, typer.Option(metavar="PATCHES", help="Largest error of the way back that is kept.")
    ] = 1.0,
    max_ratio: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="Largest ratio to the second best place; not set: any."),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(metavar="COSINE", help="Lowest cosine that is kept; not set: any.")
    ] = None,
    refine: Annotated[
        str, typer.Option(metavar="window|parabola|none", help="How a place between patches is read.")
    ] = "window",
    window: Annotated[int, typer.Option(metavar="PATCHES", help="Radius of the window; 0 chooses.")] = 0,
    temperature: Annotated[float, typer.Option(metavar="T", help="Of the softmax in the window.")] = 0.04,
    topk: Annotated[int, typer.Option(metavar="K", help="Report K places per point, best first.")] = 1,
    mask: Annotated[
        str, typer.Option(metavar="auto|pca|none|FILE,FILE", help="What counts of A and B (white in a file).")
    ] = "auto",
    geom: Annotated[
        str,
        typer.Option(metavar="KIND", help="Fit a similarity, affine, homography or fundamental; or none."),
    ] = "none",
    thresh: Annotated[
        float | None, typer.Option(metavar="PX", help="Largest error of an inlier in B; not set: chosen.")
    ] = None,
    rotations: Annotated[int, typer.Option(metavar="1|4", help="4 tries B at four quarter turns.")] = 1,
    allow_mirror: Annotated[
        bool, options.flag("--allow-mirror", help="Also try B mirrored; left and right are then confused.")
    ] = False,
    out: Annotated[
        list[str] | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write .json .csv .h5 .npz .txt; - is JSON on stdout; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    draw: Annotated[Path, typer.Option(metavar="FILE", help="Picture of the matches.")] = Path("matches.png"),
    no_draw: Annotated[bool, options.flag("--no-draw", help="No picture.")] = False,
    style: Annotated[
        str, typer.Option(metavar="STYLE", help="lines, dots, pca, heat, warp, flow, grid or swap.")
    ] = "lines",
    draw_num: Annotated[int, typer.Option(metavar="N", min=0, help="Matches in the picture.")] = 15,
    label: Annotated[bool, options.flag("--label", help="Write names or numbers beside the points.")] = False,
    flow: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the dense flow from A to B: .flo .npy .npz.")
    ] = None,
    flow_kind: Annotated[
        str, typer.Option(metavar="KIND", help="raw, smooth, mesh, affine or tps.")
    ] = "smooth",
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Match the pairs of a list, one 'A B' a line.")
    ] = None,
    root: Annotated[Path, typer.Option(metavar="DIR", help="Where the names of --pairs begin.")] = Path(),
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep features of --pairs in this .h5 (hloc layout).")
    ] = None,
    colmap: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write what COLMAP imports, for --pairs.")
    ] = None,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace existing files.")] = False,
    model: options.ModelOption = "auto",
    adapter: options.AdapterOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    size: options.SizeOption = 0,
    resize: options.ResizeOption = "keep",
    stride: options.StrideOption = 0,
    layer: options.LayerOption = -1,
    facet: options.FacetOption = "token",
    prenorm: options.PrenormOption = False,
    debias: options.DebiasOption = 0,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Find the places of B that show what places of A show, and draw them.

    Good for parts of things across photos ("the left eye of another cat"); for pixel-exact geometry of one
    scene, a detector of corners does better. Points are x,y in pixels of the upright original; (0, 0) is the
    centre of the first pixel. Points given with --points keep their order and number, and without --out their
    matches are printed as CSV. Several images B are ranked by how well they match A.

    Example: dinokit match cat1.jpg cat2.jpg --points "120,80;300,210" --draw cats.png
    """
    given = dict(locals())
    spec = _spec(given)
    if pairs is not None:
        match_many.match_list(spec, given)
        return
    if image0 is None or not images1:
        raise ArgumentError(
            "two images are needed: A and B", hint="dinokit match a.jpg b.jpg, or --pairs FILE"
        )
    if len(images1) > 1 or images1[0].is_dir():
        match_many.match_several(spec, given)
        return
    _match_two(spec, given)


def _match_two(spec: Any, given: dict[str, Any]) -> None:
    from dinov2kit.pair_files import pair_csv, pair_document, summary, write_pair
    from dinov2kit.pair_pictures import check_outputs, draw_pair, write_pair_flow
    from dinov2kit.pairs import match_images
    from dinov2kit.points import read_points

    image0, (image1,), names = given["image0"], given["images1"], given["out"] or []
    tables = [Path(name) for name in names if name != "-"]
    picture, flow = None if given["no_draw"] else given["draw"], given["flow"]
    check_outputs(tables, picture, flow, overwrite=given["overwrite"])
    points = read_points(given["points"], image0) if given["points"] is not None else None
    encoder = options.local_encoder(given)
    pair = match_images(encoder, image0, image1, points=points, spec=spec)
    for table in tables:
        write_pair(pair, table)
    if picture is not None:
        draw_pair(pair, picture, style=given["style"], num=given["draw_num"], labels=given["label"])
    folded = None if flow is None else write_pair_flow(pair, flow, given["flow_kind"]).fold_over
    if given["as_json"] or "-" in names:
        console.emit_json("match/1", pair_document(pair))
    elif points is not None and not tables:
        console.emit(pair_csv(pair), end="")
    if not given["quiet"]:
        for line in summary(pair):
            console.say(line)
        if folded is not None:
            console.say(f"{folded:.1%} of the flow folds over")
        _say_written([*tables, picture, flow])
    for warning in pair.warnings:
        console.warn(warning)


def _say_written(paths: list[Path | None]) -> None:
    written = [str(path) for path in paths if path is not None]
    if written:
        console.say("wrote " + ", ".join(written))


def _spec(given: dict[str, Any]) -> Any:
    from dinov2kit.matching import MatchSpec
    from dinov2kit.pairs import PairSpec

    matching = MatchSpec(
        max_cycle=given["max_cycle"],
        mutual=given["mutual"],
        max_ratio=given["max_ratio"],
        min_score=given["min_score"],
        refine=given["refine"],
        window=given["window"],
        temperature=given["temperature"],
        modes=given["topk"],
    )
    return PairSpec(
        features=options.feature_spec(given),
        matching=matching,
        num=given["num"],
        keypoints=given["keypoints"],
        mask=_mask(given["mask"]),
        geometry=None if given["geom"] == "none" else given["geom"],
        threshold=given["thresh"],
        rotations=given["rotations"],
        allow_mirror=given["allow_mirror"],
        outside=given["outside"],
    )


def _mask(text: str) -> Literal["auto", "pca", "none"] | tuple[Path, Path]:
    words: tuple[Literal["auto", "pca", "none"], ...] = ("auto", "pca", "none")
    for word in words:
        if text == word:
            return word
    names = text.split(",")
    if len(names) != 2:
        raise ArgumentError(f"mask is {text!r}; wanted auto, pca, none, or two files as FILE,FILE")
    return Path(names[0]), Path(names[1])


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Images")(match)
