"""Images per second and core from JPEG to the ten views of a step, beside what torchvision does with Pillow.

    python benchmarks/loader.py [--images 48] [--rounds 3]

The photos are those of scikit-image at 500 x 375 and quality 90, each shifted. Every way makes two views of
224 pixels and eight of 98 with the released recipe, in one process and one thread, in turn. Our pipeline cuts
uint8 in the processes that read and colours batches on the device; here the CPU does that too. Pillow does
all where it reads, as the released code has it. Then batches go through 0, 1 and 2 reading processes.
"""

import argparse
import io
import math
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from setting import describe_setting
from skimage import data

from dinov2kit.train.batches import CropReading
from dinov2kit.train.colours import finish_crops
from dinov2kit.train.crops import CropRecipe, Crops, cut_crops
from dinov2kit.train.image_sets import ImageSet, open_images
from dinov2kit.train.loader import Loader
from dinov2kit.views import IMAGENET_MEAN, IMAGENET_STD

RECIPE = CropRecipe()
ORDER = [0, 1, 2, 3]
BATCH = 16


def write_photos(folder: Path, count: int) -> None:
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    for number in range(count):
        pixels = np.roll(sources[number % 4], 37 * number, axis=1)
        photo = Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC)
        photo.save(folder / f"{number:03}.jpg", quality=90)


def cut(images: ImageSet, number: int) -> Crops:
    return cut_crops(images.read(number), RECIPE, seed=0, sample=number)


def finish(made: list[Crops]) -> None:
    """Finish the crops of a few images, as a step of training does."""
    for pixels, colours in (
        ([crops.global_pixels for crops in made], [crops.global_colours for crops in made]),
        ([crops.local_pixels for crops in made], [crops.local_colours for crops in made]),
    ):
        finish_crops(
            torch.from_numpy(np.concatenate(pixels)),
            torch.from_numpy(np.concatenate(colours)),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )


def with_pillow(path: Path) -> None:
    """Make the ten views as the released code does, without torchvision: the same calls of Pillow."""
    photo = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    for view in range(2 + RECIPE.local_count):
        scale, size = (RECIPE.global_scale, 224) if view < 2 else (RECIPE.local_scale, 98)
        crop = pillow_crop(photo, scale, size)
        if random.random() < RECIPE.jitter:
            crop = pillow_jitter(crop)
        if random.random() < RECIPE.grey:
            crop = crop.convert("L").convert("RGB")
        if random.random() < RECIPE.blur[min(view, 2)]:
            crop = crop.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
        if view == 1 and random.random() < RECIPE.solarise:
            crop = ImageOps.solarize(crop, 128)
        values = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous().float().div(255)
        values.sub_(torch.tensor(IMAGENET_MEAN)[:, None, None]).div_(
            torch.tensor(IMAGENET_STD)[:, None, None]
        )


def pillow_crop(photo: Image.Image, scale: tuple[float, float], size: int) -> Image.Image:
    width, height = photo.size
    while True:
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            break
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    part = photo.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BICUBIC)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < RECIPE.flip else part


def pillow_jitter(crop: Image.Image) -> Image.Image:
    for step in random.sample(ORDER, 4):
        if step < 3:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
            most = (RECIPE.brightness, RECIPE.contrast, RECIPE.saturation)[step]
            crop = kind(crop).enhance(random.uniform(1 - most, 1 + most))
        else:
            hue, saturation, value = crop.convert("HSV").split()
            turn = np.uint8(round(255 * random.uniform(-RECIPE.hue, RECIPE.hue)) % 256)
            turned = Image.fromarray(np.array(hue) + turn, "L")
            crop = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    return crop


def rate(work: Callable[[list[int]], object], count: int) -> float:
    """Return images per second; work is done on 16 at a time."""
    started = time.perf_counter()
    for first in range(0, count, BATCH):
        work(list(range(first, min(first + BATCH, count))))
    return count / (time.perf_counter() - started)


def through_loader(images: ImageSet, workers: int, steps: int) -> tuple[float, float]:
    """Return images per second after the first batch, and the seconds until that."""
    loader = Loader(
        CropReading(images, RECIPE, 0),
        batch=BATCH,
        micro_batch=BATCH,
        rank=0,
        world=1,
        start_step=0,
        stop_step=steps,
        workers=workers,
    )
    started = time.perf_counter()
    with closing(iter(loader)) as batches:
        next(batches)
        first = time.perf_counter()
        rest = sum(len(batch.samples) for batch in batches)
        return rest / (time.perf_counter() - first), first - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(describe_setting())
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name), options.images)
        images, paths = open_images([name]), sorted(Path(name).iterdir())
        made = [cut(images, number) for number in range(options.images)]
        ways: dict[str, Callable[[list[int]], object]] = {
            "Pillow, all": lambda numbers: [with_pillow(paths[number]) for number in numbers],
            "decode": lambda numbers: [images.read(number) for number in numbers],
            "decode + cut": lambda numbers: [cut(images, number) for number in numbers],
            "finish on the CPU": lambda numbers: finish([made[number] for number in numbers]),
            "decode + cut + finish": lambda numbers: finish([cut(images, number) for number in numbers]),
        }
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, work in ways.items():
                speeds[way].append(rate(work, options.images))
        slowest = float(np.median(speeds["Pillow, all"]))
        for way, found in speeds.items():
            median = float(np.median(found))
            print(
                f"{way:22} {median:7.1f} images/s a core, {1000 / median:6.2f} ms an image, "
                f"{median / slowest:5.2f} x Pillow, {np.round(found, 1)}"
            )
        for workers in (0, 1, 2):
            speed, first = through_loader(images, workers, steps=40)
            print(f"loader, {workers} processes   {speed:7.1f} images/s, first batch after {first:.2f} s")


if __name__ == "__main__":
    main()
