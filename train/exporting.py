"""How a trained model leaves its run: files that other programs read, each loaded back before it counts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dinov2kit.architectures import ViTConfig
from dinov2kit.checkpoints import FORMATS, read_checkpoint, state_digest, write_checkpoint
from dinov2kit.errors import ArgumentError, WeightsError, check_choice
from dinov2kit.files import written_whole
from dinov2kit.normalising import Normalisation, suitable_view, usual_normalisation
from dinov2kit.tensor_files import load_tensors, save_safetensors
from dinov2kit.vit import Tokens, VisionTransformer
from dinov2kit.weights import LoadedModel, convert_model, load_model

from .onnx_files import write_onnx

TEACHER_FILE, HEADS_FILE, CARD_FILE = "teacher.safetensors", "heads.safetensors", "card.json"
PROJECTORS_FILE = "projectors.safetensors"
LAYOUTS = (*FORMATS, "onnx")

_HEADS_SCHEMA = "1"
_CLOSE = 1e-4  # between transformers and ours


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: where the files are.
        weights_sha256: `state_digest` of the backbone.
        nbytes: size of all files together, in bytes.
    """

    folder: Path
    weights_sha256: str
    nbytes: int


def write_export(
    folder: Path,
    *,
    state: Mapping[str, Tensor],
    config: ViTConfig,
    heads: Mapping[str, Tensor],
    card: Mapping[str, object],
    projectors: Mapping[str, Tensor] | None = None,
) -> Export:
    """Write a backbone, its heads and a card; an older export stays until the new one is whole and checked.

    Args:
        folder: gets teacher.safetensors, heads.safetensors, card.json and, where there are projectors,
            projectors.safetensors; and nothing else.
        state: the backbone, in released naming.
        config: its shape.
        heads: tensors of projection heads, named dino_head.* and ibot_head.*.
        card: facts for a person to read, ready for JSON. `mean`, `std` and `image_size` also go into
            teacher.safetensors, so that `Encoder` prepares images as training did.
        projectors: tensors of what guesses the tokens of a teacher, and the means of these.

    Raises:
        ArgumentError: the folder cannot be written, or the card holds what JSON cannot say.
        WeightsError: the state does not fit the config, or was read back otherwise.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    state = {name: tensor.detach().cpu().float() for name, tensor in state.items()}
    heads = {name: tensor.detach().cpu() for name, tensor in heads.items()}
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_checkpoint(state, config, temporary / TEACHER_FILE, metadata=_texts(card, config))
        save_safetensors(heads, temporary / HEADS_FILE, _head_texts(heads))
        if projectors:
            plain = {name: tensor.detach().cpu() for name, tensor in projectors.items()}
            save_safetensors(plain, temporary / PROJECTORS_FILE, {})
        digest = state_digest(state, config)
        facts = {"weights_sha256": digest, "config": asdict(config), "heads": head_shapes(heads), **card}
        _write_card(facts, temporary / CARD_FILE)
        _check_export(temporary, state, config, heads)
        nbytes = sum(path.stat().st_size for path in temporary.iterdir())
        _swap(temporary, folder)
    except OSError as error:
        raise ArgumentError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Export(folder, digest, nbytes)


def export_run(run: Path, *, to: str, out: Path, overwrite: bool = False) -> Path:
    """Write the latest export of a run in another layout, and load it back.

    Args:
        run: folder of the run.
        to: "safetensors", "released", "hf" or "onnx" (class and patch tokens of images of the size that the
            run was trained with, any number at once; needs the packages onnx and onnxscript).
        out: the file to write; for "hf" the folder.
        overwrite: replace what is there.

    Returns: `out`.

    Raises:
        ArgumentError: the layout is unknown or cannot hold this model, or `out` does not fit or is taken.
        WeightsError: the run has no export, it is damaged, or was read back otherwise.
        DependencyError: a package is missing.
    """
    check_choice("layout", to, LAYOUTS)
    if to == "onnx":
        if out.suffix != ".onnx":
            raise ArgumentError(f"{out} is no name for the format onnx; wanted one that ends in .onnx")
        if out.exists() and not overwrite:
            raise ArgumentError(f"{out} exists already", hint="name another place, or say --overwrite")
        model = load_model(run)
        view = suitable_view(model.image_size, model.vit.config.patch_size)
        write_onnx(model.vit, out, image_size=view.crop)
        return out
    model = convert_model(run, out, to=to, overwrite=overwrite)
    if to == "hf":
        _write_preprocessor(model, out)
    _check_same(model.vit.state_dict(), read_checkpoint(out).state, out)
    if to == "hf":
        _check_with_transformers(model.vit, out)
    return out


def read_heads(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, object]]]:
    """Return the tensors of projection heads, and the shape of each head by its name.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("dinov2kit_heads") != _HEADS_SCHEMA:
        raise WeightsError(
            f"{path} holds no projection heads that this version knows",
            hint=f"wanted the {HEADS_FILE} that a run exports",
        )
    state = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    return state, head_shapes(state)


