"""The room where encoders are made. In this version: adapters for keypoint matching, and settings.

Names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapt_config import AdaptConfig, AdaptPlan, AdaptReport, Progress
    from .adapting import adapt, plan_adapt
    from .held_out import Measure
    from .settings import read_settings

_HOME = {  # public name -> module
    "AdaptConfig": "adapt_config",
    "AdaptPlan": "adapt_config",
    "AdaptReport": "adapt_config",
    "Measure": "held_out",
    "Progress": "adapt_config",
    "adapt": "adapting",
    "plan_adapt": "adapting",
    "read_settings": "settings",
}

__all__ = [
    "AdaptConfig",
    "AdaptPlan",
    "AdaptReport",
    "Measure",
    "Progress",
    "adapt",
    "plan_adapt",
    "read_settings",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dinov2kit.train' has no attribute {name!r}")
    return getattr(import_module(f"dinov2kit.train.{_HOME[name]}"), name)
