"""A trained network of another kind as a source of local descriptors, for want of released weights.

MobileNetV1, trained on ImageNet with labels, gives a map of 512 numbers every 16 pixels. It needs
`pip install ai-edge-litert` and the file of the test data, and is no part of the toolkit: it shows what the
matcher makes of trained descriptors.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from dinov2kit import Features, FeatureSpec, ModelIdentity
from dinov2kit.images import load_picture
from dinov2kit.views import KeepAspect

FILE = "peers/mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
LAYER = "Conv2d_11_pointwise/Relu6"  # the last of 14 x 14 cells for 224 pixels
CELL = 16
FIRST = 7.5  # cells are padded on one side only, so that they look 7.5 pixels further right and down


class MobileNetEncoder:
    """Encodes images as `Encoder` does; of the spec it knows only the size."""

    def __init__(self, root: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.open = lru_cache(4)(lambda height, width: self._opened(Interpreter, root / FILE, height, width))
        self.identity = ModelIdentity("mobilenet_v1", "", 512, "none", {})

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        """Return the features of an image on a grid of 16 x 16 pixels."""
        view = KeepAspect(size=(spec or FeatureSpec()).size, patch_size=CELL)
        picture = load_picture(source, view)
        height, width = picture.pixels.shape[:2]
        network, entry, exit_ = self.open(height, width)
        network.set_tensor(entry, picture.pixels[None])
        network.invoke()
        cells = network.get_tensor(exit_)[0].astype(np.float32)
        tokens = torch.from_numpy(cells).flatten(0, 1)
        tokens = tokens - tokens.mean(dim=0)  # ReLU outputs share a large positive part
        grid = replace(view.grid(picture.width, picture.height), offset_x=-FIRST, offset_y=-FIRST)
        return Features(tokens.mean(dim=0), tokens, torch.zeros(0, 512), grid)

    @staticmethod
    def _opened(interpreter: type, path: Path, height: int, width: int) -> tuple[object, int, int]:
        network = interpreter(str(path), experimental_preserve_all_tensors=True)
        entry = network.get_input_details()[0]["index"]
        network.resize_tensor_input(entry, [1, height, width, 3])
        network.allocate_tensors()
        tensors = network.get_tensor_details()
        (exit_,) = [row["index"] for row in tensors if LAYER in row["name"].split(";")[0]]
        return network, entry, exit_
