"""Teacher features from a network that is no transformer: MobileNetV1, trained on ImageNet with labels.

    python benchmarks/mobilenet_features.py --root ../shared/data --out teacher-features POOL.zip...

Writes what `dinokit distill teacher=teacher-features` learns from: for each image its whole view and some
boxes, drawn from the seed; the 1,024 numbers of the network's last layer as the class token, and its map of
14 x 14 x 512 as patch tokens. Needs `pip install ai-edge-litert`. A shard holds one box of some images; the
same command goes on where it was stopped.
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from dinov2kit.train.crops import draw_box
from dinov2kit.train.image_sets import open_images
from dinov2kit.train.synthetic_pairs import keyed
from dinov2kit.train.teacher_features import write_teacher_features

FILE = "peers/mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
MAP = "Conv2d_11_pointwise/Relu6"
SIDE, SHARD, NUMBERS = 224, 2048, 41
BOXES = 11  # a key of random numbers


class MobileNet:
    """The network: uint8 numbers of its last layer and of an inner map, and what a step of them is worth."""

    def __init__(self, root: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.network = Interpreter(str(root / FILE), num_threads=1, experimental_preserve_all_tensors=True)
        self.network.allocate_tensors()
        self.entry = self.network.get_input_details()[0]["index"]
        last = self.network.get_output_details()[0]
        (inner,) = [row for row in self.network.get_tensor_details() if MAP in row["name"].split(";")[0]]
        self.exits = last["index"], inner["index"]
        self.scales = last["quantization"][0], inner["quantization"][0]

    def look(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return 1,024 and 14 x 14 x 512 numbers of an image of 224 x 224 pixels."""
        self.network.set_tensor(self.entry, pixels[None])
        self.network.invoke()
        last, inner = (self.network.get_tensor(index) for index in self.exits)
        return last.reshape(-1), inner[0]


def draw(seed: int, image: int, number: int, height: int, width: int) -> tuple[int, int, int, int, bool]:
    """Return left, top, width, height of a box and whether it is mirrored; box 0 is the whole image."""
    numbers = keyed(seed, BOXES, image, number).random(NUMBERS).tolist()
    if number == 0:
        return 0, 0, width, height, False
    return *draw_box(numbers, width, height, (0.25, 1.0)), numbers[40] < 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--boxes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images, teacher = open_images(arguments.sources), MobileNet(arguments.root)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.boxes):
        for first in range(0, len(images), SHARD):
            path = arguments.out / f"{number:02}-{first:09}.h5"
            if path.exists():
                continue
            started, rows = time.perf_counter(), range(first, min(first + SHARD, len(images)))
            boxes, flips, lasts, inners = [], [], [], []
            for image in rows:
                pixels = images.read(image)
                height, width = pixels.shape[:2]
                left, top, across, down, flip = draw(arguments.seed, image, number, height, width)
                part = pixels[top : top + down, left : left + across]
                part = cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
                last, inner = teacher.look(np.ascontiguousarray(part[:, ::-1]) if flip else part)
                boxes.append((left / width, top / height, (left + across) / width, (top + down) / height))
                flips.append(flip)
                lasts.append(last)
                inners.append(inner)
            write_teacher_features(
                path,
                teacher="MobileNetV1 1.0 224, ImageNet, uint8",
                digest="",
                names=[images.name(image) for image in rows],
                image=np.arange(len(rows), dtype=np.int64),
                box=np.array(boxes, np.float32),
                flip=np.array(flips),
                class_token=np.stack(lasts),
                patch_tokens=np.stack(inners),
                scales=dict(zip(("class_token", "patch_tokens"), teacher.scales, strict=True)),
            )
            print(f"{path}: {len(rows) / (time.perf_counter() - started):.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
