"""What this machine offers the project, and what is wrong with it: one finding for each thing looked at.

Nothing is changed, downloaded or put right. A package that is broken is a finding, never an exception.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "failure"]

OLDEST_PYTHON = (3, 11)
OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
LITTLE_DISK = 2 * 10**9  # bytes; below this a model and an index may not fit
VARIABLES = ("DINOKIT_HOME", "DINOKIT_INDEX", "DINOKIT_MODEL", "DINOKIT_OFFLINE", "DINOKIT_WEIGHTS_URL")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        status: "ok"; "warning": works, but less well than it could; "failure": something cannot work.
        detail: what was found, in one line.
        hint: what the user can do about it, or None.
    """

    name: str
    status: Status
    detail: str
    hint: str | None = None


def examine() -> list[Finding]:
    """Look at all that the core needs: Python, torch, the devices, the codecs, the weights, the settings."""
    return [
        check_python(),
        *check_torch(),
        check_xformers(),
        check_opencv(),
        check_pillow(),
        check_heic(),
        check_weights(),
        check_disk(),
        check_settings(os.environ),
    ]


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return those of some distributions that are installed, with their versions."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_python() -> Finding:
    """Look at the interpreter and the system."""
    version = platform.python_version()
    detail = f"{version}, {platform.system()} {platform.machine()}"
    if tuple(map(int, platform.python_version_tuple()[:2])) < OLDEST_PYTHON:
        return Finding("python", "failure", detail, "use Python 3.11 or newer")
    if platform.system() == "Windows":
        return Finding("python", "failure", detail, "Linux and macOS are supported; WSL works too")
    return Finding("python", "ok", detail)


