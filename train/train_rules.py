"""Rules for the settings that nobody has chosen: from the number of images, the model and the batch.

Source: the table of auto rules in this project's notes; estimates from reports of others, not yet from curves
of our own. Each rule leaves its reason, so that a person can see and overrule it.
"""

from __future__ import annotations

import re
from pathlib import Path

from .presets import read_preset
from .resolved import Resolved
from .train_config import BUDGETS, TrainConfig

FEW, MANY, VERY_MANY = 5_000, 100_000, 2_000_000
_RELEASED_BATCH, _RELEASED_MOMENTUM = 2048, 0.992  # of the short released recipe
_DROP_PATH = {"s": 0.1, "b": 0.1, "l": 0.3, "g": 0.4}


def settle(resolved: Resolved, *, images: int) -> Resolved:
    """Choose what is still open, now that the number of images is known.

    Without a preset one is chosen by the number of images and the model. Then rules set the batch, the
    prototypes, the length of the run, stochastic depth and momentum, and fit crops to the patch. Nothing that
    was given or stands in a file is touched. Settling twice changes nothing more.

    Args:
        resolved: the settings.
        images: how many there are to learn from.

    Raises:
        ArgumentError: a preset does not agree with what was given.
    """
    why = f"rule: {images:,} image{'s' if images != 1 else ''}"
    if resolved.open("preset"):
        name, reason = choose_preset(resolved.config, images)
        resolved = apply_preset(resolved, name, f"preset {name}").choose({"preset": name}, reason)
    resolved = _follow_init(resolved)
    resolved = _fit_crops(resolved)
    resolved = _fit_loss(resolved, images, why)
    if resolved.open("batch"):
        batch = 128 if images < FEW else 256 if images < MANY else 1024 if images < VERY_MANY else 2048
        while batch > max(images, 1):
            batch //= 2
        resolved = resolved.choose({"batch": batch}, why)
    if all(getattr(resolved.config, name) is None for name in BUDGETS):
        resolved = resolved.choose(*_length(resolved.config.batch, images, why))
    if resolved.open("backbone.drop_path") and images >= FEW:
        rate = _DROP_PATH.get(_family(resolved.config), 0.0)
        resolved = resolved.choose({"backbone.drop_path": rate}, f"rule: {resolved.config.model}")
    return _fit_momentum(resolved, images)


def choose_preset(config: TrainConfig, images: int) -> tuple[str, str]:
    """Return the preset for a run that names none, and why."""
    why = f"rule: {images:,} images"
    if config.distill.by_features:
        return "distill-features", "rule: tokens of a teacher are guessed"
    if config.distill.by_prototypes:
        return "distill", "rule: the teacher has heads"
    if config.init is not None:
        return "continue", f"rule: it starts from {config.init}"
    if all(str(source).startswith("drawn-shapes") for source in config.sources):
        return "tiny", "rule: drawn shapes"
    if images < MANY:
        return "small", why
    family = _family(config)
    if family in ("l", "g"):
        large = {"l": "vitl14", "g": "vitg14"}[family]
        return large if images >= VERY_MANY else "vitl16-short", f"{why}, {config.model}"
    return "vitb" if family == "b" else "vits", f"{why}, {config.model}"


def apply_preset(resolved: Resolved, name: str, reason: str) -> Resolved:
    """Lay a preset below what somebody chose.

    Raises:
        ArgumentError: there is no such preset, or it does not agree with what was chosen.
    """
    preset = read_preset(name)
    bounded = any(getattr(resolved.config, key) is not None for key in BUDGETS)
    values = {
        key: preset.value(key)
        for key in preset.settings
        if resolved.open(key) and not (bounded and key in BUDGETS)
    }
    return resolved.choose(values, reason)


