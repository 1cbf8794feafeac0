"""What networks return, of whatever kind, taken apart into a class token and patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeGuard

from torch import Tensor

from dinov2kit.errors import ArgumentError

_NAMES = (("class_token", "patch_tokens"), ("x_norm_clstoken", "x_norm_patchtokens"))


class Output(NamedTuple):
    """What a network returned, taken apart.

    Attributes:
        class_token: (b, dim), or None where the patches hold it.
        patches: a map (b, dim, rows, cols) or tokens (b, n, dim), or None.
    """

    class_token: Tensor | None
    patches: Tensor | None


def read_output(output: object, count: int, *, of: str) -> Output:
    """Take apart what a network returned, as `open_teacher` tells.

    Args:
        output: what it returned.
        count: of the images.
        of: name of the network, for errors.

    Raises:
        ArgumentError: it is nothing of that kind.
    """
    whole: object = None
    parts: tuple[object, object] = (None, None)
    if isinstance(output, Mapping):
        pairs = [(output[one], output.get(other)) for one, other in _NAMES if one in output]
        whole, parts = (None, pairs[0]) if pairs else (output.get("last_hidden_state"), parts)
    elif isinstance(output, (tuple, list)) and len(output) == 2:
        parts = (output[0], output[1])
    else:
        whole = output
    if _fits(whole, count, (2,)):
        return Output(whole, None)
    if _fits(whole, count, (3, 4)):
        return Output(None, whole)
    class_token, patches = parts
    if _fits(class_token, count, (2,)) and (patches is None or _fits(patches, count, (3, 4))):
        return Output(class_token, patches)
    raise ArgumentError(
        f"{of} returns {_described(output)} for {count} images",
        hint="wanted (b, dim), (b, dim, rows, cols) or (b, n, dim); or a pair of a class token (b, dim) and "
        "a map or patch tokens; or a dict with class_token and patch_tokens",
    )


def _fits(value: object, count: int, axes: tuple[int, ...]) -> TypeGuard[Tensor]:
    """Say whether something is a floating-point tensor of so many images and axes."""
    if not isinstance(value, Tensor) or value.ndim not in axes:
        return False
    return value.is_floating_point() and len(value) == count and value.shape[1:].numel() > 0


def _described(output: object) -> str:
    """Return what something is, in words for an error."""
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return "a dict of " + (
            ", ".join(f"{key}: {_described(part)}" for key, part in output.items()) or "nothing"
        )
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of " + (", ".join(map(_described, output)) or "nothing")
    return type(output).__name__
