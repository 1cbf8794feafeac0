"""Training an adapter: the losses against sums by hand, the split, exact resuming, and the guard."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from dinov2kit.adapter import Adapter, AdapterCard, load_adapter
from dinov2kit.architectures import ARCHITECTURES, ViTConfig
from dinov2kit.draw import write_image
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError, ImageError, KitError, WeightsError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.grid import PatchGrid
from dinov2kit.train import AdaptConfig, Progress, adapt, plan_adapt
from dinov2kit.train.adapt_run import AdaptRun
from dinov2kit.train.held_out import Judge, measure, read_marked
from dinov2kit.train.losses import gaussian_cross_entropy, info_nce, one_cycle
from dinov2kit.train.photo_split import PhotoStream, content_digest, split_photos
from dinov2kit.train.pseudo_pairs import find_partners, label

TINY = ViTConfig(embed_dim=64, depth=2, num_heads=2, ffn_hidden=128, pos_grid=4, layer_scale=1.0)
NAMES = ["astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "moon", "brick", "grass", "gravel"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt") / "photos"
    for number, name in enumerate(NAMES):
        pixels = getattr(data, name)()
        step = min(pixels.shape[:2]) // 130
        small = pixels[::step, ::step][:200, :200]
        rgb = small if small.ndim == 3 else np.repeat(small[..., None], 3, axis=2)
        part = folder / ("things" if number < 5 else "stuff")
        part.mkdir(parents=True, exist_ok=True)
        write_image(part / f"{name}.png", rgb.copy())
    return folder


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Let "untrained:vits14" be a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "vits14", TINY)
        yield


@pytest.fixture(scope="module")
def encoder(small: None) -> Encoder:
    return Encoder("untrained:vits14", device="cpu", precision="fp32")


def settings(photos: Path, out: Path, **changes: object) -> AdaptConfig:
    facts: dict[str, object] = {
        "images": photos,
        "out": out,
        "model": "untrained:vits14",
        "device": "cpu",
        "precision": "fp32",
        "size": 56,
        "steps": 8,
        "batch": 2,
        "points": 12,
        "holdout_most": 1,
    }
    return AdaptConfig(**{**facts, **changes})


def units(n: int, dim: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def test_info_nce_is_the_sum_by_hand() -> None:
    a, b = units(5, 7, 1), units(5, 7, 2)
    scale = math.log(9.0)
    total = 0.0
    for i in range(5):
        logits = [[9.0 * float(x @ y) for y in b] for x in a]
        total -= math.log(math.exp(logits[i][i]) / sum(math.exp(logits[i][j]) for j in range(5)))
        total -= math.log(math.exp(logits[i][i]) / sum(math.exp(logits[j][i]) for j in range(5)))
    found = info_nce(a, b, torch.tensor(scale, dtype=torch.float64))
    assert found.item() == pytest.approx(total / 10, abs=1e-12)
    assert info_nce(b, a, torch.tensor(scale, dtype=torch.float64)).item() == pytest.approx(found.item())


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_the_map_loss_is_the_cross_entropy_by_hand_above_the_entropy(sigma: float) -> None:
    rows, cols, a, field = 3, 4, units(2, 6, 3), units(12, 6, 4)
    cells = torch.tensor([[0.3, 1.7], [2.5, 0.0]], dtype=torch.float64)
    total = 0.0
    for i in range(2):
        weights = [
            math.exp(-((x - float(cells[i, 0])) ** 2 + (y - float(cells[i, 1])) ** 2) / (2 * sigma**2))
            for y, x in itertools.product(range(rows), range(cols))
        ]
        wanted = [weight / sum(weights) for weight in weights]
        votes = [math.exp(5.0 * float(a[i] @ cell)) for cell in field]
        found = [vote / sum(votes) for vote in votes]
        total -= sum(q * (math.log(p) - math.log(q)) for q, p in zip(wanted, found, strict=True))
    loss = gaussian_cross_entropy(
        a,
        field,
        cells,
        rows=rows,
        cols=cols,
        sigma=sigma,
        logit_scale=torch.tensor(math.log(5.0), dtype=torch.float64),
    )
    assert loss.item() == pytest.approx(total / 2, abs=1e-7)


def test_the_map_loss_is_zero_for_a_map_that_is_the_gaussian_whatever_sigma() -> None:
    rows, cols = 4, 5
    cells = torch.tensor([[1.2, 2.4]], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    distances = (torch.stack([x.flatten(), y.flatten()], 1) - cells).square().sum(dim=1)
    for sigma in (1.0, 2.0):
        field = (-distances / (2 * sigma**2))[:, None]  # of one dim: the logits themselves
        loss = gaussian_cross_entropy(
            torch.ones(1, 1).double(),
            field,
            cells,
            rows=rows,
            cols=cols,
            sigma=sigma,
            logit_scale=torch.tensor(0.0).double(),
        )
        assert loss.item() == pytest.approx(0, abs=1e-12)


def test_the_learning_rate_rises_and_falls_as_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=201, cycle_momentum=False)
    for step in range(200):
        assert one_cycle(step / 200, 0.1) == pytest.approx(optimizer.param_groups[0]["lr"], abs=2.5e-3)
        optimizer.step()
        theirs.step()
    assert one_cycle(0.0, 0.1) == pytest.approx(0.1 / 25)
    assert one_cycle(0.3, 0.1) == pytest.approx(0.1)
    assert one_cycle(1.0, 0.1) == pytest.approx(0.1 / 25e4)


def test_the_split_depends_on_contents_and_keeps_copies_together(photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    split = split_photos(paths, 0.3)
    assert len(split.held_out) == 3
    assert set(split.training) | set(split.held_out) == set(paths)
    assert not set(split.training) & set(split.held_out)
    copies = []
    for number, path in enumerate([*reversed(paths), *paths]):
        copies.append(tmp_path / f"{number}.png")
        copies[-1].write_bytes(path.read_bytes())
    again = split_photos(copies, 0.3)
    contents = {path.read_bytes() for path in split.held_out}
    assert {path.read_bytes() for path in again.held_out} == contents
    assert len(again.held_out) == 3
    assert len(again.training) == 14
    assert not any(path.read_bytes() in contents for path in again.training)
    renamed = split_photos(copies[10:], 0.3)
    assert renamed.digest == split.digest != again.digest


def test_marked_photos_are_neither_learned_nor_held_out_and_two_photos_are_the_least(photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    digests = {path: split_photos([path, other], 0.5) for path, other in itertools.pairwise(paths)}
    assert all(len(split.training) == len(split.held_out) == 1 for split in digests.values())
    split = split_photos(paths, 0.2, never={content_digest(paths[0]), content_digest(paths[4])})
    assert set(split.training) | set(split.held_out) == set(paths) - {paths[0], paths[4]}
    with pytest.raises(ArgumentError, match="1 different photos"):
        split_photos(paths[:2], 0.5, never={content_digest(paths[0])})


def test_each_photo_comes_once_in_a_round_in_an_order_that_follows_from_the_seed(photos: Path) -> None:
    paths = tuple(sorted(photos.rglob("*.png")))
    drawn = [PhotoStream(paths, 70, 3).index(draw) for draw in range(30)]
    rounds = [drawn[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(part) == list(range(10)) for part in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    other = PhotoStream(paths, 70, 4)
    assert [other.index(draw) for draw in range(10)] != rounds[0]
    stream = PhotoStream(paths, 70, 3)
    assert [stream.index(draw) for draw in reversed(range(30))] == drawn[::-1]


def test_the_next_photo_stands_in_for_an_unreadable_one_and_too_many_of_them_stop(
    photos: Path, tmp_path: Path
) -> None:
    good = sorted(photos.rglob("*.png"))[:2]
    (tmp_path / "bad.png").write_bytes(b"no photo")
    stream = PhotoStream((good[0], tmp_path / "bad.png", good[1]), 70, 0)
    assert stream.read(1)[0] == 2
    assert np.array_equal(stream.read(1)[1], stream.read(2)[1])
    assert stream.unreadable == {1}
    with pytest.raises(ImageError, match="2 of 3 photos cannot be read"):
        PhotoStream((tmp_path / "bad.png", tmp_path / "bad.png", good[1]), 70, 0).read(0)


def test_partners_are_of_the_same_folder_or_the_nearest(photos: Path, encoder: Encoder) -> None:
    paths = sorted(photos.rglob("*.png"))
    by_folder = find_partners(paths, "auto", encoder)
    for path, others in zip(paths, by_folder, strict=True):
        assert {paths[other] for other in others} == set(path.parent.glob("*.png")) - {path}
    nearest = find_partners([*paths, paths[3]], "nearest", encoder)
    assert nearest[3][0] == 10
    assert nearest[10][0] == 3
    assert all(len(others) == 5 and index not in others for index, others in enumerate(nearest))
    with pytest.raises(ArgumentError, match="no photo has a partner"):
        find_partners([paths[0], paths[9]], "folder", encoder)


def test_pseudo_labels_are_what_raw_features_agree_on_both_ways(encoder: Encoder) -> None:
    pixels = data.astronaut()[:224, :224]
    spec = FeatureSpec(size=112)
    same = encoder.encode(pixels.copy(), spec)
    found = label(same, same, 20)
    assert found is not None
    np.testing.assert_allclose(found[0], found[1], atol=1.0)
    assert 8 <= len(found[0]) <= 20
    few = Features(
        same.class_token, same.patch_tokens[:4], same.register_tokens, PatchGrid(2, 2, 14, 28, 28, 1.0, 1.0)
    )
    assert label(few, few, 20) is None


def test_the_loss_of_a_step_depends_on_nothing_before_it(
    photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    config = settings(photos, tmp_path / "a.safetensors", pseudo=0.5, flips=True)
    first, second = AdaptRun(config, encoder), AdaptRun(config, encoder)
    wanted = first.losses_of(3)
    for step in (0, 5):
        second.losses_of(step)
    assert torch.equal(second.losses_of(3), wanted)
    assert not torch.equal(second.losses_of(4), wanted)
    assert torch.isfinite(wanted).all()


def test_pairs_of_different_photos_come_in_when_asked(photos: Path, encoder: Encoder, tmp_path: Path) -> None:
    def labelled(pseudo: float) -> int:
        """Count the pairs whose first points are all centres of patches, as labels of raw features are."""
        run = AdaptRun(settings(photos, tmp_path / "a.safetensors", size=84, pseudo=pseudo), encoder)
        cells = [run.example(draw).cells0 for draw in range(8)]
        return sum(bool((found - found.round()).abs().max() < 1e-3) for found in cells)

    assert labelled(0.0) == 0
    assert labelled(1.0) > 0


def test_training_lowers_the_loss_on_the_same_pairs(photos: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    config = settings(
        photos, tmp_path / "a.safetensors", model="untrained:vitt14", steps=40, points=16, dropout=0.0
    )
    report = adapt(config, advance=seen.append)
    assert [progress.done for progress in seen if progress.stage == "train"] == list(range(1, 41))
    assert [progress.total for progress in seen if progress.stage == "measure"] == [2, 2]
    trained = load_adapter(config.out)
    run = AdaptRun(config, Encoder("untrained:vitt14", device="cpu", precision="fp32"))
    with torch.no_grad():
        before = torch.stack([run.losses_of(step) for step in range(6)]).mean(dim=0)
        run.adapter.load_state_dict(trained.state_dict())
        after = torch.stack([run.losses_of(step) for step in range(6)]).mean(dim=0)
    assert (after < before - 0.02).all()
    assert report.loss_end == pytest.approx(np.mean([p.loss for p in seen[36:40]]))
    assert not config.out.with_name("a.safetensors.unfinished").exists()


def test_a_resumed_run_equals_a_straight_run_bit_by_bit(photos: Path, tmp_path: Path) -> None:
    common = {"pseudo": 0.3, "flips": True}
    straight = adapt(settings(photos, tmp_path / "straight.safetensors", **common))
    config = settings(photos, tmp_path / "resumed.safetensors", **common)
    for stop_after in (3, 2):
        steps = itertools.count(1)
        with pytest.raises(KeyboardInterrupt):
            adapt(config, stop=lambda steps=steps, last=stop_after: next(steps) == last)
        assert not config.out.exists()
    assert plan_adapt(config).done == 5
    resumed = adapt(config)
    assert (straight.resumed_at, resumed.resumed_at) == (0, 5)
    one, other = load_adapter(straight.out), load_adapter(resumed.out)
    assert one.digest == other.digest
    assert one.card == other.card
    assert straight.measures == resumed.measures
    assert (straight.loss_start, straight.loss_end) == (resumed.loss_start, resumed.loss_end)
    changed = adapt(settings(photos, tmp_path / "other.safetensors", seed=1, **common))
    assert load_adapter(changed.out).digest != one.digest


def test_a_run_stopped_while_it_measures_need_not_be_trained_again(photos: Path, tmp_path: Path) -> None:
    config = settings(photos, tmp_path / "a.safetensors", steps=2)
    asked = itertools.count(1)
    with pytest.raises(KeyboardInterrupt):
        adapt(config, stop=lambda: next(asked) == 3)
    assert adapt(config).resumed_at == 2


def test_an_unfinished_run_of_other_settings_is_not_mixed_in(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        adapt(settings(photos, out), stop=lambda: True)
    with pytest.raises(
        ArgumentError, match=r"other settings: batch was 2, is 3; lr was 0.00125, is 0.1"
    ) as caught:
        adapt(settings(photos, out, batch=3, lr=0.1))
    assert "overwrite=true" in str(caught.value.hint)
    with pytest.raises(ArgumentError, match="the photos differ"):
        adapt(settings(photos / "things", out))
    assert adapt(settings(photos, out, steps=1, overwrite=True)).resumed_at == 0
    unfinished = tmp_path / "b.safetensors.unfinished"
    unfinished.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(WeightsError, match="unfinished") as caught_damage:
        adapt(settings(photos, tmp_path / "b.safetensors"))
    assert "delete" in str(caught_damage.value.hint)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_adapter(
    photos: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = AdaptRun(settings(photos, tmp_path / "a.safetensors"), encoder)
    before = run.adapter.digest
    monkeypatch.setattr(AdaptRun, "losses_of", lambda self, step: torch.tensor([torch.nan, 1.0]))
    with pytest.raises(KitError, match="the loss is nan at step 0") as caught:
        run.update()
    assert "lower lr" in str(caught.value.hint)
    assert (run.adapter.digest, run.step) == (before, 0)


def plant(adapter: Adapter) -> None:
    """Make all patches look the same."""
    with torch.no_grad():
        adapter.bottleneck_layers[0][0].conv3.norm.bias.fill_(1e6)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """Return keypoints of a photo in itself, at centres of patches; one of four is wrong by 70 pixels."""
    folder = tmp_path / "marked" / "images"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        write_image(folder / name, data.coffee()[:168, :168].copy())
    points = [[48.5, 48.5], [104.5, 118.5], [76.5, 34.5], [132.5, 62.5]]
    moved = [*points[:3], [132.5, 62.5 + 70.0]]
    box = [10, 10, 410, 60]
    entry = {"src": "a.png", "trg": "b.png", "src_kps": points, "trg_kps": moved, "trg_bbox": box}
    (folder.parent / "pairs.json").write_text(json.dumps([entry]))
    return folder.parent / "pairs.json"


def test_keypoints_count_as_correct_within_a_share_of_the_box(marked: Path, encoder: Encoder) -> None:
    pairs = read_marked(marked)
    judge, nothing = Judge(encoder, Adapter(64), 168), PhotoStream((), 140, 5)
    found = measure(judge, nothing, pairs)
    assert [(one.name, one.alpha, one.points) for one in found] == [("pairs", 0.1, 4), ("pairs", 0.05, 4)]
    assert [one.raw for one in found] == [0.75, 0.75]  # 70 px are more than 0.1 of 400
    wide = [replace(pairs[0], box1=(0.0, 0.0, 1000.0, 60.0))]
    assert [one.raw for one in measure(judge, nothing, wide)] == [1.0, 0.75]  # less than 0.1 of 1000


def test_without_a_box_the_length_is_that_of_the_image_and_points_beside_it_do_not_count(
    marked: Path, encoder: Encoder
) -> None:
    (pair,) = read_marked(marked)
    points = np.concatenate([pair.keypoints0, [[200.0, 10.0]]]).astype(np.float32)
    judge = Judge(encoder, Adapter(64), 168)
    shares = judge.errors(pair.path0, pair.path1, points, points)
    pixels = judge.errors(pair.path0, pair.path1, points, points, length=1.0)
    assert shares.shape == (2, 4)
    np.testing.assert_allclose(shares * 168, pixels, rtol=1e-5)


def test_an_adapter_that_changes_nothing_measures_as_raw_and_a_planted_bad_one_loses(
    photos: Path, marked: Path, encoder: Encoder
) -> None:
    held_out = PhotoStream(tuple(sorted(photos.rglob("*.png"))[:3]), 140, 5)

    class Unchanged(Adapter):
        def forward(self, field: torch.Tensor) -> torch.Tensor:
            return field

    same, bad = Unchanged(64, card=AdapterCard(norm=True)), Adapter(64)
    plant(bad)
    found = measure(Judge(encoder, same, 112), held_out, read_marked(marked))
    assert [one.name for one in found[::2]] == ["warped", "mirrored", "pairs"]
    assert [one.points for one in found[::2]] == [96, 96, 4]
    assert all(one.raw == one.adapted and not one.lost for one in found)
    found = measure(Judge(encoder, bad, 112), held_out, read_marked(marked))
    assert all(one.lost and one.adapted < 0.5 for one in found if one.name == "pairs")


def test_a_planted_bad_adapter_is_written_as_not_recommended(
    photos: Path, marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(run: AdaptRun) -> float:
        plant(run.adapter)
        run.step += 1
        run.losses.append(1.0)
        return 1.0

    monkeypatch.setattr(AdaptRun, "update", spoil)
    config = settings(photos, tmp_path / "a.safetensors", steps=2, holdout_pairs=marked)
    report = adapt(config)
    assert not report.recommended
    assert [found.lost for found in report.measures if found.name == "pairs"] == [True, True]
    read = load_adapter(config.out)
    assert not read.recommended
    assert read.card.report["measures"] == report.to_json()["measures"]
    assert (read.card.model, read.card.layer, read.card.norm) == ("untrained:vits14", -1, False)


def test_marked_photos_are_never_learned_under_any_name(
    photos: Path, marked: Path, encoder: Encoder, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    for path in [*photos.rglob("*.png"), marked.parent / "images" / "a.png"]:
        (folder / f"x-{path.name}").write_bytes(path.read_bytes())
    run = AdaptRun(settings(folder, tmp_path / "a.safetensors", holdout_pairs=marked), encoder)
    assert "x-a.png" not in {path.name for path in (*run.training.paths, *run.held_out.paths)}
    assert len(run.training.paths) == 9


def test_pairs_without_keypoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text("[]")
    with pytest.raises(ArgumentError, match="holds no keypoints"):
        read_marked(tmp_path / "pairs.json")


def test_what_cannot_be_written_or_cut_is_refused_before_any_work(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.safetensors").touch()
    for out, said in (
        ("a.pth", "cannot write an adapter"),
        ("taken.safetensors", "exists already"),
        ("no/a.safetensors", "there is no folder"),
    ):
        with pytest.raises(ArgumentError, match=said):
            adapt(settings(photos, tmp_path / out))
    with pytest.raises(ArgumentError, match="cannot be cut into patches of 14"):
        adapt(settings(photos, tmp_path / "a.safetensors", size=60))
