"""What is kept and found again: the feature store, the faiss index, searching.

Names load on first use: looking for a photo that the index knows needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration import Calibration, calibrate, write_calibration
    from .copy_groups import CopyGroup, Duplicates, FoundCopy
    from .curate_report import CurateReport
    from .curate_spec import CurateSpec
    from .curating import curate
    from .dedup_apply import ApplyReport, apply_plan
    from .dedup_log import RunLog, list_runs, open_run
    from .dedup_plan import DedupPlan, read_plan, write_plan
    from .dedup_undo import UndoReport, undo_run
    from .duplicate_page import write_duplicates_page
    from .duplicates import DedupRules, expect_dedup, find_duplicates
    from .export import export_npy, export_parquet
    from .facts import Facts, FileError, list_errors, read_facts
    from .faiss_door import check_faiss
    from .gallery import query_name, thumbnail, write_montage, write_page
    from .gathering import Gathered, check_empty, gather
    from .graph import Edges, all_pairs, components, cross_pairs, expect_cost
    from .graph_search import PairsPlan
    from .hierarchy import Level, build_hierarchy, sample_balanced
    from .importing import Import, import_descriptors
    from .index import Hit, Index
    from .index_eval import evaluate_index
    from .keeper import parse_keep
    from .kmeans import fit_centroids, nearest_centroids
    from .locate import find_index
    from .merging import Merge, merge_indexes
    from .photos import AnnWishes, IndexRun, UpdatePlan, index_photos, plan_photos
    from .plan import AnnPlan, plan_ann
    from .query import Question, read_vectors
    from .ray_engine import RayEngine
    from .related import Related
    from .repairing import Repair, repair
    from .reranking import Reranked, rerank
    from .semantic_dedup import drop_redundant
    from .snapshot import Photo, Snapshot
    from .update import UpdateRules
    from .update_report import UpdateReport
    from .upkeep import Compaction, compact
    from .verifying import Check, Verification, verify
    from .walk import WalkRules

_HOME = {  # public name -> module
    "AnnPlan": "plan",
    "AnnWishes": "photos",
    "ApplyReport": "dedup_apply",
    "Calibration": "calibration",
    "Check": "verifying",
    "Compaction": "upkeep",
    "CopyGroup": "copy_groups",
    "CurateReport": "curate_report",
    "CurateSpec": "curate_spec",
    "DedupPlan": "dedup_plan",
    "DedupRules": "duplicates",
    "Duplicates": "copy_groups",
    "Edges": "graph",
    "Facts": "facts",
    "FileError": "facts",
    "FoundCopy": "copy_groups",
    "Gathered": "gathering",
    "Hit": "index",
    "Import": "importing",
    "Index": "index",
    "IndexRun": "photos",
    "Level": "hierarchy",
    "Merge": "merging",
    "PairsPlan": "graph_search",
    "Photo": "snapshot",
    "Question": "query",
    "RayEngine": "ray_engine",
    "Related": "related",
    "Repair": "repairing",
    "Reranked": "reranking",
    "RunLog": "dedup_log",
    "Snapshot": "snapshot",
    "UndoReport": "dedup_undo",
    "UpdatePlan": "photos",
    "UpdateReport": "update_report",
    "UpdateRules": "update",
    "Verification": "verifying",
    "WalkRules": "walk",
    "all_pairs": "graph",
    "apply_plan": "dedup_apply",
    "build_hierarchy": "hierarchy",
    "calibrate": "calibration",
    "check_empty": "gathering",
    "check_faiss": "faiss_door",
    "compact": "upkeep",
    "components": "graph",
    "cross_pairs": "graph",
    "curate": "curating",
    "drop_redundant": "semantic_dedup",
    "evaluate_index": "index_eval",
    "expect_cost": "graph",
    "expect_dedup": "duplicates",
    "export_npy": "export",
    "export_parquet": "export",
    "find_duplicates": "duplicates",
    "find_index": "locate",
    "fit_centroids": "kmeans",
    "gather": "gathering",
    "import_descriptors": "importing",
    "index_photos": "photos",
    "list_errors": "facts",
    "list_runs": "dedup_log",
    "merge_indexes": "merging",
    "nearest_centroids": "kmeans",
    "open_run": "dedup_log",
    "parse_keep": "keeper",
    "plan_ann": "plan",
    "plan_photos": "photos",
    "query_name": "gallery",
    "read_facts": "facts",
    "read_plan": "dedup_plan",
    "read_vectors": "query",
    "repair": "repairing",
    "rerank": "reranking",
    "sample_balanced": "hierarchy",
    "thumbnail": "gallery",
    "undo_run": "dedup_undo",
    "verify": "verifying",
    "write_calibration": "calibration",
    "write_duplicates_page": "duplicate_page",
    "write_montage": "gallery",
    "write_page": "gallery",
    "write_plan": "dedup_plan",
}

__all__ = [
    "AnnPlan",
    "AnnWishes",
    "ApplyReport",
    "Calibration",
    "Check",
    "Compaction",
    "CopyGroup",
    "CurateReport",
    "CurateSpec",
    "DedupPlan",
    "DedupRules",
    "Duplicates",
    "Edges",
    "Facts",
    "FileError",
    "FoundCopy",
    "Gathered",
    "Hit",
    "Import",
    "Index",
    "IndexRun",
    "Level",
    "Merge",
    "PairsPlan",
    "Photo",
    "Question",
    "RayEngine",
    "Related",
    "Repair",
    "Reranked",
    "RunLog",
    "Snapshot",
    "UndoReport",
    "UpdatePlan",
    "UpdateReport",
    "UpdateRules",
    "Verification",
    "WalkRules",
    "all_pairs",
    "apply_plan",
    "build_hierarchy",
    "calibrate",
    "check_empty",
    "check_faiss",
    "compact",
    "components",
    "cross_pairs",
    "curate",
    "drop_redundant",
    "evaluate_index",
    "expect_cost",
    "expect_dedup",
    "export_npy",
    "export_parquet",
    "find_duplicates",
    "find_index",
    "fit_centroids",
    "gather",
    "import_descriptors",
    "index_photos",
    "list_errors",
    "list_runs",
    "merge_indexes",
    "nearest_centroids",
    "open_run",
    "parse_keep",
    "plan_ann",
    "plan_photos",
    "query_name",
    "read_facts",
    "read_plan",
    "read_vectors",
    "repair",
    "rerank",
    "sample_balanced",
    "thumbnail",
    "undo_run",
    "verify",
    "write_calibration",
    "write_duplicates_page",
    "write_montage",
    "write_page",
    "write_plan",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dinov2kit.indexes' has no attribute {name!r}")
    return getattr(import_module(f"dinov2kit.indexes.{_HOME[name]}"), name)
