"""Match two photos, print where the most confident keypoints went, and draw all of them.

python examples/match_two.py [PHOTO0 PHOTO1] [PICTURE] [MODEL]
"""

import sys
from pathlib import Path

from dinov2kit import Encoder, FeatureSpec, draw_matches, match
from dinov2kit.draw import write_image
from dinov2kit.images import read_image


def main(
    photo0: str = "examples/photos/motorcycle_left.jpg",
    photo1: str = "examples/photos/motorcycle_right.jpg",
    picture: str = "match_two.png",
    model: str = "untrained:vitt14",
) -> None:
    encoder = Encoder(model)
    features0, features1 = (encoder.encode(photo, FeatureSpec(size=420)) for photo in (photo0, photo1))
    matches = match(features0, features1, num=40)
    for row in matches.confidence.argsort()[::-1][:5]:
        (x0, y0), (x1, y1) = matches.keypoints0[row], matches.keypoints1[row]
        print(f"({x0:.1f}, {y0:.1f}) -> ({x1:.1f}, {y1:.1f})  confidence {matches.confidence[row]:.3f}")
    drawn = draw_matches(read_image(photo0), read_image(photo1), matches, title=f"{photo0} and {photo1}")
    write_image(Path(picture), drawn)
    print(f"{int(matches.kept.sum())} of {len(matches)} matches kept; drawn in {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
