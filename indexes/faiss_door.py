"""The one place where faiss is imported: on first use, once it is known to be there and to be one."""

from __future__ import annotations

import os
import sys
from functools import cache
from types import ModuleType

from dinov2kit.doctor import Finding, installed
from dinov2kit.errors import DependencyError

DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
BLAS_FROM = 1280  # queries * dim per thread from which a BLAS product beats the scan, on faiss 1.15.1


def installed_faiss() -> dict[str, str]:
    """Return the installed distributions that provide the module `faiss`, with their versions."""
    return installed(DISTRIBUTIONS)


@cache
def load_faiss() -> ModuleType:
    """Import faiss and set it up for this machine.

    Raises:
        DependencyError: no distribution provides faiss, or several do and overwrite each other.
    """
    found = installed_faiss()
    if len(found) > 1:
        named = ", ".join(f"{name} {number}" for name, number in found.items())
        raise DependencyError(
            f"{len(found)} packages provide 'faiss' and overwrite each other: {named}",
            hint=f"pip uninstall -y {' '.join(found)} && pip install 'dinov2kit[cpu]'  (or [gpu])",
        )
    if sys.platform == "darwin":  # torch and faiss each bring an OpenMP runtime; two abort the program
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    try:
        import faiss
    except ImportError as error:
        raise DependencyError(
            f"an index needs faiss, which cannot be imported: {error}",
            hint="pip install 'dinov2kit[cpu]', or 'dinov2kit[gpu]' with an NVIDIA card",
        ) from error
    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM * faiss.omp_get_max_threads()
    module: ModuleType = faiss
    return module


def gpu_count() -> int:
    """Return how many GPUs faiss can use; 0 for a build without CUDA."""
    count = getattr(load_faiss(), "get_num_gpus", None)
    return int(count()) if count else 0


def check_faiss() -> Finding:
    """Look at faiss: exactly one distribution must provide it, and it must load."""
    try:
        module = load_faiss()
    except DependencyError as error:
        return Finding("faiss", "failure", error.message, error.hint)
    except Exception as error:  # a torn wheel raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "pip install --force-reinstall faiss-cpu"
        return Finding("faiss", "failure", f"cannot be imported: {reason}", hint)
    named = ", ".join(f"{name} {number}" for name, number in installed_faiss().items())
    cards = gpu_count()
    devices = f"{cards} GPUs" if cards else "CPU"
    detail = f"{named or 'not installed by pip, ' + str(module.__version__)}; {devices}"
    return Finding("faiss", "ok", f"{detail}, {module.omp_get_max_threads()} threads")