def check_torch() -> list[Finding]:
    """Look at torch, at the devices it can use, and at how fast they compute bf16."""
    try:
        import torch
    except Exception as error:  # a torn install raises anything
        hint = "install torch again: pip install --force-reinstall torch"
        return [Finding("torch", "failure", f"cannot be imported: {_one_line(error)}", hint)]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    found = [Finding("torch", "ok", f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads")]
    cards = _cards()
    if cards:
        found.append(Finding("device", "ok", "; ".join(cards)))
    elif torch.backends.mps.is_available():
        found.append(Finding("device", "ok", "Apple GPU; used with --device mps"))
    else:
        hint = "the ViT-S models are the ones for a CPU"
        if torch.version.cuda:
            hint += "; if there is an NVIDIA card, see whether nvidia-smi finds its driver"
        found.append(Finding("device", "warning", f"no GPU; {_processors()} CPU cores", hint))
    return [*found, _check_bf16()]


def check_xformers() -> Finding:
    """Say whether xformers is there; without it torch computes the attention, with the same result."""
    found = installed(["xformers"])
    if not found:
        return Finding("xformers", "ok", "not installed; torch computes the attention")
    try:
        from dinov2kit.attention import _xformers_kernel

        usable = _xformers_kernel() is not None
    except Exception:  # whatever it dies of, it cannot be used
        usable = False
    if usable:
        return Finding("xformers", "ok", f"{found['xformers']}, for CUDA devices")
    detail = f"{found['xformers']} cannot be imported, perhaps built for another torch; torch is used instead"
    return Finding(
        "xformers", "warning", detail, "pip uninstall -y xformers, or install its build for this torch"
    )


def check_opencv() -> Finding:
    """Look at OpenCV: one distribution must provide it, for several overwrite each other's files."""
    found = installed(OPENCV)
    named = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        return Finding(
            "opencv",
            "failure",
            f"{len(found)} packages provide 'cv2' and overwrite each other: {named}",
            f"pip uninstall -y {' '.join(found)} && pip install opencv-python-headless",
        )
    try:
        import cv2  # noqa: F401
    except Exception as error:  # a missing system library is an ImportError, a torn wheel anything
        hint = "pip install --force-reinstall opencv-python-headless"
        return Finding("opencv", "failure", f"cannot be imported: {_one_line(error)}", hint)
    return Finding("opencv", "ok", named or "not installed by pip")


def check_pillow() -> Finding:
    """Look at the formats that this build of Pillow decodes."""
    try:
        import PIL
        from PIL import features
    except Exception as error:  # a torn wheel raises anything
        hint = "pip install --force-reinstall pillow"
        return Finding("pillow", "failure", f"cannot be imported: {_one_line(error)}", hint)
    formats = {"JPEG": "jpg", "PNG": "zlib", "WebP": "webp", "AVIF": "avif", "JPEG 2000": "jpg_2000"}
    there = {name: bool(features.check(feature)) for name, feature in formats.items()}
    detail = f"{PIL.__version__}, reads {', '.join(name for name in there if there[name])}"
    missing = [name for name in there if not there[name]]
    if not missing:
        return Finding("pillow", "ok", detail)
    status: Status = "failure" if {"JPEG", "PNG"} & set(missing) else "warning"
    return Finding("pillow", status, f"{detail}; not {', '.join(missing)}", "pip install -U pillow")


def check_heic() -> Finding:
    """Say whether the photos of phones can be read."""
    if importlib.util.find_spec("pillow_heif") is None:
        return Finding("heic", "warning", "HEIC photos are left out", "pip install 'dinov2kit[heic]'")
    version = installed(["pillow-heif"]).get("pillow-heif", "of unknown version")
    return Finding("heic", "ok", f"pillow-heif {version}")


def check_weights() -> Finding:
    """Say which released models are on this machine."""
    from dinov2kit.catalogue import SHIPPED, is_offline, list_models, weights_folder

    here = [spec.name for spec in list_models() if spec.file is not None and not spec.shipped]
    if here:
        return Finding("weights", "ok", f"{', '.join(here)} in {weights_folder()}")
    hint = "pull one with: dinokit models pull vits14"
    if is_offline():
        hint = "DINOKIT_OFFLINE is set: unset it and pull one, or give --model PATH"
    return Finding("weights", "warning", f"only {SHIPPED.name}, which is in this package", hint)


def check_disk() -> Finding:
    """Say where models and indexes go, and how much fits."""
    from dinov2kit.catalogue import data_folder

    folder = data_folder().absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        hint = "name another folder with DINOKIT_HOME"
        return Finding("disk", "failure", f"{folder} cannot be written", hint)
    free = shutil.disk_usage(place).free
    detail = f"{free / 1e9:,.1f} GB free for {folder}"
    if free < LITTLE_DISK:
        return Finding("disk", "warning", detail, "name a folder on a larger disk with DINOKIT_HOME")
    return Finding("disk", "ok", detail)


def check_settings(environment: Mapping[str, str]) -> Finding:
    """List the variables of the environment that change what this project does."""
    set_here = {name: environment[name] for name in sorted(environment) if name.startswith("DINOKIT_")}
    detail = ", ".join(f"{name}={value}" for name, value in set_here.items()) or "no DINOKIT_ variable is set"
    unknown = [name for name in set_here if name not in VARIABLES]
    if unknown:
        hint = f"{', '.join(unknown)} means nothing; known are {', '.join(VARIABLES)}"
        return Finding("settings", "warning", detail, hint)
    index = environment.get("DINOKIT_INDEX")
    if index and not Path(index).expanduser().is_dir():
        return Finding("settings", "warning", detail, f"DINOKIT_INDEX: there is no folder {index} yet")
    return Finding("settings", "ok", detail)


def _cards() -> list[str]:
    """Return name and memory of the CUDA cards that torch can use."""
    import torch

    cards = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(number)
        cards.append(f"cuda:{number} {card.name}, {card.total_memory / 2**30:,.0f} GiB")
    return cards


def _check_bf16() -> Finding:
    import torch

    from dinov2kit.encoder import _choose_device, computes_bf16

    device = _choose_device("auto")
    if computes_bf16(device):
        return Finding("bf16", "ok", f"fast on {device}; taken where it agrees with fp32")
    capability = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else str(device)
    return Finding("bf16", "ok", f"not fast on {device} ({capability}); fp32 is used")


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
