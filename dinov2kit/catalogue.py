"""The models that have a name: the released backbones, and the small one in this package; where they lie."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import platformdirs

from dinov2kit.errors import WeightsError

RELEASE_URL = "https://dl.fbaipublicfiles.com/dinov2/"
DEFAULT_MODEL = "dinov2_vits14"


@dataclass(frozen=True)
class ModelSpec:
    """A model that is known by name.

    Attributes:
        name: the name in the release, for instance "dinov2_vits14_reg"; or that of the model in this package.
        architecture: the name of its shape, for instance "vits14_reg".
        parameters: how many numbers the weights are.
        remote: where the file is, relative to the base URL; "" for the model in this package.
        file: where the file lies on this machine; None when it is not here.
    """

    name: str
    architecture: str
    parameters: int
    remote: str
    file: Path | None = None

    @property
    def file_name(self) -> str:
        """The name of the weight file, in the release and on this machine."""
        return self.remote.rpartition("/")[2] or f"{self.name}.safetensors"

    @property
    def shipped(self) -> bool:
        """Whether its weights lie in this package."""
        return not self.remote

    @property
    def nbytes(self) -> int:
        """Approximate size of the weight file: four bytes for each parameter, two in this package."""
        return (2 if self.shipped else 4) * self.parameters

    def url(self, base_url: str | None = None) -> str:
        """Return the full address; the base is `base_url`, else `$DINOKIT_WEIGHTS_URL`, else the release."""
        base = base_url or os.environ.get("DINOKIT_WEIGHTS_URL") or RELEASE_URL
        return f"{base.rstrip('/')}/{self.remote}"


def _released(letter: str, parameters: int, registers: int) -> ModelSpec:
    folder = f"dinov2_vit{letter}14"  # also for the models with registers
    return ModelSpec(
        name=folder + ("_reg" if registers else ""),
        architecture=f"vit{letter}14" + ("_reg" if registers else ""),
        parameters=parameters,
        remote=f"{folder}/{folder}{'_reg4' if registers else ''}_pretrain.pth",
    )


CATALOGUE: tuple[ModelSpec, ...] = (
    _released("s", 22_056_576, 0),
    _released("b", 86_580_480, 0),
    _released("l", 304_368_640, 0),
    _released("g", 1_136_480_768, 0),
    _released("s", 22_058_112, 4),
    _released("b", 86_583_552, 4),
    _released("l", 304_372_736, 4),
    _released("g", 1_136_486_912, 4),
)

SHIPPED = ModelSpec("dinokit_vitt14", "vitt14", 5_476_992, "")

_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


def find_model(name: str) -> ModelSpec:
    """Return the model that a name means.

    Args:
        name: the name in the release ("dinov2_vitb14_reg"), a short form ("vitb14", "vitb14-reg"),
            "dinokit_vitt14" or "vitt14" for the small model in this package, or the name that the Hugging
            Face hub ("facebook/dinov2-with-registers-base") or timm ("vit_base_patch14_reg4_dinov2.lvd142m")
            gives to the same weights.

    Raises:
        WeightsError: there is no such model; the hint has the nearest names.
    """
    wanted = _plain(name)
    known = {alias: spec for spec in (*CATALOGUE, SHIPPED) for alias in _aliases(spec)}
    if wanted in known:
        return known[wanted]
    near = dict.fromkeys(known[alias].name for alias in get_close_matches(wanted, known, n=8, cutoff=0.7))
    nearest = "did you mean " + " or ".join(list(near)[:3]) + "? " if near else ""
    raise WeightsError(
        f"no released model is called {name!r}",
        hint=f'{nearest}"dinokit models list" has all names; a weight file is given by its path',
    )


def list_models() -> list[ModelSpec]:
    """Return the model in this package and all released ones, each with its file where it is here."""
    return [replace(spec, file=cached_file(spec)) for spec in (SHIPPED, *CATALOGUE)]


def cached_file(spec: ModelSpec) -> Path | None:
    """Return where the weights of a model lie on this machine, or None."""
    folder = Path(__file__).parent if spec.shipped else weights_folder()
    path = folder / spec.file_name
    return path if path.is_file() else None


def weights_folder() -> Path:
    """Return the folder of downloaded weights."""
    return data_folder() / "weights"


def data_folder() -> Path:
    """Return where this project keeps things of the user: `$DINOKIT_HOME`, else a folder of the platform."""
    home = os.environ.get("DINOKIT_HOME")
    return Path(home).expanduser() if home else platformdirs.user_data_path("dinokit", appauthor=False)


def is_offline() -> bool:
    """Say whether `$DINOKIT_OFFLINE` forbids the network."""
    return os.environ.get("DINOKIT_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def _plain(name: str) -> str:
    """Reduce the spellings of a name to one."""
    plain = name.strip().lower().replace("-", "_")
    for prefix in ("facebook/", "timm/"):
        plain = plain.removeprefix(prefix)
    for suffix in (".lvd142m", "_pretrain"):
        plain = plain.removesuffix(suffix)
    return plain.replace("_reg4", "_reg")


def _aliases(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of a model in plain spelling."""
    if spec.shipped:
        return spec.name, spec.architecture
    size = _SIZES[spec.architecture[3]]
    registers = spec.name.endswith("_reg")
    return (
        spec.name,
        spec.architecture,
        f"dinov2_with_registers_{size}" if registers else f"dinov2_{size}",
        f"vit_{size}_patch14_reg_dinov2" if registers else f"vit_{size}_patch14_dinov2",
    )