def head_shapes(heads: Mapping[str, Tensor]) -> dict[str, dict[str, object]]:
    """Return what `ProjectionHead` takes to make each of these heads, by its name.

    Raises:
        WeightsError: the tensors are not those of projection heads.
    """
    shapes: dict[str, dict[str, object]] = {}
    for name in dict.fromkeys(key.partition(".")[0] for key in heads):
        norm = "weight" if f"{name}.last_layer.weight_g" in heads else "plain"
        last = "last_layer.weight_v" if norm == "weight" else "last_layer.weight"
        try:
            hidden, dim = heads[f"{name}.mlp.0.weight"].shape
            prototypes, bottleneck = heads[f"{name}.{last}"].shape
        except (KeyError, ValueError) as error:
            raise WeightsError(f"{name} is no projection head: {error}") from error
        shapes[name] = {
            "dim": dim,
            "prototypes": prototypes,
            "hidden": hidden,
            "bottleneck": bottleneck,
            "norm": norm,
        }
    return shapes


def _write_card(facts: Mapping[str, object], path: Path) -> None:
    try:
        text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"the card of an export cannot be written as JSON: {error}") from error
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _texts(card: Mapping[str, object], config: ViTConfig) -> dict[str, str]:
    """Return what teacher.safetensors says of the images that the model knows."""
    texts = {"image_size": str(card["image_size"])} if "image_size" in card else {}
    usual = usual_normalisation(config.in_channels)
    mean, std = (
        tuple(map(float, cast(Sequence[float], card.get(name, preset))))
        for name, preset in (("mean", usual.mean), ("std", usual.std))
    )
    normalisation = Normalisation(mean, std)
    if normalisation.channels != config.in_channels:
        raise ArgumentError(
            f"a mean and std of {normalisation.channels} numbers for a model of {config.in_channels} channels"
        )
    return texts | normalisation.texts()


def _head_texts(heads: Mapping[str, Tensor]) -> dict[str, str]:
    shapes = {name: json.dumps(shape) for name, shape in head_shapes(heads).items()}
    return {"dinov2kit_heads": _HEADS_SCHEMA, **shapes}


def _swap(temporary: Path, folder: Path) -> None:
    """Put a whole folder where an older one is; if that fails, the older one is there again."""
    previous = folder.with_name(f".{folder.name}.previous")
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    try:
        temporary.rename(folder)
    except OSError:
        if previous.exists():
            previous.rename(folder)
        raise
    shutil.rmtree(previous, ignore_errors=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        opened = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _check_export(
    folder: Path, state: Mapping[str, Tensor], config: ViTConfig, heads: Mapping[str, Tensor]
) -> None:
    """Load an export back: the same tensors, and the same tokens of one image."""
    read = read_checkpoint(folder / TEACHER_FILE)
    _check_same(state, read.state, folder / TEACHER_FILE)
    _check_same(heads, read_heads(folder / HEADS_FILE)[0], folder / HEADS_FILE)
    side = 4 * config.patch_size
    image = torch.randn(1, config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    ours = _tokens(VisionTransformer.from_state(config, state), image)
    theirs = _tokens(VisionTransformer.from_state(read.config, read.state), image)
    if not torch.equal(ours.prenorm, theirs.prenorm):
        raise WeightsError(f"{folder / TEACHER_FILE} computes something else than the model it was made from")


def _check_same(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    other = [
        name
        for name in {*wanted, *found}
        if name not in wanted or name not in found or not torch.equal(wanted[name], found[name])
    ]
    if other:
        raise WeightsError(f"{path} was read back otherwise than written: {', '.join(sorted(other)[:3])}")


@torch.inference_mode()
def _tokens(vit: VisionTransformer, images: Tensor) -> Tokens:
    tokens: Tokens = vit(images)
    return tokens


def _write_preprocessor(model: LoadedModel, folder: Path) -> None:
    """Write how transformers must prepare images."""
    view, normalisation = suitable_view(model.image_size, model.vit.config.patch_size), model.normalisation
    facts = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": normalisation.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": view.resize},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": view.crop, "width": view.crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalisation.mean),
        "image_std": list(normalisation.std),
    }
    with written_whole(folder / "preprocessor_config.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _check_with_transformers(vit: VisionTransformer, folder: Path) -> None:
    """Compare with what transformers makes of a folder, where it is installed, on the stored grid."""
    try:
        from transformers import AutoModel
        from transformers.utils import logging as their_logging
    except ImportError:
        return
    talks = their_logging.is_progress_bar_enabled()
    their_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModel.from_pretrained(folder).eval()
    finally:
        if talks:
            their_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    side, config = vit.config.pos_grid * vit.config.patch_size, vit.config
    images = torch.randn(1, config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = model(images).last_hidden_state
    ours = _tokens(vit, images)
    first = 1 + config.num_registers
    apart = max(
        float((theirs[:, 0] - ours.class_token).abs().max()),
        float((theirs[:, first:] - ours.patch_tokens).abs().max()),
    )
    if not apart <= _CLOSE * max(1.0, float(theirs.abs().max())):
        raise WeightsError(f"transformers computes other tokens from {folder}: they differ by {apart:.2g}")
