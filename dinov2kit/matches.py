"""The answer of matching: keypoints of two images, row by row, in pixels of the originals. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from dinov2kit.shapes import Keypoints


@dataclass(frozen=True)
class Matches:
    """Keypoints of image 0 and where they lie in image 1; row i of every array speaks of the same match.

    Attributes:
        keypoints0: (x, y) in pixels of image 0.
        keypoints1: (x, y) in pixels of image 1.
        score: highest cosine similarity between the descriptor of the keypoint and the patches of image 1.
        confidence: how exclusive the match is in both directions and how well its way back agrees, in [0, 1];
            it ranks the matches of one pair and is not a probability.
        cycle_error: distance between the keypoint and the way back from its match, in patches of image 0.
        uncertainty: standard deviation of the position in image 1, in pixels.
        ratio: distance (1 - cosine) to the best patch over that to the best patch outside the window around
            it; near 1 where the structure repeats itself.
        kept: whether the match passed the checks.
        alternatives: for every match the other peaks of its similarity, best first, each (x, y, score) in
            pixels of image 1; empty rows, or no rows at all, where none were asked for.
    """

    keypoints0: Keypoints
    keypoints1: Keypoints
    score: Float32[np.ndarray, " n"]
    confidence: Float32[np.ndarray, " n"]
    cycle_error: Float32[np.ndarray, " n"]
    uncertainty: Float32[np.ndarray, " n"]
    ratio: Float32[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]
    alternatives: tuple[tuple[tuple[float, float, float], ...], ...] = ()

    def __len__(self) -> int:
        return len(self.score)

    def to_json(
        self,
        *,
        names: Sequence[str | None] = (),
        ids: Sequence[int | str] = (),
        inliers: Bool[np.ndarray, " n"] | None = None,
    ) -> list[dict[str, object]]:
        """Return one dict per match, in order, that `json.dumps` takes.

        Args:
            names: names of the keypoints, one per match, or none at all.
            ids: what identifies the keypoints; without them their place in the list does.
            inliers: whether a model of the geometry explains the match.
        """
        labels, numbers = list(names) or [None] * len(self), list(ids) or list(range(len(self)))
        others = self.alternatives or ((),) * len(self)
        return [
            {
                "id": numbers[i],
                "name": labels[i],
                "x0": round(float(self.keypoints0[i, 0]), 3),
                "y0": round(float(self.keypoints0[i, 1]), 3),
                "x1": round(float(self.keypoints1[i, 0]), 3),
                "y1": round(float(self.keypoints1[i, 1]), 3),
                "score": round(float(self.score[i]), 5),
                "confidence": round(float(self.confidence[i]), 5),
                "cycle_error": round(float(self.cycle_error[i]), 3),
                "uncertainty": round(float(self.uncertainty[i]), 3),
                "ratio": round(float(self.ratio[i]), 4),
                "inlier": None if inliers is None else bool(inliers[i]),
                "kept": bool(self.kept[i]),
                "alternatives": [
                    {"x1": round(x, 3), "y1": round(y, 3), "score": round(score, 5)}
                    for x, y, score in others[i]
                ],
            }
            for i in range(len(self))
        ]

    def take(self, rows: Int64[np.ndarray, " k"]) -> Matches:
        """Return the matches of these rows, in this order."""
        return Matches(
            keypoints0=self.keypoints0[rows],
            keypoints1=self.keypoints1[rows],
            score=self.score[rows],
            confidence=self.confidence[rows],
            cycle_error=self.cycle_error[rows],
            uncertainty=self.uncertainty[rows],
            ratio=self.ratio[rows],
            kept=self.kept[rows],
            alternatives=tuple(self.alternatives[row] for row in rows) if self.alternatives else (),
        )
