"""How well a student guesses its teacher on images that it never learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinov2kit.vit import VisionTransformer

from .colours import finish_crops, no_colours
from .feature_step import cosines, guesses_of, targets_of
from .networks import Networks
from .parallel import World
from .run_setup import Setup
from .ssl_step import arithmetic, normalisation
from .taught_batches import TaughtBatch
from .teachers import Seen

_MOST, _BATCH = 256, 32  # images; of them at once


@dataclass(frozen=True)
class Agreement:
    """Views of images that are held out, and what the teacher says of them.

    Attributes:
        setup: of the run.
        views: micro-batches of pixels, without changes of colour.
        seen: the tokens of the teacher, of each micro-batch, in half precision.
    """

    setup: Setup
    views: Sequence[Tensor]
    seen: Sequence[Seen]

    @torch.no_grad()
    def measure(self, networks: Networks, world: World) -> dict[str, float]:
        """Return the mean cosine between guess and teacher, of class and patch tokens.

        The guess is that of the moving average. All processes do the same work.

        Returns: `class_token_cosine` and, where the teacher has patch tokens, `patch_tokens_cosine`.
        """
        usual, found = normalisation(self.setup.config), dict[str, list[Tensor]]()
        backbone = networks.teacher["backbone"]
        assert isinstance(backbone, VisionTransformer)
        for pixels, half in zip(self.views, self.seen, strict=True):
            colours = no_colours(len(pixels), pixels.shape[3])
            crops = finish_crops(pixels.to(world.device), colours, mean=usual.mean, std=usual.std)
            patches = half.patch_tokens
            seen = Seen(
                half.class_token.to(world.device).float(),
                None if patches is None else patches.to(world.device).float(),
            )
            with arithmetic(world, self.setup.precision):
                tokens = backbone(crops)
                guesses = guesses_of(networks.teacher, tokens)
            targets = targets_of(seen, tokens)
            for name, guess in guesses.items():
                alike = cosines(guess, targets[name], networks.centres[name])
                found.setdefault(name, []).append(alike.flatten(1).mean(dim=1) if alike.ndim > 1 else alike)
        return {f"{name}_cosine": float(torch.cat(rows).mean()) for name, rows in found.items()}


def build_agreement(setup: Setup, world: World) -> Agreement | None:
    """Ask the teacher about held-out images; None where tokens are not compared, or nothing is held out."""
    lessons, held_out = setup.lessons, setup.held_out
    if lessons is None or held_out is None or not setup.config.distill.by_features:
        return None
    reading, views, said = setup.reading(held_out), [], []
    for start in range(0, min(len(held_out), _MOST), _BATCH):
        batch = reading.read(np.arange(start, min(start + _BATCH, len(held_out), _MOST), dtype=np.int64))
        assert isinstance(batch, TaughtBatch)
        seen = lessons.ask(batch, world)
        patches = seen.patch_tokens
        said.append(Seen(seen.class_token.half().cpu(), None if patches is None else patches.half().cpu()))
        views.append(batch.pixels)
    return Agreement(setup, views, said)
