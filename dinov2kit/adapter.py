"""A small network over the patch tokens of a frozen backbone, trained so that the same parts look alike.

Its shape and the names of its tensors are those of the published adapters (GeoAware-SC, DIY-SC).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from dinov2kit.blocks import Facet
from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity
from dinov2kit.pairs import LocalEncoder
from dinov2kit.patches import turn_back
from dinov2kit.tensor_files import WANTED as WANTED_BACKBONE
from dinov2kit.tensor_files import load_tensors, save_safetensors

SCHEMA = "dinokit.adapt/1"
WANTED = "wanted an adapter: a file of dinokit adapt, or a published one of one layer (DIY-SC)"

_GROUPS = 32  # of the norms, where it divides the channels
_SHRINKS = 4  # the width in the middle is a fourth of the dim
_START_SCALE = math.log(1 / 0.07)


@dataclass(frozen=True)
class AdapterCard:
    """What an adapter was trained on, and what came of it. The defaults are those of the published ones.

    Attributes:
        layer: block whose tokens it reads, as in `FeatureSpec`.
        facet: what it reads there.
        norm: whether they passed the final norm.
        model: name of the backbone; None where the file does not say.
        weights_sha256: digest of its weights; None where the file does not say.
        report: what `dinokit adapt` measured; empty for others.
    """

    layer: int = -1
    facet: Facet = "token"
    norm: bool = False
    model: str | None = None
    weights_sha256: str | None = None
    report: Mapping[str, object] = field(default_factory=dict)

    def expects(self, spec: FeatureSpec) -> FeatureSpec:
        """Return the spec with the layer, facet and norm that the adapter reads."""
        return replace(spec, layer=self.layer, facet=self.facet, norm=self.norm)

    def check(self, spec: FeatureSpec, patch_size: int) -> None:
        """Refuse tokens other than those that the adapter was trained on.

        Raises:
            ArgumentError: layer, facet or norm differ, patches overlap, or directions were projected out.
        """
        wanted = self.expects(spec)
        differences = [
            f"{name} is {getattr(spec, name)}; the adapter was trained with {getattr(wanted, name)}"
            for name in ("layer", "facet", "norm")
            if getattr(spec, name) != getattr(wanted, name) and not (name == "norm" and spec.facet != "token")
        ]
        if spec.stride not in (0, patch_size):
            differences.append(f"stride is {spec.stride}; the adapter was trained on patches side by side")
        if spec.debias:
            differences.append(f"debias is {spec.debias}; the adapter was trained on whole tokens")
        if differences:
            raise ArgumentError(
                "the adapter does not fit these tokens: " + "; ".join(differences),
                hint=f"wanted --layer {self.layer} --facet {self.facet}"
                + ("" if self.norm else " --prenorm"),
            )


class _NormedConv(nn.Module):
    """A convolution without bias, zero-padded to keep the grid, and the group norm after it."""

    def __init__(self, n_in: int, n_out: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in, side, side))
        self.norm = nn.GroupNorm(math.gcd(_GROUPS, n_out), n_out)

    def forward(self, x: Float[Tensor, "batch n_in rows cols"]) -> Float[Tensor, "batch n_out rows cols"]:
        """Convolve, then normalise."""
        convolved = nn.functional.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        normed: Tensor = self.norm(convolved)
        return normed


class _Bottleneck(nn.Module):
    """The residual bottleneck: narrow, look at the neighbours, widen, add."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // _SHRINKS
        self.conv1 = _NormedConv(dim, hidden, 1)
        self.conv2 = _NormedConv(hidden, hidden, 3)
        self.conv3 = _NormedConv(hidden, dim, 1)

    def forward(self, x: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch dim rows cols"]:
        """Return relu(x + the branch)."""
        return torch.relu(x + self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x))))))


