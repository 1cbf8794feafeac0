"""The probe: which images it looks at, its score of known embeddings, and that processes change nothing."""

import math
import threading
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from dinov2kit.draw import write_image
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import load_picture
from dinov2kit.train.pixels import PixelRules
from dinov2kit.train.probe import BATCH, Probe
from dinov2kit.train.probe_images import fit_pixels, labelled_probe, views_probe
from dinov2kit.views import CenterCrop

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}


class Drawn:
    """A set in memory."""

    digest = "00"

    def __init__(self, pixels: list[np.ndarray], labels: list[str] | None = None) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        return f"set/{index:04}"

    def read(self, index: int) -> np.ndarray:
        if self.pixels[index].size == 0:
            raise ImageError(f"{self.name(index)}: damaged")
        return self.pixels[index]


def patch(colour: tuple[int, ...], seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-25, 26, (height, width, len(colour)))
    return np.clip(noise + np.array(colour), 0, 255).astype(np.uint8)


def write_classes(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write_image(root / label / f"{seed}{i}.png", patch(COLOURS[label], 100 * seed + i))
    return root


def mean_colour(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean(dim=(1, 2)) - 100


def texture(images: torch.Tensor) -> torch.Tensor:
    """Describe an image by how it differs from its own mean, in a frame that flips with it."""
    small = torch.nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), 8)
    return (small - small.mean(dim=(2, 3), keepdim=True)).flatten(1)


def toy(bank_labels: list[int], query_labels: list[int], *, k: int = 1, kind: str = "labels") -> Probe:
    """Return a probe whose images hold their place in the first pixel, bank first."""
    places = np.arange(len(bank_labels) + len(query_labels), dtype=np.uint8)
    images = np.broadcast_to(places[:, None, None, None], (len(places), 2, 2, 3)).copy()
    return Probe(
        bank=images[: len(bank_labels)],
        queries=images[len(bank_labels) :],
        bank_labels=np.array(bank_labels),
        query_labels=np.array(query_labels),
        kind=kind,
        k=k,
    )


def looked_up(rows: torch.Tensor):
    return lambda images: rows[images[:, 0, 0, 0].long()]


def test_the_score_is_the_share_of_queries_next_to_their_class() -> None:
    probe = toy([0, 0, 1, 1], [0, 1, 1, 0])
    rows = torch.tensor([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [5, 1], [1, 5], [2, 1], [0, 3]]).float()
    result = probe.measure(looked_up(rows))
    assert result.knn == 0.5  # the third and the fourth query lie with the other class
    assert result.knn_kind == "labels"
    assert result.seconds > 0
    shares = np.linalg.svd(rows[:4].numpy().astype(np.float64), compute_uv=False)
    shares /= shares.sum()
    assert result.rankme == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert probe.measure(looked_up(rows), rankme=False).rankme is None


def test_tokens_that_are_not_finite_have_no_score() -> None:
    rows = torch.ones(5, 3)
    rows[4, 1] = math.nan
    result = toy([0, 1, 1], [0, 1]).measure(looked_up(rows))
    assert math.isnan(result.knn)
    assert result.rankme == pytest.approx(1)  # of the bank, which is whole
    assert result.to_json().keys() == {"knn", "knn_kind", "rankme", "seconds"}


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("count", [7, BATCH, 3 * BATCH + 5])
def test_several_processes_measure_what_one_measures_and_keep_step(world: int, count: int) -> None:
    """Threads stand for processes; each must call its backbone equally often, with batches of one size."""
    labels = [i % 4 for i in range(count)]
    probe = toy(labels, labels[:30], k=3)
    rows = torch.randn(count + 30, 6, generator=torch.Generator().manual_seed(0))
    alone = probe.measure(looked_up(rows))
    meeting, brought = threading.Barrier(world), [torch.empty(0)] * world
    sizes: list[list[int]] = [[] for _ in range(world)]
    results = [alone] * world

    def take_part(rank: int) -> None:
        def embed(images: torch.Tensor) -> torch.Tensor:
            sizes[rank].append(len(images))
            return looked_up(rows)(images)

        def gather(own: torch.Tensor) -> torch.Tensor:
            brought[rank] = own
            meeting.wait()
            return torch.cat(brought)

        results[rank] = probe.measure(embed, rank=rank, world=world, gather=gather)

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((one.knn, one.rankme) == (alone.knn, alone.rankme) for one in results)
    assert all(own == sizes[0] for own in sizes)
    assert len({size for own in sizes for size in own}) == 1
    with pytest.raises(ArgumentError, match="2 processes"):
        probe.measure(looked_up(rows), world=2)


