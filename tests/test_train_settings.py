"""Layers of settings and their reasons, rules for what is left open, and the settings kept with a run."""

from pathlib import Path

import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.train.resolved import Resolved, flat_settings
from dinov2kit.train.run_config import differences, read_run_config, write_run_config
from dinov2kit.train.train_config import TrainConfig
from dinov2kit.train.train_settings import given, read_train_settings, settle

NEEDED = ("data=photos", "out=runs/a")


def read(*arguments: str) -> Resolved:
    return read_train_settings([*NEEDED, *arguments])


def settled(images: int, *arguments: str) -> Resolved:
    return settle(read(*arguments), images=images)


def refusal(*arguments: str) -> ArgumentError:
    with pytest.raises(ArgumentError) as caught:
        read(*arguments)
    return caught.value


def test_each_value_is_that_of_the_highest_layer_and_says_which(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: tiny\nbatch: 32\noptim:\n  clip: 1e-1\n  lr: 5e-3\n")
    resolved = read(f"config={file}", "optim.lr=1e-3")
    wanted = {
        "optim.lr": (1e-3, "given"),
        "optim.clip": (0.1, str(file)),
        "batch": (32, str(file)),
        "preset": ("tiny", str(file)),
        "crops.global_size": (24, "preset tiny"),
        "optim.betas": ((0.9, 0.999), "default"),
    }
    flat = flat_settings(resolved.config)
    assert {key: (flat[key], resolved.reasons[key]) for key in wanted} == wanted
    assert list(resolved.reasons) == list(flat)


def test_a_length_of_the_run_replaces_a_length_of_another_kind() -> None:
    tiny = read("preset=tiny").config
    assert (tiny.images, tiny.steps) == (36_000, None)
    mine = read("preset=tiny", "steps=10").config
    assert (mine.images, mine.steps) == (None, 10)
    assert "one length of the run, not epochs=2 and hours=3" in refusal("epochs=2", "hours=3").message


def test_in_a_shared_head_patch_tokens_follow_what_is_said_of_class_tokens() -> None:
    resolved = read("loss.prototypes=4096", "loss.bottleneck=64")
    assert (resolved.config.loss.ibot_prototypes, resolved.config.loss.ibot_bottleneck) == (4096, 64)
    assert resolved.reasons["loss.ibot_prototypes"] == "rule: the head is shared"
    apart = read("loss.prototypes=4096", "loss.shared_head=false").config
    assert apart.loss.ibot_prototypes == 65536
    assert read("loss.prototypes=4096", "preset=vitl14").config.loss.ibot_prototypes == 131072
    both = refusal("loss.prototypes=4096", "loss.ibot_prototypes=8192")
    assert both.message.startswith("settings of loss do not agree; wanted equal prototypes")


@pytest.mark.parametrize(
    ("argument", "message", "hint"),
    [
        ("epoch=3", "unknown setting 'epoch'", "did you mean epochs?"),
        ("lr=3", "unknown setting 'lr'", "did you mean optim.lr?"),
        ("optim.warmup=2.5", "optim.warmup is '2.5'; wanted a share of the run from 0.0 to 1.0, or", ""),
        ("teacher.momentum=[.9]", "teacher.momentum is '[.9]'; wanted more values", ""),
        ("batch=many", "batch is 'many'; wanted a whole number", ""),
        ("preset=larg", "unknown preset 'larg'", "presets are"),
        ("config=none.yaml", "cannot read none.yaml", ""),
        ("qqq=1", "unknown setting 'qqq'", "optim.*, distill.*, scale.*"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(argument: str, message: str, hint: str) -> None:
    error = refusal(argument)
    assert message in error.message
    assert hint in str(error.hint)


def test_faults_in_a_file_are_told_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("batch: 32\noptim:\n  lrr: 5e-3\n")
    error = refusal(f"config={file}")
    assert (error.message, error.hint) == (
        f"unknown setting 'optim.lrr' ({file}, line 3)",
        "did you mean optim.lr?",
    )
    file.write_text("optim:\n  lr: fast\n")
    assert refusal(f"config={file}").message == f"optim.lr is 'fast' ({file}, line 2); wanted a number"


def test_settings_made_in_python_count_as_given_where_they_were_set() -> None:
    config = TrainConfig(data="a", out="b", preset="tiny", batch=8, optim={"lr": 1e-4})
    resolved = given(config)
    assert (resolved.config.batch, resolved.config.optim.lr) == (8, 1e-4)
    assert (resolved.config.crops.global_size, resolved.config.images) == (24, 36_000)
    reasons = {key: resolved.reasons[key] for key in ("batch", "optim.lr", "optim.clip", "model")}
    assert reasons == {"batch": "given", "optim.lr": "given", "optim.clip": "default", "model": "preset tiny"}
    short = given(TrainConfig(data="a", out="b", preset="tiny", steps=3)).config
    assert (short.steps, short.images) == (3, None)


@pytest.mark.parametrize(
    ("images", "arguments", "preset"),
    [
        (900, (), "small"),
        (99_999, ("model=vitb14",), "small"),
        (100_000, (), "vits"),
        (100_000, ("model=vitb16",), "vitb"),
        (1_281_167, ("model=vitl16",), "vitl16-short"),
        (14_000_000, ("model=vitl14",), "vitl14"),
        (14_000_000, ("model=vitg14",), "vitg14"),
        (900, ("init=vits14",), "continue"),
        (900, ("preset=vits",), "vits"),
        (900, ("preset=null",), None),
    ],
)
def test_a_run_without_a_preset_gets_one_by_images_and_model(
    images: int, arguments: tuple[str, ...], preset: str | None
) -> None:
    assert settled(images, *arguments).config.preset == preset


def test_drawn_shapes_get_the_tiny_preset() -> None:
    resolved = settle(read_train_settings(["data=drawn-shapes:500", "out=b"]), images=500)
    assert (resolved.config.preset, resolved.reasons["preset"]) == ("tiny", "rule: drawn shapes")
    assert resolved.config.model == "vitn4"


@pytest.mark.parametrize(
    ("images", "batch", "prototypes", "length", "ibot", "drop_path", "momentum"),
    [
        (60, 32, 4096, ("epochs", 300.0), 0.5, 0.0, 0.964413),  # 562 steps: a twentieth of the run
        (3_000, 128, 4096, ("epochs", 300.0), 0.5, 0.0, 0.997155),  # 7,031 steps
        (9_469, 256, 8192, ("steps", 25_000), 1.0, 0.1, 0.999),
        (50_000, 256, 16384, ("epochs", 250.0), 1.0, 0.1, 0.999),
    ],
)
def test_rules_fill_what_nobody_chose_by_the_number_of_images(
    images: int,
    batch: int,
    prototypes: int,
    length: tuple[str, float],
    ibot: float,
    drop_path: float,
    momentum: float,
) -> None:
    resolved = settled(images)
    config = resolved.config
    assert config.batch == batch
    assert config.loss.prototypes == config.loss.ibot_prototypes == prototypes
    assert getattr(config, length[0]) == length[1]
    assert config.loss.ibot == ibot
    assert config.backbone.drop_path == drop_path
    assert config.teacher.momentum == (pytest.approx(momentum, abs=1e-6), 1.0)
    assert resolved.reasons["batch"] == f"rule: {images:,} images"
    assert resolved.reasons[length[0]].startswith(f"rule: {images:,} images")


def test_rules_leave_alone_what_was_given() -> None:
    asked = ("batch=64", "hours=2", "loss.prototypes=2048", "teacher.momentum=[.9, .95]", "loss.ibot=2")
    resolved = settled(3_000, *asked, "backbone.drop_path=.2", "crops.local_size=70")
    flat = flat_settings(resolved.config)
    for key, value in {
        "batch": 64,
        "hours": 2.0,
        "epochs": None,
        "steps": None,
        "loss.prototypes": 2048,
        "teacher.momentum": (0.9, 0.95),
        "loss.ibot": 2.0,
        "backbone.drop_path": 0.2,
        "crops.local_size": 70,
    }.items():
        assert flat[key] == value, key


def test_settling_twice_is_settling_once() -> None:
    for arguments in ((), ("preset=vitl16-short", "batch=64"), ("init=vitb14_reg",), ("hours=1",)):
        once = settled(5_000, *arguments)
        assert settle(once, images=5_000) == once


@pytest.mark.parametrize(
    ("arguments", "momentum", "reason"),
    [
        (("preset=vitl16-short",), 0.992, "preset vitl16-short"),
        (("preset=vitl16-short", "batch=256"), 0.999, "rule: batch 256, 0.992 at 2,048"),
        (("preset=vitl16-short", "batch=4096"), 0.984, "rule: batch 4,096, 0.992 at 2,048"),
        (("preset=continue", "init=vits14", "batch=64"), 0.99975, "rule: batch 64, 0.999 at 256"),
    ],
)
def test_another_batch_moves_the_teacher_as_far_per_image(
    arguments: tuple[str, ...], momentum: float, reason: str
) -> None:
    resolved = settled(50_000, *arguments)
    assert resolved.config.teacher.momentum[0] == pytest.approx(momentum, abs=1e-7)
    assert resolved.reasons["teacher.momentum"] == reason


def test_crops_that_nobody_chose_are_whole_patches() -> None:
    resolved = settled(50_000, "model=vits16")
    assert (resolved.config.crops.global_size, resolved.config.crops.local_size) == (224, 96)
    assert resolved.reasons["crops.local_size"] == "rule: whole patches of 16"


def test_the_model_follows_what_the_run_starts_from(tmp_path: Path) -> None:
    assert settled(900, "init=dinov2_vitb14_reg").config.model == "vitb14_reg"
    assert settled(900, "init=vitl14-reg").config.model == "vitl14_reg"
    assert settled(900, "init=vitl14", "model=vits14").config.model == "vits14"
    earlier = settled(900, "model=vitt14")
    write_run_config(tmp_path, earlier.config, earlier.reasons)
    assert settled(900, f"init={tmp_path}").config.model == "vitt14"


def test_a_run_keeps_its_settings_and_can_be_run_again(tmp_path: Path) -> None:
    resolved = settled(9_469, "optim.warmup=1.0", "eval.every=0.5", "scale.compile=on", "loss.gram_from=2024")
    write_run_config(tmp_path, resolved.config, resolved.reasons)
    assert read_run_config(tmp_path) == resolved.config
    again = settle(read_train_settings([f"config={tmp_path}", "out=runs/b"]), images=123)
    assert again.config == resolved.config.model_copy(update={"out": Path("runs/b")})
    assert again.reasons["batch"] == str(tmp_path / "config.yaml")
    assert again.reasons["out"] == "given"


def test_reasons_are_written_beside_every_value(tmp_path: Path) -> None:
    resolved = settled(9_469, "optim.lr=1e-3")
    write_run_config(tmp_path, resolved.config, resolved.reasons)
    lines = (tmp_path / "resolved.txt").read_text().splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == list(resolved.reasons)
    assert rows["optim.lr"].split()[1:] == ["0.001", "given"]
    assert rows["batch"].endswith("rule: 9,469 images")
    assert "[0.04, 0.2]" in rows["optim.weight_decay"]


def test_a_run_that_overwrote_another_does_not_do_so_again(tmp_path: Path) -> None:
    config = read("overwrite=true").config
    write_run_config(tmp_path, config, {})
    assert config.overwrite
    assert not read_run_config(tmp_path).overwrite


def test_differences_name_what_changes_learning_alone() -> None:
    before = read("steps=100", "optim.lr=4e-3").config
    now = read_train_settings(
        ["data=b", "out=c", "steps=200", "optim.lr=1e-3", "log_every=1", "teacher.momentum=[.9, 1]"]
    ).config
    assert differences(before, now) == [
        "steps was 100, now 200",
        "teacher.momentum was [0.992, 1.0], now [0.9, 1.0]",
        "optim.lr was 0.004, now 0.001",
    ]
    assert differences(before, before) == []


def test_a_run_without_settings_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"cannot read .*config\.yaml"):
        read_run_config(tmp_path)
