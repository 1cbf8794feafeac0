"""Images per second from JPEG file to descriptor, beside transformers as its documentation shows it.

    python benchmarks/embedding.py [--images 48] [--megapixels 12] [--rounds 3]

Both run the same ViT-S/14 with the same random weights on the same files, in one process, in turn. The
network alone is compared on the same pixels: there the cosine says whether both compute the same.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from setting import describe_setting
from skimage import data

from dinov2kit import Encoder
from dinov2kit.decoding import default_workers
from dinov2kit.pipeline import describe
from dinov2kit.weights import convert_model


def write_photos(folder: Path, count: int, megapixels: float) -> list[Path]:
    """Write photos of real content: enlarged pictures, each shifted, as cameras write them."""
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    size = (width, width * 3 // 4)
    paths = []
    for number in range(count):
        image = Image.fromarray(np.roll(sources[number % 4], 37 * number, axis=1)).resize(
            size, Image.Resampling.BICUBIC
        )
        grain = np.random.default_rng(number).integers(-6, 7, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(image).astype(np.int16) + grain, 0, 255).astype(np.uint8)
        path = folder / f"{number:03}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        paths.append(path)
    return paths


def with_transformers(folder: Path, paths: list[Path]) -> tuple[np.ndarray, float]:
    """Describe images as the model page of DINOv2 shows it: processor, model, class token."""
    from transformers import BitImageProcessorPil, Dinov2Model

    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_convert_rgb=True,
    )
    model = Dinov2Model.from_pretrained(folder).eval()
    rows = []
    started = time.perf_counter()
    for path in paths:
        inputs = processor(images=Image.open(path), return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        rows.append(torch.nn.functional.normalize(outputs.last_hidden_state[:, 0]).numpy())
    return np.concatenate(rows), len(paths) / (time.perf_counter() - started)


def with_dinokit(encoder: Encoder, paths: list[Path]) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    rows = [item.descriptor for item in describe(encoder, paths, workers=default_workers())]
    return np.stack(rows), len(paths) / (time.perf_counter() - started)


def network_cosine(encoder: Encoder, folder: Path) -> float:
    """Return the lowest cosine between both networks on the same pixels."""
    from transformers import Dinov2Model

    pixels = np.stack(
        [np.asarray(Image.fromarray(image).resize((224, 224))) for image in (data.astronaut(), data.coffee())]
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = Dinov2Model.from_pretrained(folder).eval()(inputs).last_hidden_state[:, 0]
    ours = torch.from_numpy(encoder.embed(pixels))
    return float(torch.nn.functional.cosine_similarity(ours, theirs).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="untrained:vits14")
    options = parser.parse_args()
    print(describe_setting())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photos(folder, options.images, options.megapixels)
        convert_model(options.model, folder / "hf", to="hf")
        encoders = {precision: Encoder(options.model, precision=precision) for precision in ("auto", "fp32")}
        for precision, encoder in encoders.items():
            print(f"network alone, {precision}: cosine {network_cosine(encoder, folder / 'hf'):.6f}")
        speeds: dict[str, list[float]] = {"transformers": [], "dinokit auto": [], "dinokit fp32": []}
        for _ in range(options.rounds):
            theirs, speed = with_transformers(folder / "hf", paths)
            speeds["transformers"].append(speed)
            for precision, encoder in encoders.items():
                ours, speed = with_dinokit(encoder, paths)
                speeds[f"dinokit {precision}"].append(speed)
        lowest = (ours * theirs).sum(axis=1).min()
        print(f"auto is {encoders['auto'].precision}; fp32 from file to descriptor: cosine {lowest:.5f}")
    reference = float(np.median(speeds["transformers"]))
    for label, found in speeds.items():
        median = float(np.median(found))
        print(
            f"{label:14} {median:6.2f} images/s, {median / reference:5.2f} x transformers", np.round(found, 2)
        )


if __name__ == "__main__":
    main()