def test_class_folders_are_halved_and_their_colours_are_told_apart(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"red": 5, "green": 4, "blue": 1})
    probe = labelled_probe(root, size=28)
    assert np.bincount(probe.bank_labels).tolist() == [1, 2, 3]  # blue, green, red
    assert np.bincount(probe.query_labels, minlength=3).tolist() == [0, 2, 2]
    assert (probe.kind, probe.k) == ("labels", 2)
    assert any("half of each class" in note for note in probe.notes)
    assert any("2 neighbours vote, not 20" in note for note in probe.notes)
    assert probe.measure(mean_colour).knn == 1.0
    assert probe.measure(lambda images: 1 - 2 * torch.eye(len(images), 7)).knn < 1.0
    for images, labels in ((probe.bank, probe.bank_labels), (probe.queries, probe.query_labels)):
        for image, label in zip(images, labels, strict=True):
            colour = sorted(COLOURS)[label]
            assert np.abs(image.mean(axis=(0, 1)) - COLOURS[colour]).max() < 8


def test_the_pixels_are_those_of_the_evaluation_protocol(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"red": 2, "green": 2})
    view = CenterCrop(resize=32, crop=28)
    wanted = {load_picture(path, view).pixels.tobytes() for path in root.rglob("*.png")}
    probe = labelled_probe(root, size=28)
    assert {image.tobytes() for image in (*probe.bank, *probe.queries)} == wanted
    assert len(wanted) == 4


def test_the_draw_depends_on_names_and_seed_not_on_place_or_order(tmp_path: Path) -> None:
    counts = {"red": 6, "green": 6}
    here, there = (write_classes(tmp_path / name, counts) for name in ("here", "deeper/there"))
    with ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(here.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(here))
    probes = [labelled_probe(source, size=28) for source in (here, there, tmp_path / "set.zip")]
    for probe in probes[1:]:
        assert np.array_equal(probe.bank, probes[0].bank)
        assert np.array_equal(probe.query_labels, probes[0].query_labels)
    other = labelled_probe(here, size=28, seed=1)
    assert not np.array_equal(other.bank, probes[0].bank)
    few = labelled_probe(here, size=28, most=2)
    assert sorted(few.bank_labels) == sorted(few.query_labels) == [0, 1]  # spread over the classes
    kept = {image.tobytes() for image in probes[0].bank}
    assert {image.tobytes() for image in few.bank} <= kept


@pytest.mark.parametrize("packed", [False, True])
def test_train_and_val_are_the_two_sides(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "set"
    write_classes(root / "train", {"red": 3, "green": 3}, seed=1)
    write_classes(root / "val", {"red": 1, "green": 2, "blue": 2}, seed=2)
    source = root
    if packed:
        source = tmp_path / "set.zip"
        with ZipFile(source, "w") as archive:
            for path in sorted(root.rglob("*.png")):
                archive.write(path, path.relative_to(tmp_path))
    probe = labelled_probe(source, size=28)
    assert (len(probe.bank), len(probe.queries)) == (6, 3)
    assert probe.measure(mean_colour).knn == 1.0
    (note,) = [note for note in probe.notes if "blue" in note]
    assert "no image of the bank shows blue" in note
    assert not any("half" in note for note in probe.notes)


def test_one_split_alone_is_halved_whatever_it_is_called(tmp_path: Path) -> None:
    for split in ("train", "val"):
        root = tmp_path / split / "set"
        write_classes(root / split, {"red": 4, "green": 4})
        probe = labelled_probe(root, size=28)
        assert np.bincount(probe.bank_labels).tolist() == [2, 2]
        assert probe.measure(mean_colour).knn == 1.0
        table = root / "table.csv"
        rows = [f"{path.relative_to(root)},{path.parent.name},{split}" for path in root.rglob("*.png")]
        table.write_text("\n".join(["path,label,split", *rows]))
        assert np.bincount(labelled_probe(table, size=28).query_labels).tolist() == [2, 2]


def test_pixels_are_a_control_that_counts_colours(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"red": 6, "green": 6, "blue": 6})
    probe = labelled_probe(root, size=28)
    assert probe.control("pixels") == 1.0
    shuffled = Probe(
        bank=probe.bank,
        queries=probe.queries,
        bank_labels=np.roll(probe.bank_labels, 1),
        query_labels=(probe.query_labels + 1) % 3,
        kind="labels",
        k=1,
    )
    assert shuffled.control("pixels") < 1.0
    with pytest.raises(ArgumentError, match="unknown control 'random'"):
        probe.control("random")


