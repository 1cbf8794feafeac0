"""What images show: by a linear head, or by the labelled images that are nearest."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dinov2kit.catalogue import find_model, weights_folder
from dinov2kit.described_images import DescriptorCache, Shown, describe_images
from dinov2kit.download import Progress, download
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError, ImageError, WeightsError
from dinov2kit.knn import TEMPERATURE, nearest
from dinov2kit.labelled_images import read_labelled
from dinov2kit.linear_head import LinearHead, TokenEncoder, read_head, top_classes
from dinov2kit.pipeline import GlobalEncoder
from dinov2kit.weight_files import verify_file

_IMAGENET = Path(__file__).with_name("imagenet_classes.csv")
_RELEASED_LAYERS = {1: "linear", 4: "linear4"}


class Guess(NamedTuple):
    """A class, and its share: of a head's softmax, or of the votes of the neighbours."""

    label: str
    share: float


@dataclass(frozen=True)
class Classified:
    """What an image shows.

    Attributes:
        path: of the image.
        guesses: the best classes, the best first; none where `error` is set.
        error: why it could not be read.
    """

    path: Path
    guesses: tuple[Guess, ...]
    error: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes."""
        return {
            **asdict(self),
            "path": str(self.path),
            "guesses": [guess._asdict() for guess in self.guesses],
        }


@runtime_checkable
class Judge(Protocol):
    """What tells classes from rows of an encoder."""

    @property
    def encoder(self) -> GlobalEncoder:
        """Makes the rows."""

    def judge(self, rows: Float32[np.ndarray, "n wide"], top: int) -> list[tuple[Guess, ...]]:
        """Return the best classes of each row."""


@dataclass(frozen=True)
class HeadJudge:
    """Tells classes by a linear head.

    Attributes:
        backbone: what the head belongs to.
        head: the linear layer.
        names: of its classes.
    """

    backbone: Encoder
    head: LinearHead
    names: tuple[str, ...]

    @property
    def encoder(self) -> GlobalEncoder:
        """Makes the tokens that the head takes."""
        return TokenEncoder(self.backbone, self.head.layers)

    def judge(self, rows: Float32[np.ndarray, "n wide"], top: int) -> list[tuple[Guess, ...]]:
        """Return the best classes with their share of the softmax."""
        found = top_classes(self.head.logits(rows, self.backbone.dim), top)
        return [
            tuple(Guess(self.names[place], share) for place, share in zip(places, shares, strict=True))
            for places, shares in found
        ]


@dataclass(frozen=True)
class ExampleJudge:
    """Tells classes by the votes of the nearest labelled images.

    Attributes:
        encoder: makes the descriptors.
        bank: descriptors of the labelled images.
        labels: number of the class of each.
        names: of the classes.
        k: how many neighbours vote.
        errors: (path, reason) of the labelled images that could not be read.
    """

    encoder: GlobalEncoder
    bank: Float32[np.ndarray, "n dim"]
    labels: np.ndarray
    names: tuple[str, ...]
    k: int
    errors: tuple[tuple[Path, str], ...] = ()

    def judge(self, rows: Float32[np.ndarray, "n wide"], top: int) -> list[tuple[Guess, ...]]:
        """Return the classes with the most votes, and their share; weights are those of `knn.vote`."""
        found = []
        for places, scores in nearest(self.bank, rows, self.k):
            weights = np.exp((scores.astype(np.float64) - scores.max(axis=1, keepdims=True)) / TEMPERATURE)
            for voters, weight in zip(self.labels[places], weights, strict=True):
                votes = np.bincount(voters, weight / weight.sum(), len(self.names))
                best = [int(at) for at in np.argsort(-votes, kind="stable")[:top] if votes[at] > 0]
                found.append(tuple(Guess(self.names[at], float(votes[at])) for at in best))
        return found


def open_head(
    encoder: Encoder,
    head: Path | None,
    *,
    layers: int = 1,
    names: Path | None = None,
    progress: Progress | None = None,
    base_url: str | None = None,
) -> HeadJudge:
    """Open a linear head for an encoder.

    Args:
        encoder: the backbone.
        head: a file that `read_head` reads; None for the released ImageNet head of a released model.
        layers: of the released head, 1 or 4.
        names: a file with the name of one class a line; None: what the head says, else those of ImageNet for
            1,000 classes, else numbers.
        progress: as for `download`.
        base_url: where the release is mirrored.

    Raises:
        WeightsError: the head cannot be had, is damaged, or belongs to another backbone.
        ArgumentError: there are not as many names as classes, or no head of so many layers.
        ImageError: the file of names cannot be read.
    """
    if head is None:
        head = _released_head(encoder.name, layers, progress=progress, base_url=base_url)
    found = read_head(head, dim=encoder.dim)
    if found.weights_sha256 not in ("", encoder.identity.weights_sha256):
        raise WeightsError(
            f"{head} was trained on other weights than those of {encoder.name}",
            hint="give the model that it was trained on by --model",
        )
    said = _class_names(len(found.weight), found, names)
    return HeadJudge(encoder, found, said)


def open_examples(
    encoder: GlobalEncoder,
    examples: Path,
    *,
    k: int = 20,
    cache: Path | None = None,
    workers: int = 0,
    advance: Callable[[Path], None] | None = None,
) -> ExampleJudge:
    """Describe labelled images, to tell others by them.

    Args:
        encoder: makes the descriptors.
        examples: class folders or a table, see `read_labelled`.
        k: how many neighbours vote; fewer where there are fewer images.
        cache: folder that keeps the descriptors.
        workers: decoding processes.
        advance: called with the path of each image.

    Raises:
        ImageError: the examples cannot be read.
        ArgumentError: k is below 1.
    """
    if k < 1:
        raise ArgumentError(f"k is {k}; wanted 1 or more")
    images = read_labelled(examples, "train")
    kept = None if cache is None else DescriptorCache(cache, encoder.identity)
    shown = [Shown(image.path) for image in images]
    said = describe_images(encoder, shown, cache=kept, workers=workers, advance=advance)
    names = tuple(sorted({image.label for image in images}))
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[image.label] for image in images], np.int64)[said.known]
    chosen = min(k, len(labels))
    return ExampleJudge(encoder, said.rows[said.known], labels, names, chosen, said.errors)


def classify_images(
    judge: Judge,
    paths: Sequence[Path],
    *,
    top: int = 5,
    workers: int = 0,
    batch_size: int = 0,
    advance: Callable[[Path], None] | None = None,
) -> list[Classified]:
    """Say what images show, in the order given; those that cannot be read say why.

    Args:
        judge: of `open_head` or `open_examples`.
        paths: the images.
        top: how many classes of each.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per call of the encoder, 0 for what suits it.
        advance: called with the path of each image.

    Raises:
        ImageError: no image could be read.
        ArgumentError: top is below 1.
    """
    if top < 1:
        raise ArgumentError(f"top is {top}; wanted 1 or more")
    shown = [Shown(path) for path in paths]
    said = describe_images(judge.encoder, shown, workers=workers, batch_size=batch_size, advance=advance)
    reasons = dict(said.errors)
    guesses = iter(judge.judge(said.rows[said.known], top))
    return [
        Classified(path, next(guesses)) if known else Classified(path, (), reasons.get(path, "unreadable"))
        for path, known in zip(paths, said.known.tolist(), strict=True)
    ]


def imagenet_classes() -> tuple[str, ...]:
    """Return the names of the 1,000 classes of ImageNet, in the order of their synsets."""
    with _IMAGENET.open(encoding="utf-8", newline="") as opened:
        return tuple(row["name"] for row in csv.DictReader(opened))


def _class_names(count: int, head: LinearHead, file: Path | None) -> tuple[str, ...]:
    if file is None:
        if head.classes:
            return head.classes
        return imagenet_classes() if count == 1000 else tuple(map(str, range(count)))
    try:
        names = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"cannot read {file}: {error}") from error
    if len(names) != count:
        raise ArgumentError(f"{file} has {len(names)} names, and the head {count} classes")
    return names


def _released_head(name: str, layers: int, *, progress: Progress | None, base_url: str | None) -> Path:
    """Return the released ImageNet head of a released model, downloaded if need be."""
    if layers not in _RELEASED_LAYERS:
        raise ArgumentError(f"there is no released head of {layers} layers; wanted 1 or 4")
    try:
        spec = find_model(name)
    except WeightsError as error:
        raise WeightsError(
            f"{name} has no released head", hint="give one by --head, or labelled images by --examples"
        ) from error
    if spec.shipped:
        raise WeightsError(
            f"{spec.name} has no ImageNet head", hint="give one by --head, or labelled images by --examples"
        )
    stem = spec.remote.removesuffix("_pretrain.pth")
    file = f"{stem}_{_RELEASED_LAYERS[layers]}_head.pth"
    path = weights_folder() / file.rpartition("/")[2]
    if path.is_file():
        return verify_file(path).path
    url = spec.url(base_url).removesuffix(spec.remote) + file
    return download(url, path, progress=progress).path
