"""What a run costs before it is begun: arithmetic, memory and disk, from shapes alone.

Source of the counts: two operations per weight and token in a linear layer, 4 n^2 dim in an attention over n
tokens; backward costs twice the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from dinov2kit.architectures import ViTConfig

from .networks import STATE_BYTES, backbone_config, count_parameters
from .ssl_step import GLOBAL_CROPS
from .train_config import TrainConfig

_BYTES_PER_TOKEN = {"bf16": 34.0, "fp32": 68.0}  # kept for the backward pass, per channel and block
_RECOMPUTED = 1 / 8  # what recomputing leaves of it
_LOGIT_COPIES = 3  # of one chunk of logits, in fp32
_CHUNK_BYTES = 2**28
_KEPT_STATES = 16  # bytes per trained number in a checkpoint: student, teacher and two moments


@dataclass(frozen=True)
class Costs:
    """What one step of one process needs.

    Attributes:
        parameters: numbers that are learned: backbone and heads.
        flops_per_image: operations for one image: student forward and backward, teacher forward, heads.
        state_bytes: weights, gradients, moments and teacher.
        activation_bytes: what the backward pass needs of a micro-batch.
        checkpoint_bytes: size of one checkpoint.
    """

    parameters: int
    flops_per_image: float
    state_bytes: int
    activation_bytes: int
    checkpoint_bytes: int

    @property
    def memory_bytes(self) -> int:
        """State and activations together."""
        return self.state_bytes + self.activation_bytes


def count_costs(config: TrainConfig, *, micro_batch: int, precision: str) -> Costs:
    """Count what a step costs.

    Raises:
        WeightsError: there is no such architecture.
    """
    shape = backbone_config(config)
    backbone, heads = count_parameters(config.loss, config.distill, shape)
    parameters = backbone + heads
    crops = config.crops
    tokens_global = _tokens(shape, crops.global_size)
    tokens_local = _tokens(shape, crops.local_size)
    forward_global = GLOBAL_CROPS * _forward_flops(shape, crops.global_size)
    forward_local = crops.local_count * _forward_flops(shape, crops.local_size)
    kept = 1 - config.backbone.drop_path * (1.0 if config.backbone.drop_path_uniform else 0.5)
    again = 4 if config.scale.recompute else 3
    masked = crops_masked(config) * (tokens_global - 1 - shape.num_registers)
    head_rows = GLOBAL_CROPS + crops.local_count + masked
    head_flops = 2 * heads * (3 * head_rows + GLOBAL_CROPS + masked)
    if not config.loss.shared_head:
        head_flops = head_flops / 2  # each row passes one of two heads
    flops = again * kept * (forward_global + forward_local) + forward_global + head_flops
    per_token = _BYTES_PER_TOKEN[precision] * shape.embed_dim * shape.depth * kept
    if config.scale.recompute:
        per_token *= _RECOMPUTED
    tokens = GLOBAL_CROPS * tokens_global + crops.local_count * tokens_local
    logits = min(int(4 * micro_batch * head_rows * config.loss.prototypes), _CHUNK_BYTES) * _LOGIT_COPIES
    pixels = (
        4
        * shape.in_channels
        * (GLOBAL_CROPS * crops.global_size**2 + crops.local_count * crops.local_size**2)
    )
    return Costs(
        parameters=parameters,
        flops_per_image=float(flops),
        state_bytes=STATE_BYTES * parameters,
        activation_bytes=int(micro_batch * (tokens * per_token + 2 * pixels)) + logits,
        checkpoint_bytes=_KEPT_STATES * parameters,
    )


def crops_masked(config: TrainConfig) -> float:
    """Return the mean share of hidden patches, summed over the global crops of an image."""
    return GLOBAL_CROPS * config.masks.share * sum(config.masks.ratio) / 2


def _tokens(shape: ViTConfig, side: int) -> int:
    return 1 + shape.num_registers + (side // shape.patch_size) ** 2


def _forward_flops(shape: ViTConfig, side: int) -> int:
    """Return the operations of one crop through the backbone."""
    n, dim = _tokens(shape, side), shape.embed_dim
    ffn = (3 if shape.ffn == "swiglu" else 2) * dim * shape.ffn_hidden
    block = 2 * n * (4 * dim**2 + ffn) + 4 * n**2 * dim
    patches = (side // shape.patch_size) ** 2
    return shape.depth * block + 2 * patches * shape.in_channels * shape.patch_size**2 * dim