def test_the_control_is_the_cosine_of_centred_means_in_plain_numpy() -> None:
    rng = np.random.default_rng(3)
    bank, queries = (rng.integers(0, 256, (n, 64, 64, 2), np.uint8) // 4 * 4 for n in (12, 9))
    labels = (np.arange(12) % 3, np.arange(9) % 3)
    probe = Probe(bank, queries, *labels, kind="labels", k=1)

    def shrink(images: np.ndarray) -> np.ndarray:
        return (
            images.reshape(len(images), 32, 2, 32, 2, 2)
            .astype(np.float64)
            .mean(axis=(2, 4))
            .reshape(len(images), -1)
        )

    rows, asked = shrink(bank) - shrink(bank).mean(axis=0), shrink(queries) - shrink(bank).mean(axis=0)
    cosines = (asked / np.linalg.norm(asked, axis=1, keepdims=True)) @ (
        rows / np.linalg.norm(rows, axis=1)[:, None]
    ).T
    wanted = np.mean(labels[0][cosines.argmax(axis=1)] == labels[1])
    assert probe.control("pixels") == pytest.approx(wanted)
    assert 0 < wanted < 1


def test_views_overlap_by_half_a_side_and_the_second_is_mirrored() -> None:
    """Each pixel of the square holds its row and its column, so that a view says where it was cut."""
    rows, columns = np.mgrid[:48, :48].astype(np.uint8)
    ramp = np.stack([rows, columns, np.zeros_like(rows)], axis=2)
    probe = views_probe(Drawn([ramp, 255 - ramp]), size=36 - 4)
    side = 43  # 32 / 0.75, upwards; cut from the middle of 48 resized to 49
    first, second = probe.queries[0].astype(int), probe.bank[0].astype(int)
    assert first.shape == second.shape == (32, 32, 3)
    mirrored = second[:, ::-1]
    shift = side - 32
    overlap_first, overlap_second = first[shift:, shift:], mirrored[:-shift, :-shift]
    assert np.array_equal(overlap_first, overlap_second)
    assert (np.diff(second[:, :, 1].mean(axis=0)) <= 0).all()  # columns run backwards
    assert (np.diff(first[:, :, 1].mean(axis=0)) >= 0).all()
    assert second[0, 0, 1] - second[0, -1, 1] > 25
    assert probe.queries[0, 0, 0, 0] < probe.bank[0, 0, 0, 0]


def test_an_image_finds_its_own_other_view_by_texture_and_not_by_nothing() -> None:
    coarse = np.random.default_rng(5).integers(0, 256, (20, 6, 6, 3), np.uint8)
    drawn = Drawn([np.kron(image, np.ones((8, 8, 1), np.uint8)) for image in coarse])
    probe = views_probe(drawn, size=28, most=15)
    assert (probe.kind, probe.k, len(probe.bank)) == ("views", 1, 15)
    undone = {image.tobytes() for image in probe.queries}

    def same_frame(images: torch.Tensor) -> torch.Tensor:
        """Undo the mirror and see only what both views show."""
        cut = math.ceil(28 / 0.75) - 28
        parts = []
        for image in images:
            is_first = image.numpy().tobytes() in undone
            parts.append(image[cut:, cut:] if is_first else image.flip(1)[:-cut, :-cut])
        return texture(torch.stack(parts))

    assert probe.measure(same_frame).knn == 1.0
    assert probe.measure(lambda images: torch.ones(len(images), 4)).knn == pytest.approx(1 / 15)


def test_other_numbers_of_channels_are_resized_one_by_one() -> None:
    image = patch((10, 200, 90, 30, 250), 0, 50, 70)
    view = CenterCrop(resize=32, crop=28)
    fitted = fit_pixels(image, view)
    assert fitted.shape == (28, 28, 5)
    for first in (0, 2):
        wanted = load_picture(np.ascontiguousarray(image[:, :, first : first + 3]), view).pixels
        assert np.array_equal(fitted[:, :, first : first + 3], wanted)
    drawn = Drawn([patch((40, 90), seed) for seed in range(4)], labels=["a", "b", "a", "b"])
    assert labelled_probe(drawn, size=28).bank.shape == (2, 28, 28, 2)


def test_grey_files_become_one_channel(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"red": 2, "green": 2})
    probe = labelled_probe(root, size=28, rules=PixelRules(channels=1))
    assert probe.bank.shape == (2, 28, 28, 1)
    luminance = {0: 0.299 * 40 + 0.587 * 200 + 0.114 * 60, 1: 0.299 * 220 + 0.587 * 40 + 0.114 * 40}
    for image, label in zip(probe.bank, probe.bank_labels, strict=True):
        assert abs(image.mean() - luminance[int(label)]) < 6


def test_what_cannot_be_read_is_left_out_and_noted(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"red": 3, "green": 3})
    (root / "red" / "00.png").write_bytes(b"no picture")
    probe = labelled_probe(root, size=28)
    assert len(probe.bank) + len(probe.queries) == 5
    (note,) = [note for note in probe.notes if "cannot be read" in note]
    assert note.startswith("1 images")
    assert "00.png" in note
    damaged = Drawn([np.empty((0, 0, 3), np.uint8)] * 3)
    with pytest.raises(ImageError, match="none of 3 images"):
        views_probe(damaged, size=28)


def test_what_cannot_be_measured_on_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="have no labels") as caught:
        labelled_probe(Drawn([patch((1, 2, 3), 0)] * 4), size=28)
    assert "eval.knn=DIR" in str(caught.value.hint)
    for counts in ({"red": 4}, {"red": 1, "green": 1}):
        root = write_classes(tmp_path / str(len(counts)), counts)
        with pytest.raises(ArgumentError, match="at least 2 classes of 2 images"):
            labelled_probe(root, size=28)
    with pytest.raises(ImageError, match="no such"):
        labelled_probe(tmp_path / "nowhere", size=28)
    with pytest.raises(ArgumentError, match="1 held-out images"):
        views_probe(Drawn([patch((1, 2, 3), 0)]), size=28)
