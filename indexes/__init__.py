"""What is kept and found again: the feature store, the faiss index, searching.

Names load on first use: looking for a photo that the index knows needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .export import export_npy, export_parquet
    from .facts import Facts, FileError, list_errors, read_facts
    from .faiss_door import check_faiss
    from .gallery import query_name, thumbnail, write_montage, write_page
    from .index import Hit, Index
    from .locate import find_index
    from .photos import AnnWishes, IndexRun, UpdatePlan, index_photos, plan_photos
    from .plan import AnnPlan, plan_ann
    from .query import Question
    from .repairing import Repair, repair
    from .snapshot import Photo, Snapshot
    from .update import UpdateReport, UpdateRules
    from .upkeep import Compaction, compact
    from .verifying import Check, Verification, verify
    from .walk import WalkRules

_HOME = {  # public name -> module
    "AnnPlan": "plan",
    "AnnWishes": "photos",
    "Check": "verifying",
    "Compaction": "upkeep",
    "Facts": "facts",
    "FileError": "facts",
    "Hit": "index",
    "Index": "index",
    "IndexRun": "photos",
    "Photo": "snapshot",
    "Question": "query",
    "Repair": "repairing",
    "Snapshot": "snapshot",
    "UpdatePlan": "photos",
    "UpdateReport": "update",
    "UpdateRules": "update",
    "Verification": "verifying",
    "WalkRules": "walk",
    "check_faiss": "faiss_door",
    "compact": "upkeep",
    "export_npy": "export",
    "export_parquet": "export",
    "find_index": "locate",
    "index_photos": "photos",
    "list_errors": "facts",
    "plan_ann": "plan",
    "plan_photos": "photos",
    "query_name": "gallery",
    "read_facts": "facts",
    "repair": "repairing",
    "thumbnail": "gallery",
    "verify": "verifying",
    "write_montage": "gallery",
    "write_page": "gallery",
}

__all__ = [
    "AnnPlan",
    "AnnWishes",
    "Check",
    "Compaction",
    "Facts",
    "FileError",
    "Hit",
    "Index",
    "IndexRun",
    "Photo",
    "Question",
    "Repair",
    "Snapshot",
    "UpdatePlan",
    "UpdateReport",
    "UpdateRules",
    "Verification",
    "WalkRules",
    "check_faiss",
    "compact",
    "export_npy",
    "export_parquet",
    "find_index",
    "index_photos",
    "list_errors",
    "plan_ann",
    "plan_photos",
    "query_name",
    "read_facts",
    "repair",
    "thumbnail",
    "verify",
    "write_montage",
    "write_page",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dinov2kit.indexes' has no attribute {name!r}")
    return getattr(import_module(f"dinov2kit.indexes.{_HOME[name]}"), name)
