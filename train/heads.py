"""The head of a network: an MLP, then cosines with learned prototypes.

The prototypes can be had by themselves, so that a loss can compare rows with them chunk by chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor, nn

from dinov2kit.errors import check_choice

NORMS = ("weight", "plain")


class ProjectionHead(nn.Module):
    """Compare tokens with prototypes: three linear layers, L2 norm, one linear layer without bias.

    Norms and quotients are computed in fp32 at least, whatever the weights are.

    Args:
        dim: width of a token.
        prototypes: how many.
        hidden: width of the two hidden layers.
        bottleneck: width of what is compared.
        norm: "weight" gives every prototype a direction `weight_v` and a length `weight_g` (DINOv2); "plain"
            learns prototypes as they are (DINOv3).

    Raises:
        ArgumentError: there is no such norm.

    Source: `DINOHead` of the released code of Oquab et al., "DINOv2", 2023; weight norm: Salimans and Kingma,
        2016, equation 2. The names of weights are the released ones.
    """

    def __init__(
        self, dim: int, prototypes: int, *, hidden: int = 2048, bottleneck: int = 256, norm: str = "weight"
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last_layer = _LastLayer(prototypes, bottleneck, norm=norm)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights as training from scratch does.

        Args:
            generator: where the random numbers come from; None for the one of torch.
        """
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)
        self.last_layer.init_weights(generator)

    def embed(self, tokens: Float[Tensor, "n dim"]) -> Float[Tensor, "n bottleneck"]:
        """Return what is compared with the prototypes: one row of length 1 per token.

        A row that the MLP makes zero stays zero.
        """
        rows = self.mlp(tokens)
        return functional.normalize(rows.to(_wide(rows)), dim=1, eps=1e-12)

    def prototypes(self) -> Float[Tensor, "k bottleneck"]:
        """Return the prototypes as they are used, with the weight norm applied."""
        prototypes: Tensor = self.last_layer()
        return prototypes

    def project(
        self, tokens: Float[Tensor, "n dim"]
    ) -> tuple[Float[Tensor, "n bottleneck"], Float[Tensor, "k bottleneck"]]:
        """Return the rows of tokens and the prototypes, of which `forward` is the product."""
        return self.embed(tokens), self.prototypes()

    def forward(self, tokens: Float[Tensor, "n dim"]) -> Float[Tensor, "n k"]:
        """Return the logits of tokens, one per prototype."""
        rows, prototypes = self.project(tokens)
        return rows @ prototypes.T


class _LastLayer(nn.Module):
    """Hold the prototypes under the released names."""

    def __init__(self, prototypes: int, bottleneck: int, *, norm: str) -> None:
        super().__init__()
        self.norm = norm
        if norm == "weight":
            self.weight_g = nn.Parameter(torch.empty(prototypes, 1))
            self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck))
        else:
            self.weight = nn.Parameter(torch.empty(prototypes, bottleneck))

    def init_weights(self, generator: torch.Generator | None) -> None:
        if self.norm == "weight":
            nn.init.ones_(self.weight_g)
            bound = self.weight_v.shape[1] ** -0.5  # torch's own for a linear layer
            nn.init.uniform_(self.weight_v, -bound, bound, generator=generator)
        else:
            nn.init.trunc_normal_(self.weight, std=0.02, generator=generator)

    def forward(self) -> Float[Tensor, "k bottleneck"]:
        if self.norm == "plain":
            return self.weight.to(_wide(self.weight))
        directions = functional.normalize(self.weight_v.to(_wide(self.weight_v)), dim=1, eps=1e-12)
        return self.weight_g.to(directions.dtype) * directions


def _wide(numbers: Tensor) -> torch.dtype:
    """Return the type to compute in: fp32, or that of the numbers if it is wider."""
    return torch.promote_types(numbers.dtype, torch.float32)
