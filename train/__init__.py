"""The room where encoders are made: self-supervised training, its runs, and adapters for keypoint matching.

Names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapt_config import AdaptConfig, AdaptPlan, AdaptReport, Progress
    from .adapting import adapt, plan_adapt
    from .curves import draw_curves
    from .exporting import export_run
    from .fitting import distill, fit
    from .held_out import Measure
    from .launching import default_processes, launch
    from .plan import TrainPlan, plan_training
    from .presets import Preset, list_presets
    from .resolved import Resolved
    from .runs import RunFacts, Score, follow_run, list_runs, run_status
    from .settings import read_settings
    from .slurm import SlurmRequest, read_request, submit
    from .teachers import Seen, Teacher, open_teacher
    from .train_config import TrainConfig
    from .train_report import TrainProgress, TrainReport
    from .train_settings import read_distill_settings, read_train_settings

_HOME = {  # public name -> module
    "AdaptConfig": "adapt_config",
    "AdaptPlan": "adapt_config",
    "AdaptReport": "adapt_config",
    "Measure": "held_out",
    "Preset": "presets",
    "Progress": "adapt_config",
    "Resolved": "resolved",
    "RunFacts": "runs",
    "Score": "runs",
    "SlurmRequest": "slurm",
    "Seen": "teachers",
    "Teacher": "teachers",
    "TrainConfig": "train_config",
    "TrainPlan": "plan",
    "TrainProgress": "train_report",
    "TrainReport": "train_report",
    "adapt": "adapting",
    "default_processes": "launching",
    "distill": "fitting",
    "draw_curves": "curves",
    "export_run": "exporting",
    "fit": "fitting",
    "follow_run": "runs",
    "launch": "launching",
    "list_presets": "presets",
    "list_runs": "runs",
    "open_teacher": "teachers",
    "plan_adapt": "adapting",
    "plan_training": "plan",
    "read_distill_settings": "train_settings",
    "read_request": "slurm",
    "read_settings": "settings",
    "read_train_settings": "train_settings",
    "run_status": "runs",
    "submit": "slurm",
}

__all__ = [
    "AdaptConfig",
    "AdaptPlan",
    "AdaptReport",
    "Measure",
    "Preset",
    "Progress",
    "Resolved",
    "RunFacts",
    "Score",
    "Seen",
    "SlurmRequest",
    "Teacher",
    "TrainConfig",
    "TrainPlan",
    "TrainProgress",
    "TrainReport",
    "adapt",
    "default_processes",
    "distill",
    "draw_curves",
    "export_run",
    "fit",
    "follow_run",
    "launch",
    "list_presets",
    "list_runs",
    "open_teacher",
    "plan_adapt",
    "plan_training",
    "read_distill_settings",
    "read_request",
    "read_settings",
    "read_train_settings",
    "run_status",
    "submit",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dinov2kit.train' has no attribute {name!r}")
    return getattr(import_module(f"dinov2kit.train.{_HOME[name]}"), name)
