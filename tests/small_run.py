"""Settings of a run that takes a second: a network of 30,000 numbers on images of 16 pixels."""

import json
from pathlib import Path
from typing import Any

from dinov2kit.train.train_config import TrainConfig

SMALL: dict[str, Any] = {
    "data": "drawn-shapes:64",
    "model": "vitn4",
    "steps": 10,
    "batch": 8,
    "log_every": 5,
    "device": "cpu",
    "crops": {"global_size": 16, "local_size": 8, "local_count": 2},
    "loss": {
        "prototypes": 32,
        "ibot_prototypes": 32,
        "hidden": 24,
        "bottleneck": 16,
        "ibot_bottleneck": 16,
        "koleo_distributed": True,
    },
    "optim": {"lr": 1e-2, "lr_rule": "none", "warmup": 2, "freeze_last_layer": 1},
    "teacher": {"momentum": [0.9, 1.0], "temperature": [0.04, 0.07]},
    "reading": {"workers": 0},
    "scale": {"precision": "fp32"},
    "eval": {"holdout": 8, "every": 5},
    "checkpoint": {"every": 5},
}


def small_config(out: Path | str, **changes: Any) -> TrainConfig:
    """Return the settings; a group that is given changes what it names."""
    settings = {**SMALL, "out": str(out)}
    for name, value in changes.items():
        settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    return TrainConfig.model_validate_json(json.dumps(settings))
