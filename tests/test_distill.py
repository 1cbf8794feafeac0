"""Students that learn from finished teachers: what is lost on the way, and what is the same by two ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import small_config

from dinov2kit.errors import ArgumentError, ImageError, WeightsError
from dinov2kit.tensor_files import load_tensors
from dinov2kit.train import distill, fit, read_distill_settings
from dinov2kit.train.crops import Box, CropRecipe, View, cut_view
from dinov2kit.train.drawn_shapes import DrawnShapes
from dinov2kit.train.feature_step import feature_losses
from dinov2kit.train.metrics import read_metrics
from dinov2kit.train.networks import build_networks
from dinov2kit.train.order import sample_index
from dinov2kit.train.parallel import World
from dinov2kit.train.projectors import TokenMean, on_grid
from dinov2kit.train.run_checkpoints import find_checkpoints, load_checkpoint
from dinov2kit.train.taught_batches import Taught, TaughtReading
from dinov2kit.train.teacher_features import TeacherFeatures, write_teacher_features
from dinov2kit.train.teachers import Seen
from dinov2kit.train.train_config import TrainConfig
from dinov2kit.train.trainer import Trainer
from dinov2kit.weights import load_model

TEACHER = "untrained:vitn4:1"
HERE = World(torch.device("cpu"))
FEATURES: dict[str, Any] = {
    "preset": "distill-features",
    "distill": {"teacher": TEACHER},
    "crops": {"global_size": 16, "local_size": 8, "local_count": 0},
    "backbone": {"layer_scale": 1.0},
    "teacher": {"momentum": [0.5, 0.9]},
    "optim": {"lr": 1e-3},
}
LOSSES = ("loss", "class_token_distance", "patch_tokens_distance")


def taught_config(out: Path, **changes: Any) -> TrainConfig:
    """Return the settings of a student that guesses features; a group that is given changes what it names."""
    groups = {
        name: {**FEATURES[name], **changes.pop(name, {})}
        for name in FEATURES
        if isinstance(FEATURES[name], dict)
    }
    return small_config(out, **{"preset": FEATURES["preset"], **groups, **changes})


def losses(run: Path) -> list[tuple[float, ...]]:
    """Return what each line of training says of the losses."""
    return [tuple(line[name] for name in LOSSES) for line in read_metrics(run) if line["kind"] == "train"]


def weights_of(run: Path, config: TrainConfig) -> dict[str, torch.Tensor]:
    """Return the tensors of the last checkpoint."""
    trainer = Trainer(config, HERE, precision="fp32")
    (*_, last) = find_checkpoints(run)
    load_checkpoint(last, trainer.networks, trainer.optimizer, world=HERE)
    parts = trainer.networks.parts()
    return {f"{part}.{name}": value for part, module in parts for name, value in module.state_dict().items()}


def test_a_distance_is_one_less_the_cosine_with_the_token_less_its_mean() -> None:
    torch.manual_seed(0)
    config = small_config(
        "unused",
        crops={"global_size": 16, "local_count": 0},
        backbone={"layer_scale": 1.0},
        distill={"teacher": "x", "by": "features", "class_dim": 5, "patch_dim": 7, "patch_tokens": 0.5},
        loss={"koleo": 0.0},
    )
    networks = build_networks(config, HERE, precision="fp32")
    for name, dim in (("class_token", 5), ("patch_tokens", 7)):
        networks.centres[name].mean.copy_(torch.randn(dim))
    crops = torch.randn(3, 3, 16, 16)
    seen = Seen(torch.randn(3, 5), torch.randn(3, 4, 4, 7))
    found = feature_losses(networks, crops, seen, config, HERE, generator=torch.Generator())
    tokens = networks.student["backbone"](crops)
    wanted = {}
    for name, target, projector in (
        ("class_token", seen.class_token, "class_projector"),
        ("patch_tokens", seen.patch_tokens.flatten(1, 2), "patch_projector"),
    ):
        layer = networks.student[projector].layers[0]
        weight, bias = (each.detach().double().numpy() for each in (layer.weight, layer.bias))
        guess = getattr(tokens, name).detach().double().numpy() @ weight.T + bias
        away = target.double().numpy() - networks.centres[name].mean.double().numpy()
        lengths = np.linalg.norm(guess, axis=-1) * np.linalg.norm(away, axis=-1)
        wanted[name] = np.mean(1 - (guess * away).sum(axis=-1) / lengths)
        assert float(found.terms[f"{name}_distance"]) == pytest.approx(wanted[name], abs=1e-6)
    assert found.total.item() == pytest.approx(wanted["class_token"] + 0.5 * wanted["patch_tokens"], abs=1e-6)
    found.total.backward()
    assert all(each.grad is not None for each in networks.student["patch_projector"].parameters())


def test_the_mean_of_tokens_is_that_of_all_steps_however_they_were_cut() -> None:
    steps = torch.randn(4, 6, 3, 5)
    whole, cut = TokenMean(5), TokenMean(5)
    for tokens in steps:
        whole.follow([(tokens,)], None)
        cut.follow([(tokens[:3],), (tokens[3:],)], None)
    torch.testing.assert_close(whole.mean, steps.mean(dim=(0, 1, 2)), atol=1e-6, rtol=0)
    torch.testing.assert_close(cut.mean, whole.mean, atol=1e-6, rtol=0)


def test_a_map_that_rises_evenly_still_rises_evenly_on_another_grid() -> None:
    ramp = torch.arange(8.0).reshape(1, 1, 8, 1).expand(1, 8, 8, 1)
    found = on_grid(ramp, count=16).reshape(4, 4)
    torch.testing.assert_close(found[1:3, 1:3], torch.tensor([[2.5, 4.5], [2.5, 4.5]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(on_grid(ramp, count=64), ramp.reshape(1, 64, 1), atol=0, rtol=0)


def test_a_student_learns_what_its_teacher_says(tmp_path: Path) -> None:
    config = taught_config(tmp_path / "run", steps=60, optim={"lr": 3e-3}, eval={"every": 60})
    report = fit(config)
    first, *_, last = [line for line in read_metrics(report.out) if line["kind"] == "eval"]
    assert abs(first["class_token_cosine"]) < 0.2
    assert last["class_token_cosine"] > first["class_token_cosine"] + 0.3
    assert last["patch_tokens_cosine"] > first["patch_tokens_cosine"] + 0.2
    assert "knn_teacher" in first
    assert load_model(report.out).vit.config.embed_dim == 96


def test_an_export_holds_what_maps_the_student_to_its_teacher(tmp_path: Path) -> None:
    fit(taught_config(tmp_path / "run", steps=2))
    tensors, _ = load_tensors(tmp_path / "run/export/projectors.safetensors")
    kept = weights_of(
        tmp_path / "run", taught_config(tmp_path / "run", steps=2, distill=_settled(tmp_path / "run"))
    )
    for name in ("class_projector.layers.0.weight", "patch_projector.layers.0.bias"):
        assert torch.equal(tensors[name], kept[f"teacher.{name}"])
    assert torch.equal(tensors["class_token.mean"], kept["centres.class_token.mean"])


def _settled(run: Path) -> dict[str, Any]:
    """Return the group `distill` as the run has settled it."""
    from dinov2kit.train.run_config import read_run_config

    return read_run_config(run).distill.model_dump(mode="json")


def test_a_resumed_student_is_the_one_that_was_never_stopped(tmp_path: Path) -> None:
    straight, stopped = (taught_config(tmp_path / name) for name in ("straight", "stopped"))
    fit(straight)
    asked = iter([False] * 4 + [True])
    assert fit(stopped, stop=lambda: next(asked)).step == 5
    assert fit(stopped).resumed_at == 5
    settled = straight.model_copy(update={"distill": type(straight.distill)(**_settled(straight.out))})
    wanted, found = weights_of(straight.out, settled), weights_of(stopped.out, settled)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    assert losses(straight.out) == losses(stopped.out)


def test_a_batch_in_parts_is_the_whole_batch(tmp_path: Path) -> None:
    fit(taught_config(tmp_path / "whole"))
    fit(taught_config(tmp_path / "parts", scale={"precision": "fp32", "micro_batch": 2}))
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), atol=1e-5)


def test_students_side_by_side_have_the_losses_that_they_have_alone(tmp_path: Path) -> None:
    common = {"distill": {"views": 2}, "steps": 10}
    pair = [taught_config(tmp_path / name, model=name, **common) for name in ("vitn4", "vitn8")]
    reports = distill(pair)
    assert [report.state for report in reports] == ["finished", "finished"]
    for config in pair:
        alone = config.model_copy(update={"out": tmp_path / f"{config.model}-alone"})
        fit(alone)
        np.testing.assert_allclose(losses(config.out), losses(alone.out), atol=1e-5)


def test_a_student_that_lags_behind_catches_up(tmp_path: Path) -> None:
    common = {"steps": 10}
    pair = [taught_config(tmp_path / name, model=name, **common) for name in ("vitn4", "vitn8")]
    asked = iter([False] * 4 + [True])
    fit(pair[0], stop=lambda: next(asked))
    reports = distill(pair)
    assert [report.resumed_at for report in reports] == [5, 0]
    fit(pair[0].model_copy(update={"out": tmp_path / "alone"}))
    np.testing.assert_allclose(losses(pair[0].out), losses(tmp_path / "alone"), atol=1e-6)


def test_kept_features_teach_what_the_teacher_would_say(tmp_path: Path) -> None:
    live = taught_config(tmp_path / "live", distill={"views": 2})
    kept = taught_config(tmp_path / "kept", distill={"views": 2, "cache": str(tmp_path / "cache")})
    fit(live)
    fit(kept)
    np.testing.assert_allclose(losses(kept.out), losses(live.out), atol=1e-3)
    files = sorted((tmp_path / "cache").glob("*/*.h5"))
    features = TeacherFeatures.open(files[0].parent)
    assert len(features) == 2 * 64
    before = {file: file.stat().st_mtime_ns for file in files}
    fit(kept.model_copy(update={"out": tmp_path / "again"}))
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert losses(tmp_path / "again") == losses(kept.out)


def test_a_cache_that_is_stopped_goes_on(tmp_path: Path) -> None:
    kept = taught_config(tmp_path / "kept", distill={"views": 2, "cache": str(tmp_path / "cache")})
    report = fit(kept, stop=lambda: True)
    assert (report.state, report.step) == ("stopped", 0) or report.state == "stopped"
    assert fit(kept).state == "finished"


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of self-supervision, which has heads."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    fit(small_config(out, backbone={"layer_scale": 1.0}, steps=4))
    return out


def test_heads_of_a_teacher_are_what_its_student_learns(tmp_path: Path, own_run: Path) -> None:
    config = small_config(tmp_path / "run", distill={"teacher": str(own_run)}, backbone={"layer_scale": 1.0})
    report = fit(config)
    lines = [line for line in read_metrics(report.out) if line["kind"] == "train"]
    assert {"dino_local", "dino_global", "ibot", "koleo", "loss_over_lnk"} <= lines[-1].keys()
    settled = _settled(report.out)
    assert settled["by"] == "prototypes"
    assert settled["digest"] == load_model(own_run).weights_sha256


def test_the_student_of_its_own_average_has_the_losses_of_self_supervision(own_run: Path) -> None:
    """With the same networks as teacher and average, and no masks, only iBOT differs: all patches count."""
    from dinov2kit.train.ssl_step import Views, step_losses
    from dinov2kit.vit import Tokens

    config = small_config("unused", backbone={"layer_scale": 1.0}, loss={"koleo": 0.0}, masks={"share": 0.0})
    networks = build_networks(config, HERE, precision="fp32")
    guided = build_networks(config, HERE, precision="fp32", guide=networks.teacher)
    torch.manual_seed(0)
    views = Views(
        torch.randn(6, 3, 16, 16), torch.randn(6, 3, 8, 8), None, torch.zeros(6, 16, dtype=torch.bool)
    )
    tokens: Tokens = networks.teacher["backbone"](views.global_crops)
    lesson = Seen(tokens.class_token, tokens.patch_tokens.reshape(6, 4, 4, -1))
    plain = step_losses(networks, views, config, HERE, temperature=0.05, generator=torch.Generator())
    unmasked = Views(views.global_crops, views.local_crops, None, None)
    found = step_losses(
        guided, unmasked, config, HERE, temperature=0.05, generator=torch.Generator(), lesson=lesson
    )
    for name in ("dino_local", "dino_global"):
        torch.testing.assert_close(found.terms[name], plain.terms[name], atol=1e-6, rtol=0)
    assert float(plain.terms["ibot"]) == 0
    rows = guided.student["dino_head"](
        guided.student["backbone"](views.global_crops).patch_tokens.flatten(0, 1)
    )
    logits = networks.teacher["dino_head"](tokens.patch_tokens.flatten(0, 1)).double() / 0.05
    shares = (logits - logits.max()).exp().T
    for _ in range(3):
        shares = shares / shares.sum(dim=1, keepdim=True) / len(shares)
        shares = shares / shares.sum(dim=0, keepdim=True) / shares.shape[1]
    targets = (shares * shares.shape[1]).T
    wanted = -(targets * (rows.double() / 0.1).log_softmax(dim=1)).sum(dim=1).mean()
    assert float(found.terms["ibot"]) == pytest.approx(float(wanted), abs=1e-4)


def write_drawn(path: Path, count: int = 64, **changes: Any) -> Path:
    """Write features of drawn shapes that say where the box is: 0.25 to 0.75 of both sides, mirrored."""
    random = np.random.default_rng(0)
    facts = {
        "teacher": "made up",
        "digest": "d",
        "names": [DrawnShapes(64).name(number) for number in range(count)],
        "image": np.arange(count),
        "box": np.tile(np.float32([0.25, 0.25, 0.75, 0.75]), (count, 1)),
        "flip": np.ones(count, bool),
        "class_token": random.normal(size=(count, 5)).astype(np.float32),
        "patch_tokens": random.normal(size=(count, 2, 2, 3)).astype(np.float32),
        **changes,
    }
    write_teacher_features(path, **facts)
    return path


def test_the_student_sees_the_box_that_the_teacher_saw(tmp_path: Path) -> None:
    features = TeacherFeatures.open(write_drawn(tmp_path / "f.h5"))
    images = DrawnShapes(64)
    recipe = CropRecipe(global_size=8, local_count=0)
    reading = TaughtReading(images, recipe, 0, teacher_size=8, taught=Taught.match(features, images))
    batch = reading.read(np.arange(64, dtype=np.int64))
    chosen = sample_index(np.arange(64), 64, seed=0)
    for row, number in enumerate(chosen.tolist()):
        photo = images.read(number)
        side = photo.shape[0]
        part = photo[side // 4 : side - side // 4, side // 4 : side - side // 4][:, ::-1]
        wanted = cut_view(np.ascontiguousarray(part), View(Box(0, 0, *part.shape[1::-1]), False), 8)
        np.testing.assert_array_equal(batch.pixels[row].numpy(), wanted)
        lesson = features.read(number)
        np.testing.assert_array_equal(batch.class_token[row].numpy(), lesson.class_token)
        np.testing.assert_array_equal(batch.patch_tokens[row].numpy(), lesson.patch_tokens)


def test_every_epoch_shows_every_image_once_and_another_view_of_it() -> None:
    images = DrawnShapes(6)
    reading = TaughtReading(images, CropRecipe(global_size=8, local_count=0), 0, teacher_size=8, views=2)
    epochs = [reading.read(np.arange(6 * turn, 6 * turn + 6, dtype=np.int64)) for turn in range(3)]
    views = []
    for turn, batch in enumerate(epochs):
        order = sample_index(np.arange(6 * turn, 6 * turn + 6), 6, seed=0)
        views.append(batch.pixels[torch.from_numpy(np.argsort(order))])
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])


def test_images_that_the_teacher_never_saw_are_left_out(tmp_path: Path) -> None:
    path = write_drawn(tmp_path / "f.h5", 40)
    config = taught_config(tmp_path / "run", distill={"teacher": str(path)}, steps=2)
    fit(config)
    from dinov2kit.train.run_record import read_record

    assert read_record(tmp_path / "run")["images"] == 40 - 8


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"distill": {"teacher": TEACHER, "by": "prototypes"}}, WeightsError, "has no heads"),
        ({"distill": {"teacher": "nowhere/at/all"}}, WeightsError, "nowhere"),
        ({"distill": {"teacher": "untrained:vitn8", "size": 20}}, ArgumentError, "multiples of 8"),
        ({"distill": {"teacher": TEACHER, "class_dim": 7}}, ArgumentError, "class_dim is 7"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        fit(small_config(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_features_of_other_images_are_refused(tmp_path: Path) -> None:
    path = write_drawn(tmp_path / "f.h5", names=[f"other/{number}" for number in range(64)])
    with pytest.raises(ImageError, match="other images"):
        fit(taught_config(tmp_path / "run", distill={"teacher": str(path)}))


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"cache": "c"}, "views with a cache"),
        ({"by": "prototypes", "views": 2}, "no views"),
        ({"class_token": 0.0, "patch_tokens": 0.0}, "above 0"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(group: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small_config("unused", distill={"teacher": TEACHER, **group})


def test_another_teacher_is_another_run(tmp_path: Path) -> None:
    fit(taught_config(tmp_path / "run", steps=2))
    with pytest.raises(ArgumentError, match="other settings"):
        fit(taught_config(tmp_path / "run", steps=2, distill={"teacher": "untrained:vitn4:2"}))


def test_students_and_their_teacher_are_read_from_arguments(tmp_path: Path) -> None:
    arguments = [f"teacher={TEACHER}", "data=drawn-shapes", f"out={tmp_path}"]
    (alone,) = read_distill_settings([*arguments, "student=vitn8"])
    assert (alone.config.model, alone.config.distill.teacher, alone.config.out) == (
        "vitn8",
        TEACHER,
        tmp_path,
    )
    pair = read_distill_settings([*arguments, "student=[vitn4, vitn8]"])
    assert [one.config.out for one in pair] == [tmp_path / "vitn4", tmp_path / "vitn8"]
    with pytest.raises(ArgumentError, match="different names"):
        read_distill_settings([*arguments, "student=[vitn4,vitn4]"])
    with pytest.raises(ArgumentError, match="there is none"):
        read_distill_settings(["data=drawn-shapes", f"out={tmp_path}"])


def test_students_that_see_other_views_do_not_go_together(tmp_path: Path) -> None:
    pair = [taught_config(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    with pytest.raises(ArgumentError, match="share seed"):
        distill(pair)
    same = taught_config(tmp_path / "one")
    with pytest.raises(ArgumentError, match="folder of its own"):
        distill([same, same])


def test_a_second_phase_starts_with_the_projectors_of_the_first(tmp_path: Path) -> None:
    first = taught_config(tmp_path / "first", steps=20, optim={"lr": 3e-3}, eval={"every": 20})
    fit(first)
    second = first.model_copy(update={"out": tmp_path / "second", "init": str(first.out)})
    networks = build_networks(
        second.model_copy(update={"distill": type(second.distill)(**_settled(first.out))}),
        HERE,
        precision="fp32",
    )
    kept, _ = load_tensors(first.out / "export/projectors.safetensors")
    for name in ("class_projector", "patch_projector"):
        for key, value in networks.student[name].state_dict().items():
            assert torch.equal(value, kept[f"{name}.{key}"])
    assert not any("drawn from the seed" in note for note in networks.notes)
