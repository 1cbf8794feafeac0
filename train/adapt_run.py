"""One training of an adapter: its photos, its state, its steps; saved and taken up again exactly."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from dinov2kit.adapter import Adapter, AdapterCard
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError, DeviceMemoryError, KitError, WeightsError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.files import written_whole
from dinov2kit.images import list_images
from dinov2kit.readout import Field, sample
from dinov2kit.shapes import Image, Keypoints
from dinov2kit.tensor_files import load_tensors

from .adapt_config import AdaptConfig
from .held_out import read_marked
from .losses import gaussian_cross_entropy, info_nce, one_cycle
from .photo_split import PhotoStream, content_digest, split_photos
from .pseudo_pairs import find_partners, label
from .synthetic_pairs import MARGIN, keyed, make_pair

_LARGEST_SCALE = math.log(100)  # of a cosine, as in CLIP
_PSEUDO, _DROPOUT, _MEASURING = 2, 3, 71  # keys and a seed of random numbers


@dataclass(frozen=True)
class Example:
    """Tokens of two views on equal grids, and places that show the same.

    Attributes:
        tokens0: of view 0, row-major.
        tokens1: of view 1.
        cells0: (x, y) in the cell frame of view 0.
        cells1: the same places in that of view 1.
    """

    tokens0: Float32[Tensor, "n_patches dim"]
    tokens1: Float32[Tensor, "n_patches dim"]
    cells0: Float32[Tensor, "n 2"]
    cells1: Float32[Tensor, "n 2"]


class AdaptRun:
    """The state of a training.

    Args:
        config: its settings.
        encoder: the frozen backbone.

    Attributes:
        adapter: what is learned.
        training: the photos to learn from.
        held_out: photos to measure on.
        pairs: marked pairs to measure on.
        step: how many updates are done.
        losses: keypoint loss of each.

    Raises:
        ArgumentError: there are too few photos, or the size does not fit the patches.
        ImageError: a photo cannot be found.
    """

    def __init__(self, config: AdaptConfig, encoder: Encoder) -> None:
        self.config, self.encoder = config, encoder
        self.pairs = read_marked(config.holdout_pairs) if config.holdout_pairs else []
        marked = {path for pair in self.pairs for path in (pair.path0, pair.path1)}
        split = split_photos(
            list_images(config.sources), config.holdout, never=set(map(content_digest, marked))
        )
        side = round(MARGIN * config.size)
        self.training = PhotoStream(split.training, side, config.seed)
        self.held_out = PhotoStream(split.held_out[: config.holdout_most], side, _MEASURING)
        card = AdapterCard(
            layer=config.layer,
            facet=config.facet,
            norm=config.norm,
            model=encoder.name,
            weights_sha256=encoder.identity.weights_sha256,
        )
        self._spec = card.expects(FeatureSpec(size=config.size, resize="squash"))
        grid = self._encode(self.held_out.read(0)[1]).grid  # this image decides the precision in every run
        self.cells = grid.cols
        self.adapter = Adapter(encoder.dim, card=card, seed=config.seed).to(encoder.device)
        self.optimizer = torch.optim.AdamW(
            self.adapter.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.step = 0
        self.losses: list[float] = []
        self._facts = {
            **config.learning(),
            "model": encoder.identity.weights_sha256,
            "precision": encoder.precision,
            "photos": split.digest,
        }

    @property
    def path(self) -> Path:
        """Where the unfinished run is kept."""
        return self.config.out.with_name(self.config.out.name + ".unfinished")

    @cached_property
    def _partners(self) -> list[tuple[int, ...]]:
        return find_partners(self.training.paths, self.config.partners, self.encoder)

    def update(self) -> float:
        """Do one step, and return its keypoint loss.

        Raises:
            KitError: the loss is not finite; the adapter stays as it was.
            DeviceMemoryError: the batch does not fit the device.
        """
        config = self.config
        self.adapter.train()
        for group in self.optimizer.param_groups:
            group["lr"] = one_cycle(self.step / config.steps, config.lr)
        try:
            losses = self.losses_of(self.step)
            sparse, dense = float(losses[0].detach()), float(losses[1].detach())
            if not math.isfinite(sparse + dense):
                raise KitError(
                    f"the loss is {sparse + dense} at step {self.step}",
                    hint=f"use a lower lr than {config.lr:g}",
                )
            self.optimizer.zero_grad()
            torch.autograd.backward(losses.sum())
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"out of memory on {self.encoder.device}: {str(error).splitlines()[0]}",
                hint="use a smaller batch or size",
            ) from error
        self.optimizer.step()
        with torch.no_grad():
            for scale in (self.adapter.logit_scale, self.adapter.self_logit_scale):
                scale.clamp_(max=_LARGEST_SCALE)
        self.step += 1
        self.losses.append(sparse)
        return sparse

    def losses_of(self, step: int) -> Float32[Tensor, " 2"]:
        """Return the two losses, of keypoints and of maps, on the pairs of a step.

        They depend on the step and the adapter alone. That of the maps grows as its targets sharpen.
        """
        batch = self.config.batch
        examples = [self.example(step * batch + number) for number in range(batch)]
        tokens = torch.stack([rows for example in examples for rows in (example.tokens0, example.tokens1)])
        field = tokens.transpose(1, 2).reshape(2 * batch, -1, self.cells, self.cells)
        adapted = self.adapter(self._dropped(field, step)).flatten(2).transpose(1, 2)
        rows = torch.nn.functional.normalize(adapted, dim=2).view(batch, 2, *adapted.shape[1:])
        start, end = self.config.sigma
        sigma = start + (end - start) * step / self.config.steps
        losses = [self._pair_loss(pair, example, sigma) for pair, example in zip(rows, examples, strict=True)]
        return torch.stack(losses).mean(dim=0)

    def example(self, draw: int) -> Example:
        """Return the pair of one draw, from a photo or from two, ready for the adapter."""
        config = self.config
        index, photo = self.training.read(self.training.index(draw))
        if config.pseudo and keyed(config.seed, draw, _PSEUDO).random() < config.pseudo:
            example = self._pseudo(draw, index, photo)
            if example is not None:
                return example
        pair = make_pair(
            photo, config.size, seed=config.seed, index=draw, num=config.points, flips=config.flips
        )
        features = self._encode(pair.view0), self._encode(pair.view1)
        return _example(*features, pair.points0, pair.points1)

    def _pseudo(self, draw: int, index: int, photo: Image) -> Example | None:
        """Return a pair of two photos; None where raw features find too little in common."""
        partners = self._partners[index]
        if not partners:
            return None
        _, other = self.training.read(int(keyed(self.config.seed, draw, _PSEUDO, 1).choice(partners)))
        features = self._encode(photo), self._encode(other)
        points = label(*features, self.config.points)
        return None if points is None else _example(*features, *points)

    def _encode(self, view: Image) -> Features:
        return self.encoder.encode(view, self._spec)

    def _dropped(self, field: Float32[Tensor, "batch dim rows cols"], step: int) -> Tensor:
        """Zero a share of all numbers and scale the others up, as dropout does."""
        share = self.config.dropout
        seed = int(keyed(self.config.seed, step, _DROPOUT).integers(2**62))
        generator = torch.Generator(field.device).manual_seed(seed)
        kept = torch.rand(field.shape, generator=generator, device=field.device) >= share
        return field * kept / (1 - share)

    def _pair_loss(self, rows: Float32[Tensor, "2 n_patches dim"], example: Example, sigma: float) -> Tensor:
        cells = (example.cells0, example.cells1)
        found = [
            sample(Field(view, self.cells, self.cells), place)
            for view, place in zip(rows, cells, strict=True)
        ]
        sparse = info_nce(found[0], found[1], self.adapter.logit_scale)
        dense = [
            gaussian_cross_entropy(
                found[side],
                rows[1 - side],
                cells[1 - side],
                rows=self.cells,
                cols=self.cells,
                sigma=sigma,
                logit_scale=self.adapter.self_logit_scale,
            )
            for side in (0, 1)
        ]
        return torch.stack([sparse, (dense[0] + dense[1]) / 2])

    def save(self) -> None:
        """Write everything that the rest of the run depends on, whole or not at all.

        Raises:
            ArgumentError: the place cannot be written.
        """
        state = {
            "facts": json.dumps(self._facts),
            "step": self.step,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "unreadable": sorted(self.training.unreadable),
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(self.path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def restore(self) -> int:
        """Go on where an unfinished run stopped, if there is one; return how many steps it has done.

        Raises:
            ArgumentError: it has other settings, photos or weights.
            WeightsError: its file is damaged.
        """
        if not self.path.is_file():
            return 0
        way_out = f"delete {self.path}, add overwrite=true, or name another out"
        try:
            state: Mapping[str, Any] = load_tensors(self.path)[0]
        except WeightsError as error:
            raise WeightsError(error.message, hint=way_out) from error
        differences = _differences(json.loads(str(state["facts"])), self._facts)
        if differences and self.config.overwrite:
            return 0
        if differences:
            raise ArgumentError(
                f"{self.path} is an unfinished run of other settings: {'; '.join(differences)}",
                hint=f"finish it with its settings, {way_out}",
            )
        self.adapter.load_state_dict(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"].tolist()
        self.training.unreadable.update(state["unreadable"])
        self.step = int(state["step"])
        return self.step

    def finished(self, report: Mapping[str, object]) -> Adapter:
        """Return the adapter with what was measured of it on its card."""
        self.adapter.card = replace(self.adapter.card, report=report)
        return self.adapter


def _example(features0: Features, features1: Features, points0: Keypoints, points1: Keypoints) -> Example:
    device = features0.patch_tokens.device
    return Example(
        tokens0=features0.patch_tokens.clone(),  # out of inference mode
        tokens1=features1.patch_tokens.clone(),
        cells0=torch.from_numpy(features0.grid.to_cells(points0)).to(device),
        cells1=torch.from_numpy(features1.grid.to_cells(points1)).to(device),
    )


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    digests = {"model": "the weights differ", "photos": "the photos differ"}
    return [digests.get(name, f"{name} was {before.get(name)}, is {now.get(name)}") for name in names]
