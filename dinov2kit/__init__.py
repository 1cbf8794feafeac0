"""DINOv2 image retrieval and keypoint matching.

Names load on first use, so that `import dinov2kit` costs nothing and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

_here = Path(__file__).parent
if not (_here / "cli").is_dir():  # a checkout: the rooms stand beside this folder, not inside it
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from dinov2kit.draw import draw_matches
    from dinov2kit.encoder import Encoder
    from dinov2kit.errors import (
        ArgumentError,
        DependencyError,
        DeviceError,
        DeviceMemoryError,
        ImageError,
        KitError,
        MatchError,
        PruneRefused,
        StoreCorrupt,
        StoreError,
        StoreLocked,
        StoreMismatch,
        StoreMissing,
        StoreTooNew,
        WeightsError,
    )
    from dinov2kit.features import Features, FeatureSpec
    from dinov2kit.geometry import Geometry, verify
    from dinov2kit.grid import PatchGrid
    from dinov2kit.identity import ModelIdentity
    from dinov2kit.keypoint_scores import pck
    from dinov2kit.matching import Matches, MatchSpec, match
    from dinov2kit.metrics import recall_at_k
    from dinov2kit.weights import list_models

__version__ = "0.1.0"

_HOME = {  # public name -> module; torch loads on first use
    "ArgumentError": "errors",
    "DependencyError": "errors",
    "DeviceError": "errors",
    "DeviceMemoryError": "errors",
    "Encoder": "encoder",
    "FeatureSpec": "features",
    "Features": "features",
    "Geometry": "geometry",
    "ImageError": "errors",
    "KitError": "errors",
    "MatchError": "errors",
    "MatchSpec": "matching",
    "Matches": "matching",
    "ModelIdentity": "identity",
    "PatchGrid": "grid",
    "PruneRefused": "errors",
    "StoreCorrupt": "errors",
    "StoreError": "errors",
    "StoreLocked": "errors",
    "StoreMismatch": "errors",
    "StoreMissing": "errors",
    "StoreTooNew": "errors",
    "WeightsError": "errors",
    "draw_matches": "draw",
    "list_models": "weights",
    "match": "matching",
    "pck": "keypoint_scores",
    "recall_at_k": "metrics",
    "verify": "geometry",
}

__all__ = [
    "ArgumentError",
    "DependencyError",
    "DeviceError",
    "DeviceMemoryError",
    "Encoder",
    "FeatureSpec",
    "Features",
    "Geometry",
    "ImageError",
    "KitError",
    "MatchError",
    "MatchSpec",
    "Matches",
    "ModelIdentity",
    "PatchGrid",
    "PruneRefused",
    "StoreCorrupt",
    "StoreError",
    "StoreLocked",
    "StoreMismatch",
    "StoreMissing",
    "StoreTooNew",
    "WeightsError",
    "draw_matches",
    "list_models",
    "match",
    "pck",
    "recall_at_k",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dinov2kit' has no attribute {name!r}")
    return getattr(import_module(f"dinov2kit.{_HOME[name]}"), name)
