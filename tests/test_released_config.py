"""Configs of the DINOv2 release become the same run: schedules in steps, heads, batch; dead keys are said."""

from pathlib import Path

import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.train.resolved import Resolved, flat_settings
from dinov2kit.train.schedules import schedule_at
from dinov2kit.train.train_settings import read_train_settings, settle

SHORT = """
dino: {head_n_prototypes: 65536, head_bottleneck_dim: 256}
train:
  batch_size_per_gpu: 64
  dataset_path: ImageNet:split=TRAIN
  saveckp_freq: 20
student: {block_chunks: 4}
"""
LONG = """
dino: {head_n_prototypes: 131072, head_bottleneck_dim: 384}
ibot: {separate_head: true, head_n_prototypes: 131072}
train: {batch_size_per_gpu: 32, OFFICIAL_EPOCH_LENGTH: 1250, centering: sinkhorn_knopp}
student: {arch: vit_large, patch_size: 14, drop_path_rate: 0.4, ffn_layer: swiglufused}
teacher: {momentum_teacher: 0.994}
optim: {epochs: 500, weight_decay_end: 0.2, base_lr: 2.0e-04, warmup_epochs: 80, layerwise_decay: 1.0}
crops: {local_crops_size: 98}
"""


def read(folder: Path, text: str, *arguments: str) -> Resolved:
    (folder / "theirs.yaml").write_text(text)
    return read_train_settings(["data=photos", "out=run", f"config={folder / 'theirs.yaml'}", *arguments])


def refusal(folder: Path, text: str, *arguments: str) -> ArgumentError:
    with pytest.raises(ArgumentError) as caught:
        read(folder, text, *arguments)
    return caught.value


@pytest.mark.parametrize(
    ("text", "gpus", "preset"), [(SHORT, 32, "vitl16-short"), (LONG, 96, "vitl14")], ids=["short", "long"]
)
def test_a_released_file_is_the_run_of_our_preset(text: str, gpus: int, preset: str, tmp_path: Path) -> None:
    theirs = read(tmp_path, text, f"gpus={gpus}").config
    ours = settle(read_train_settings(["data=a", "out=b", f"preset={preset}"]), images=1_281_167).config
    assert (theirs.steps, theirs.batch) == (ours.steps, ours.batch)
    assert theirs.steps is not None
    for step in (0, 1, 1_249, 1_250, 37_499, 100_000, theirs.steps // 2, theirs.steps - 1, theirs.steps):
        assert schedule_at(theirs, step) == schedule_at(ours, step)
    same = ("model", "backbone.drop_path", "crops.local_size", "optim.layer_decay", "optim.clip")
    left, right = flat_settings(theirs), flat_settings(ours)
    for key in (*same, *(key for key in left if key.startswith(("loss.", "masks.", "crops.")))):
        assert left[key] == right[key], key


def test_lengths_are_absolute_steps_of_the_files_epochs(tmp_path: Path) -> None:
    text = "optim: {epochs: 3, warmup_epochs: 1.5, freeze_last_layer_epochs: 1}\n" + (
        "train: {OFFICIAL_EPOCH_LENGTH: 400}\nteacher: {warmup_teacher_temp_epochs: 2}"
    )
    config = read(tmp_path, text, "batch=64").config
    assert config.steps == 1_200
    assert (config.optim.warmup, config.optim.freeze_last_layer) == (600, 400)
    assert config.teacher.temperature_warmup == 800


def test_what_was_given_stands_above_the_file_and_reasons_tell_them_apart(tmp_path: Path) -> None:
    resolved = settle(read(tmp_path, LONG, "optim.lr=1e-3", "epochs=2", "batch=96"), images=800)
    config, reasons = resolved.config, resolved.reasons
    assert (config.optim.lr, config.epochs, config.steps, config.batch) == (1e-3, 2.0, None, 96)
    assert (reasons["optim.lr"], reasons["epochs"]) == ("given", "given")
    assert reasons["teacher.momentum"] == str(tmp_path / "theirs.yaml")
    assert reasons["optim.clip"] == "default of the release"
    assert config.preset is None


def test_the_batch_is_that_of_all_gpus_which_must_be_told(tmp_path: Path) -> None:
    assert read(tmp_path, LONG, "gpus=8").config.batch == 256
    error = refusal(tmp_path, LONG)
    assert "32 images for each GPU, but not how many" in error.message
    assert error.hint == "add gpus=32, or batch=1024 for the images of all"
    assert "gpus is 'many'" in refusal(tmp_path, LONG, "gpus=many").message


def test_dead_keys_are_said_to_be_left_out(tmp_path: Path) -> None:
    (note,) = read(tmp_path, SHORT, "gpus=1").notes
    assert note.endswith(
        "left out, having no counterpart here: train.dataset_path, train.saveckp_freq, student.block_chunks"
    )
    assert read(tmp_path, LONG, "gpus=1").notes == ()


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("optim: {base_lrr: 1e-3}", "unknown setting 'optim.base_lrr'", "did you mean optim.base_lr?"),
        ("optim: {epochs: ten}", "optim.epochs is 'ten'", None),
        ("train: {centering: none}", "wanted 'centering' or 'sinkhorn_knopp'", None),
        ("dino: {head_nlayers: 2}", "dino.head_nlayers is '2'", None),
        ("student: {qkv_bias: false}", "student.qkv_bias is 'false'", None),
        ("schedules: {lr: {start: 0}}", "schedules.lr.start", "remove the section"),
    ],
)
def test_what_is_unknown_or_cannot_be_had_is_refused_with_its_line(
    line: str, message: str, hint: str | None, tmp_path: Path
) -> None:
    error = refusal(tmp_path, f"crops: {{local_crops_size: 98}}\n{line}", "gpus=1")
    assert message in error.message
    assert "line 2" in error.message
    assert hint is None or hint in str(error.hint)


@pytest.mark.parametrize(
    ("text", "batch", "peak"),
    [
        ("optim: {base_lr: 4e-3}", 2048, 0.0056568542),
        ("optim: {base_lr: 5e-4, scaling_rule: linear_wrt_256}", 512, 1e-3),
        ("optim: {lr: 1e-3, scaling_rule: sqrt_wrt_1024}", 2048, 0.0056568542),  # DINOv3: 4 x lr
        ("optim: {lr: 5e-4, scaling_rule: linear_wrt_256}", 512, 1e-3),
        ("optim: {lr: 0.0, base_lr: 4e-3}", 1024, 4e-3),
    ],
)
def test_learning_rates_follow_the_rule_of_the_file(
    text: str, batch: int, peak: float, tmp_path: Path
) -> None:
    config = read(tmp_path, f"{text}\nstudent: {{patch_size: 14}}", f"batch={batch}").config
    assert config.peak_lr == pytest.approx(peak, rel=1e-8)


def test_keys_that_dinov3_shares_are_read(tmp_path: Path) -> None:
    text = "student: {n_storage_tokens: 4}\ndino: {koleo_loss_distributed: true, koleo_topk: 2}"
    config = read(tmp_path, text, "batch=64").config
    assert (config.backbone.registers, config.loss.koleo_distributed, config.loss.koleo_top_k) == (4, True, 2)


def test_gpus_count_nothing_without_a_released_file() -> None:
    with pytest.raises(ArgumentError, match="with a config of the DINOv2 release only"):
        read_train_settings(["data=a", "out=b", "gpus=4"])