class Adapter(nn.Module):
    """y = relu(x + GN(conv1x1(relu(GN(conv3x3(relu(GN(conv1x1 x)))))))), over the grid of one image's tokens.

    A new adapter is y = relu(x): the last norm starts from zero. What comes out is never negative.

    Args:
        dim: length of a token, a multiple of 4; the middle is a fourth of it. The norms have 32 groups, or as
            many of them as divide the channels evenly (16 for 48 channels).
        card: what it reads; by default as the published adapters: the last block before the final norm.
        seed: of the weights that a new adapter starts from.

    Attributes:
        logit_scale: logarithm of what the cosine of two keypoints is multiplied by in training.
        self_logit_scale: the same for the cosine of a keypoint and all patches of the other image.
        mixing_weights: their softmax weighs the layers; of one layer it is 1.

    Raises:
        ArgumentError: the dim is no multiple of 4.

    Source: Zhang et al., "Telling Left from Right", CVPR 2024 (GeoAware-SC); Dünkel et al., "Do It Yourself:
        Learning Semantic Correspondence from Pseudo-Labels", 2025 (DIY-SC).
    """

    def __init__(self, dim: int, *, card: AdapterCard | None = None, seed: int = 0) -> None:
        super().__init__()
        if dim < _SHRINKS or dim % _SHRINKS:
            raise ArgumentError(f"an adapter has {dim} dims; wanted a multiple of {_SHRINKS}")
        self.dim = dim
        self.card = card or AdapterCard()
        block = _Bottleneck(dim)
        self.bottleneck_layers = nn.ModuleList([nn.Sequential(block)])
        self.mixing_weights = nn.Parameter(torch.ones(1))
        self.logit_scale = nn.Parameter(torch.tensor(_START_SCALE))
        self.self_logit_scale = nn.Parameter(torch.tensor(_START_SCALE))
        generator = torch.Generator().manual_seed(seed)
        for conv in (block.conv1, block.conv2, block.conv3):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        nn.init.zeros_(block.conv3.norm.weight)

    @property
    def recommended(self) -> bool:
        """Whether nothing measured speaks against it: False when it lost to the raw tokens."""
        return self.card.report.get("recommended", True) is not False

    @property
    def digest(self) -> str:
        """SHA-256 of what changes an output: the weights, and what they read."""
        reads = [self.card.layer, self.card.facet, self.card.norm]
        digest = hashlib.sha256(json.dumps(reads).encode())
        for name, tensor in self.state_dict().items():
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).data)
        return digest.hexdigest()

    def forward(self, field: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch dim rows cols"]:
        """Adapt the tokens of images, each laid out on its grid."""
        adapted: Tensor = self.bottleneck_layers[0](field)
        return adapted * torch.softmax(self.mixing_weights, dim=0)[0]

    def adapt(self, features: Features, spec: FeatureSpec) -> Features:
        """Return the features of one image with its patch tokens adapted, as the network saw the image.

        Args:
            features: what `Encoder.encode` returned for `spec`.
            spec: how it was encoded.

        Raises:
            ArgumentError: the tokens are not those that the adapter reads.
        """
        dim = features.patch_tokens.shape[1]
        if dim != self.dim:
            raise ArgumentError(
                f"the adapter reads tokens of {self.dim} dims, not {dim}",
                hint=f"it was trained with {self.card.model or 'another model'}",
            )
        self.card.check(spec, features.grid.patch_size)
        with torch.no_grad():
            rows = self(_laid_out(features.patch_tokens, features.grid, spec))[0].flatten(1).T
        return replace(features, patch_tokens=turn_back(rows.contiguous(), features.grid, spec))


class AdaptedEncoder:
    """An encoder whose patch tokens pass an adapter.

    Args:
        encoder: the model.
        adapter: what was trained on its tokens; it is copied.

    Raises:
        ArgumentError: the adapter belongs to another model.
    """

    def __init__(self, encoder: LocalEncoder, adapter: Adapter) -> None:
        model, card = encoder.identity, adapter.card
        if card.weights_sha256 not in (None, model.weights_sha256):
            raise ArgumentError(
                f"the adapter was trained on the tokens of {card.model}, not of {model.name}",
                hint=f"use --model {card.model}, or train an adapter for {model.name}: dinokit adapt",
            )
        if adapter.dim != model.dim:
            raise ArgumentError(
                f"the adapter reads tokens of {adapter.dim} dims; {model.name} has {model.dim}",
                hint="published adapters belong to dinov2_vitb14",
            )
        self.encoder = encoder
        self.adapter = copy.deepcopy(adapter).eval().requires_grad_(False)
        digest = adapter.digest
        self.identity: ModelIdentity = replace(
            model,
            name=f"{model.name}+adapter-{digest[:8]}",
            weights_sha256=hashlib.sha256(f"{model.weights_sha256}+{digest}".encode()).hexdigest(),
        )

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        """Return the features of one whole image, its patch tokens adapted.

        Args:
            source: the image file.
            spec: which tokens; None: those that the adapter reads, at the default size.

        Raises:
            ImageError: the image cannot be read.
            ArgumentError: the spec asks for other tokens than the adapter reads.
        """
        spec = spec or self.adapter.card.expects(FeatureSpec())
        features = self.encoder.encode(source, spec)
        return self.adapter.to(features.patch_tokens.device).adapt(features, spec)


def load_adapter(path: Path | str) -> Adapter:
    """Read an adapter: our own safetensors file, or a published .pth, whose tokens are those before the norm.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else; the message names the tensors.
    """
    path = Path(path)
    try:
        saved, metadata = load_tensors(path)
    except WeightsError as error:
        hint = WANTED if error.hint == WANTED_BACKBONE else error.hint
        raise WeightsError(error.message, hint=hint) from error
    card = _read_card(path, metadata) if metadata else AdapterCard()
    first = saved.get("bottleneck_layers.0.0.conv1.weight")
    if not isinstance(first, Tensor) or first.ndim != 4 or first.shape[1] % _SHRINKS or not first.shape[1]:
        names = ", ".join(list(saved)[:3]) or "nothing"
        raise WeightsError(
            f"{path} is no adapter: it lacks bottleneck_layers.0.0.conv1.weight; it holds {names}",
            hint=WANTED,
        )
    adapter = Adapter(first.shape[1], card=card)
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    found = {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in saved.items()}
    faults = [f"{name} is missing" for name in shapes if name not in found]
    faults += [f"{name} was not expected" for name in found if name not in shapes]
    faults += [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in shapes.items()
        if name in found and found[name] != shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(f"{path} is no such adapter: {'; '.join(faults[:3])}{more}", hint=WANTED)
    adapter.load_state_dict(saved)
    if not all(bool(tensor.isfinite().all()) for tensor in adapter.state_dict().values()):
        raise WeightsError(f"{path} holds weights that are not finite")
    return adapter.eval().requires_grad_(False)


def save_adapter(adapter: Adapter, path: Path) -> None:
    """Write an adapter and its card as safetensors, whole or not at all.

    Raises:
        ArgumentError: the place cannot be written.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in adapter.state_dict().items()}
    save_safetensors(tensors, path, {"schema": SCHEMA, "card": json.dumps(asdict(adapter.card))})


def _read_card(path: Path, metadata: Mapping[str, str]) -> AdapterCard:
    schema = metadata.get("schema", "")
    if schema != SCHEMA:
        newer = schema.startswith(SCHEMA.partition("/")[0] + "/")
        fault = "was written by a newer dinov2kit" if newer else "is no adapter"
        raise WeightsError(
            f"{path} {fault}: its schema is {schema!r}",
            hint="update dinov2kit" if newer else WANTED,
        )
    try:
        return AdapterCard(**json.loads(metadata["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} has a damaged card in its metadata: {error}") from error


def _laid_out(
    rows: Float32[Tensor, "n_patches dim"], grid: PatchGrid, spec: FeatureSpec
) -> Float32[Tensor, "1 dim _ _"]:
    """Lay the rows of an upright grid out as the network saw them; `turn_back` is the way back."""
    field = rows.T.reshape(1, -1, grid.rows, grid.cols)
    return torch.rot90(field.flip(3) if spec.mirrored else field, spec.turns, (2, 3)).contiguous()
