"""One training step, beside the same mathematics written down plainly: time and peak memory.

    python benchmarks/training_step.py [--model vits14] [--batch 8] [--prototypes 65536] [--rounds 3]

The plain step runs every crop through the backbone by itself, keeps all logits, and builds the Sinkhorn table
as the paper writes it; backbone, heads, optimiser and random crops are the same. Both start from the same
weights and see the same crops, each in a process of its own, in turn; the losses are printed so that anyone
sees that they agree. Our step is measured as it is and with scale.recompute, which makes the activations
inside the blocks twice instead of keeping them. On CUDA all run in bf16, and --compile also compiles our
blocks.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as functional
from setting import describe_setting
from torch import Tensor

from dinov2kit.train.masks import draw_masks
from dinov2kit.train.parallel import World
from dinov2kit.train.ssl_step import Views, arithmetic, step_losses
from dinov2kit.train.train_config import TrainConfig
from dinov2kit.train.trainer import Trainer

STUDENT_T, TEACHER_T, MOMENTUM = 0.1, 0.04, 0.99
KINDS = ("plain", "ours", "recompute")


def configure(arguments: argparse.Namespace, *, recompute: bool) -> TrainConfig:
    patch = int("".join(filter(str.isdigit, arguments.model.split("_")[0])))
    return TrainConfig.model_validate(
        {
            "data": "drawn-shapes",
            "out": "unused",
            "model": arguments.model,
            "steps": 100,
            "backbone": {"layer_scale": 1.0},  # at 1e-5 all class tokens are alike, and KoLeo is all rounding
            "batch": arguments.batch,
            "crops": {"global_size": 16 * patch, "local_size": 7 * patch if patch == 14 else 6 * patch},
            "loss": {"prototypes": arguments.prototypes, "ibot_prototypes": arguments.prototypes},
            "scale": {
                "micro_batch": arguments.batch,
                "compile": "on" if arguments.compile else "off",
                "precision": "auto",
                "recompute": recompute,
            },
        }
    )


def draw_views(config: TrainConfig, patch: int, device: torch.device) -> Views:
    generator = torch.Generator().manual_seed(1)
    crops, side = config.crops, config.crops.global_size // patch
    count = 2 * config.batch
    masks = draw_masks(count, side, side, seed=0, step=0)
    return Views(
        torch.randn(count, 3, crops.global_size, crops.global_size, generator=generator).to(device),
        torch.randn(
            crops.local_count * config.batch, 3, crops.local_size, crops.local_size, generator=generator
        ).to(device),
        None,
        torch.from_numpy(masks).to(device),
    )


def sinkhorn(logits: Tensor) -> Tensor:
    """The table of the paper: rows are prototypes, columns samples."""
    table = torch.exp(logits.float() / TEACHER_T).T
    table /= table.sum()
    for _ in range(3):
        table /= table.sum(dim=1, keepdim=True)
        table /= table.shape[0]
        table /= table.sum(dim=0, keepdim=True)
        table /= table.shape[1]
    return (table * table.shape[1]).T


def cross_entropy(student: Tensor, target: Tensor) -> Tensor:
    return -(target * functional.log_softmax(student.float() / STUDENT_T, dim=-1)).sum(dim=-1)


def koleo(tokens: Tensor) -> Tensor:
    rows = functional.normalize(tokens.float(), dim=-1)
    cosines = rows @ rows.T
    cosines.fill_diagonal_(-1)
    nearest = cosines.argmax(dim=1)
    return -(functional.pairwise_distance(rows, rows[nearest]) + 1e-8).log().mean()


def plain_losses(trainer: Trainer, views: Views) -> Tensor:
    """The released step, crop by crop and with all logits."""
    student, teacher = trainer.networks.student, trainer.networks.teacher
    b = views.images
    with torch.no_grad():
        seen = [teacher["backbone"](crop) for crop in views.global_crops.split(b)]
        classes = torch.cat([tokens.class_token for tokens in seen])
        patches = torch.cat([tokens.patch_tokens for tokens in seen])[views.masks]
        target = sinkhorn(teacher["dino_head"](classes)).chunk(2)
        patch_target = sinkhorn(teacher["dino_head"](patches))
    masked = [
        student["backbone"](crop, mask)
        for crop, mask in zip(views.global_crops.split(b), views.masks.split(b), strict=True)
    ]
    small = [student["backbone"](crop) for crop in views.local_crops.split(b)]
    terms = 2 * len(small) + 2
    total = torch.zeros((), device=views.masks.device)
    for tokens in small:
        logits = student["dino_head"](tokens.class_token)
        for other in target:
            total = total + cross_entropy(logits, other).mean() / terms
    for crop, tokens in enumerate(masked):
        logits = student["dino_head"](tokens.class_token)
        total = total + cross_entropy(logits, target[1 - crop]).mean() / terms
        total = total + 0.1 * koleo(tokens.class_token)
    hidden = torch.cat([tokens.patch_tokens for tokens in masked])[views.masks]
    weight = (1 / views.masks.sum(dim=1).clamp(min=1))[:, None].expand_as(views.masks)[views.masks]
    patch_loss = (cross_entropy(student["dino_head"](hidden), patch_target) * weight).sum() / (2 * b)
    return total + patch_loss


def measure(kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    config = configure(arguments, recompute=kind == "recompute")
    world = World(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    precision = "bf16" if world.device.type == "cuda" else arguments.precision
    trainer = Trainer(config, world, precision=precision)
    views = draw_views(config, trainer.networks.config.patch_size, world.device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, losses = [], []
    for _ in range(arguments.rounds + 1):
        started = time.perf_counter()
        trainer.optimizer.zero_grad()
        with arithmetic(world, precision):
            if kind == "plain":
                total = plain_losses(trainer, views)
            else:
                generator = torch.Generator(world.device).manual_seed(0)
                total = step_losses(
                    trainer.networks, views, config, world, temperature=TEACHER_T, generator=generator
                ).total
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(trainer.networks.student.parameters(), 3.0)
        trainer.optimizer.step()
        trainer.networks.follow(MOMENTUM)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        losses.append(float(total.detach()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if world.device.type == "cuda":
        peak, before = torch.cuda.max_memory_allocated(), 0
    return {
        "seconds": min(times[1:]),
        "peak": peak,
        "above": peak - before * 1024,
        "first": losses[0],
        "last": losses[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vits14")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments)))
        return
    print(describe_setting())
    found = {}
    for kind in KINDS:
        done = subprocess.run(
            [sys.executable, Path(__file__), *sys.argv[1:], "--only", kind],
            capture_output=True,
            text=True,
            check=True,
        )
        found[kind] = facts = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{kind:9} {facts['seconds']:6.2f} s a step, {arguments.batch / facts['seconds']:7.2f} images/s, "
            f"peak {facts['peak'] / 1e9:5.2f} GB, of which a step {facts['above'] / 1e9:5.2f} GB; "
            f"loss {facts['first']:.4f} -> {facts['last']:.4f}"
        )
    plain = found["plain"]
    for kind in KINDS[1:]:
        ours = found[kind]
        print(
            f"plain / {kind}: time {plain['seconds'] / ours['seconds']:.2f}, "
            f"peak memory {plain['peak'] / ours['peak']:.2f}, "
            f"memory of a step {plain['above'] / ours['above']:.2f}"
        )


if __name__ == "__main__":
    main()
