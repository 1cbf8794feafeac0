"""What makes two descriptors comparable: the model, its weights, the pooling and the preprocessing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ModelIdentity:
    """The identity of an encoder as an index records it.

    Attributes:
        name: catalogue name, or the path that the weights came from.
        weights_sha256: digest of the tensors in released naming, fp32; the same for every file format.
        dim: length of a global descriptor.
        pooling: which tokens became the descriptor, for instance "cls".
        preprocess: what the view does to an image, as `CenterCrop.describe` says it.
    """

    name: str
    weights_sha256: str
    dim: int
    pooling: str
    preprocess: Mapping[str, object]

    @property
    def fingerprint(self) -> str:
        """Digest of everything that changes a descriptor; the name does not."""
        facts = {key: value for key, value in asdict(self).items() if key != "name"}
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes and `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, object]) -> ModelIdentity:
        """Read what `to_json` wrote."""
        return cls(
            name=str(facts["name"]),
            weights_sha256=str(facts["weights_sha256"]),
            dim=int(str(facts["dim"])),
            pooling=str(facts["pooling"]),
            preprocess=dict(facts["preprocess"]) if isinstance(facts["preprocess"], Mapping) else {},
        )