def _follow_init(resolved: Resolved) -> Resolved:
    """Take the model of what the run starts from, where that can be told from its name."""
    init = resolved.config.init
    if init is None or not resolved.bends("model"):
        return resolved
    found = re.fullmatch(r"(?:dinov2_)?(vit[a-z]\d+(?:[_-]reg\d*)?)", init)
    if found is not None:
        return resolved.choose({"model": found[1].replace("-", "_")}, f"rule: it starts from {init}")
    recorded = Path(init) / "config.yaml"
    if recorded.is_file():
        from .run_config import read_run_config

        return resolved.choose({"model": read_run_config(Path(init)).model}, f"rule: it starts from {init}")
    return resolved


def _fit_crops(resolved: Resolved) -> Resolved:
    """Round the sides of crops to whole patches."""
    found = re.match(r"vit[a-z](\d+)", resolved.config.model)
    patch = int(found[1]) if found else 1
    for key in ("global_size", "local_size"):
        side = getattr(resolved.config.crops, key)
        if resolved.bends(f"crops.{key}") and side % patch:
            whole = max(round(side / patch), 1) * patch
            resolved = resolved.choose({f"crops.{key}": whole}, f"rule: whole patches of {patch}")
    return resolved


def _fit_loss(resolved: Resolved, images: int, why: str) -> Resolved:
    """Choose as many prototypes as the images can fill, and a lighter iBOT loss for few images."""
    keys = ("loss.prototypes", "loss.ibot_prototypes")
    if all(resolved.open(key) for key in keys) and images < MANY:
        count = 4096 if images < FEW else 8192 if images < 4 * FEW else 16384
        resolved = resolved.choose(dict.fromkeys(keys, count), why)
    if resolved.open("loss.ibot") and images < FEW:
        resolved = resolved.choose({"loss.ibot": 0.5}, why)
    return resolved


def _length(batch: int, images: int, why: str) -> tuple[dict[str, object], str]:
    """Return the length of a run that nobody has bounded, and why."""
    if images >= VERY_MANY:
        return {"steps": 625_000}, why
    if images >= MANY:
        return {"epochs": 100.0}, why
    epochs = 300.0 if images < FEW else 250.0
    if images >= FEW and epochs * images < 25_000 * batch:
        return {"steps": 25_000}, f"{why}, at least 25,000 steps"
    return {"epochs": epochs}, why


def _fit_momentum(resolved: Resolved, images: int) -> Resolved:
    """Let a smaller batch move the teacher less in a step, m = 1 - (1 - m0) batch / batch0.

    Of a run that is short the teacher's memory, 1 / (1 - m) steps, is at most a twentieth.
    """
    config, key = resolved.config, "teacher.momentum"
    if not resolved.bends(key):
        return resolved
    start, end = config.teacher.momentum
    steps = _steps(config, images)
    if config.distill.by_features and steps is not None:  # an average that nothing learns from
        shares = [round(min(max(1 - part / max(steps, 1), 0.0), 0.9999), 6) for part in (200, 20)]
        return resolved.choose({key: tuple(shares)}, f"rule: {steps:,} steps")
    if resolved.open(key):
        start, batch = _RELEASED_MOMENTUM, _RELEASED_BATCH
    else:
        base = read_preset(resolved.reasons[key].removeprefix("preset ")).value("batch")
        batch = base if isinstance(base, int) else config.batch
        if batch == config.batch:
            return resolved
    fitted = max(1 - (1 - start) * config.batch / batch, 0.9)
    said = f"rule: batch {config.batch:,}, {start:g} at {batch:,}"
    if resolved.open(key) and steps is not None and fitted > 1 - 20 / max(steps, 40):
        fitted, said = 1 - 20 / max(steps, 40), f"rule: {steps:,} steps"
    return resolved.choose({key: (round(min(fitted, end), 6), end)}, said)


def _steps(config: TrainConfig, images: int) -> int | None:
    """Return the length of the run in steps; None where only time bounds it."""
    if config.steps is not None:
        return config.steps
    seen = config.images if config.epochs is None else config.epochs * images
    return None if seen is None else max(round(seen / config.batch), 1)


def _family(config: TrainConfig) -> str:
    """Return the letter of a model's size."""
    found = re.match(r"vit([a-z])", config.model)
    return found[1] if found else ""
