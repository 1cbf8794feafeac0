"""The transformer block of DINOv2; parameter names are those of the released weights."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor, nn

from dinov2kit.attention import attention, attention_by_group
from dinov2kit.packing import Groups, Kept, Rows, add_kept, take_kept

NORM_EPS = 1e-6

Facet = Literal["token", "query", "key", "value"]


class SelfAttention(nn.Module):
    """Multi-head self-attention; the rows of `qkv` are queries, keys, values, each by head."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, tokens: Float[Tensor, "*rows dim"], groups: Groups | None = None
    ) -> Float[Tensor, "*rows dim"]:
        """Let every token of an image look at every other.

        Args:
            tokens: (batch, n_tokens, dim), or a packed sequence (total, dim).
            groups: the images of a packed sequence; None for a batch.
        """
        by_head = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = by_head.unbind(-3)
        if groups is None:
            seen = attention(queries, keys, values)
        else:
            seen = attention_by_group(queries, keys, values, groups)
        projected: Tensor = self.proj(seen.flatten(-2))
        return projected


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, tokens: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Transform every token by itself."""
        transformed: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return transformed


class SwiGLU(nn.Module):
    """The gated MLP of ViT-g: w3(silu(a) * b), where a and b are the halves of w12.

    Source: Shazeer, "GLU variants improve transformer", 2020.
    """

    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(embed_dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, embed_dim)

    def forward(self, tokens: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Transform every token by itself."""
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        transformed: Tensor = self.w3(functional.silu(gate) * value)
        return transformed


class LayerScale(nn.Module):
    """A learned factor for every channel of a residual branch.

    Source: Touvron et al., "Going deeper with image transformers", 2021.
    """

    def __init__(self, embed_dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), initial))

    def forward(
        self, tokens: Float[Tensor, "*rows dim"], residual: Float[Tensor, "*rows dim"]
    ) -> Float[Tensor, "*rows dim"]:
        """Return tokens + gamma * residual, in one pass over memory."""
        return torch.addcmul(tokens, residual, self.gamma)


class Block(nn.Module):
    """Pre-norm residual block: attention, then the feed-forward network.

    Args:
        embed_dim: length of a token.
        num_heads: heads of the attention.
        ffn: "mlp" or "swiglu".
        ffn_hidden: hidden width of the feed-forward network.
        layer_scale: initial value of the LayerScale factors; None builds no LayerScale.
    """

    def __init__(
        self, embed_dim: int, *, num_heads: int, ffn: str, ffn_hidden: int, layer_scale: float | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = SelfAttention(embed_dim, num_heads)
        self.ls1 = None if layer_scale is None else LayerScale(embed_dim, layer_scale)
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = SwiGLU(embed_dim, ffn_hidden) if ffn == "swiglu" else Mlp(embed_dim, ffn_hidden)
        self.ls2 = None if layer_scale is None else LayerScale(embed_dim, layer_scale)

    def forward(
        self, tokens: Float[Tensor, "*rows dim"], rows: Rows | None = None
    ) -> Float[Tensor, "*rows dim"]:
        """Add both residual branches to the tokens.

        Args:
            tokens: (batch, n_tokens, dim), or a packed sequence (total, dim).
            rows: the images of a packed sequence, and which of them each branch skips; None for a batch.
        """
        if rows is None:
            tokens = _add(tokens, self.attn(self.norm1(tokens)), self.ls1)
            return _add(tokens, self.mlp(self.norm2(tokens)), self.ls2)
        seen = self.attn(self.norm1(take_kept(tokens, rows.attention)), rows.attention.groups)
        tokens = _add(tokens, seen, self.ls1, rows.attention)
        return _add(tokens, self.mlp(self.norm2(take_kept(tokens, rows.ffn))), self.ls2, rows.ffn)

    def facet(
        self, tokens: Float[Tensor, "batch n_tokens dim"], name: Facet
    ) -> Float[Tensor, "batch n_tokens dim"]:
        """Return the queries, keys or values that tokens have in the attention, the heads side by side."""
        projected: Tensor = self.attn.qkv(self.norm1(tokens))
        return projected.chunk(3, dim=-1)[("query", "key", "value").index(name)]


def _add(tokens: Tensor, residual: Tensor, scale: LayerScale | None, kept: Kept | None = None) -> Tensor:
    if kept is not None and kept.rows is not None:
        return add_kept(tokens, residual, kept, None if scale is None else scale.gamma)
    if scale is None:
        return tokens + residual
    scaled: Tensor = scale(tokens, residual)
    return scaled
