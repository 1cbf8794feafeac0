"""Write real photos, each with edited copies, to try things on.

    python examples/make_photos.py FOLDER

The photos come with scikit-image. Names say what was done: chelsea_crop.jpg is a part of chelsea.jpg.
"""

import sys
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png",
          "motorcycle_right.png", "retina.jpg", "rocket.jpg")  # fmt: skip
EDITS = {
    "": lambda photo: photo,
    "_crop": lambda photo: photo.crop(
        [round(0.15 * side) for side in photo.size] + [round(0.9 * side) for side in photo.size]
    ),
    "_dark": lambda photo: ImageEnhance.Brightness(photo).enhance(0.6),
    "_mirror": ImageOps.mirror,
    "_small": lambda photo: photo.resize([side // 3 for side in photo.size], Image.Resampling.LANCZOS),
    "_tilt": lambda photo: photo.rotate(8, Image.Resampling.BICUBIC, fillcolor="white"),
}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/photos")
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        photo = Image.open(files("skimage.data") / name).convert("RGB")
        photo.thumbnail((1024, 1024))
        for suffix, edit in EDITS.items():
            edit(photo).save(folder / f"{Path(name).stem}{suffix}.jpg", quality=88)
    print(f"{len(PHOTOS) * len(EDITS)} photos in {folder}")


if __name__ == "__main__":
    main()
