"""The tables of docs/scale.md: what an index of very many photos takes, from figures measured elsewhere.

    python benchmarks/scale_plan.py

Nothing is measured here. The faiss index is planned by `plan_ann`; the other inputs stand below, each with
its source.
"""

import math

from dinov2kit.indexes import plan_ann

PHOTOS = {"100 M": 100_000_000, "1 B": 1_000_000_000}
MODELS = {"ViT-S": 384, "ViT-B": 768}
SHARD_ROWS = 65_536
FACTS = 150  # bytes of a row in a shard beside its descriptor, paths of 40 bytes; docs/formats.md
MANIFEST = 186  # bytes of a file in SQLite, measured with a million files
COMMITS = 4_700  # files a second that one committer takes up; benchmarks/ray_index.py
PART = 10_000_000  # photos in one part: up to there a manifest that knows each file is comfortable
KINDS = {  # bytes of a file, images a second that one core decodes
    "web pictures": (41_000, 200),  # LAION-5B: 240 TB; a JPEG of 640 x 480 in 5 ms, measured
    "phone photos": (3_500_000, 28),  # estimate; 12 megapixels at reduced scale in 30 to 39 ms, measured
}
CPU_SPEED = {"ViT-S": 5.1}  # images a second and core, fp32, decoding included; docs/results.md
GPU_SPEED = {"ViT-S": 16_000, "ViT-B": 7_000, "ViT-L": 2_000, "ViT-g": 500}  # an H200, ESTIMATED from FLOPs
CORES_PER_GPU = 16
MEMORIES = (16, 64, 256, 2048)  # GB that the faiss index may take


def main() -> None:
    print("\n| photos | model | descriptors | facts in shards | shards | manifest with a row per file |")
    print("|---|---|---|---|---|---|")
    for name, n in PHOTOS.items():
        for model, dim in MODELS.items():
            shards = math.ceil(n / SHARD_ROWS)
            sizes = (_size(n * 2 * dim), _size(n * FACTS), f"{shards:,}", _size(n * MANIFEST))
            print(f"| {name} | {model} | {' | '.join(sizes)} |")
    print("\n| photos | model | faiss index | its size | first budget it fits |\n|---|---|---|---|---|")
    for name, n in PHOTOS.items():
        for model, dim in MODELS.items():
            seen = set()
            for memory in MEMORIES:
                plan = plan_ann(n, dim, int(memory * 1e9), gpus=1)
                if plan.nbytes <= memory * 1e9 and plan.factory not in seen:
                    seen.add(plan.factory)
                    row = (f"`{plan.factory}`", _size(plan.nbytes), f"{memory:,} GB")
                    print(f"| {name} | {model} | {' | '.join(row)} |")
    print("\n| photos | kind | storage | core-hours to decode | hours at 10 Gbit/s |\n|---|---|---|---|---|")
    for name, n in PHOTOS.items():
        for kind, (nbytes, decoded) in KINDS.items():
            hours = (n / decoded / 3600, n * nbytes * 8 / 1e10 / 3600)
            print(f"| {name} | {kind} | {_size(n * nbytes)} | {hours[0]:,.0f} | {hours[1]:,.1f} |")
    print("\n| photos | model | GPU-hours of the model alone | core-hours without a GPU |\n|---|---|---|---|")
    for name, n in PHOTOS.items():
        for model, speed in GPU_SPEED.items():
            cores = f"{n / CPU_SPEED[model] / 3600:,.0f}" if model in CPU_SPEED else ""
            print(f"| {name} | {model} | {n / speed / 3600:,.1f} | {cores} |")
    names = ", ".join(GPU_SPEED)
    print(f"\n| kind | images/s behind {CORES_PER_GPU} cores | cores that keep a GPU busy: {names} |")
    print("|---|---|---|")
    for kind, (_, decoded) in KINDS.items():
        wanted = ", ".join(f"{speed / decoded:,.0f}" for speed in GPU_SPEED.values())
        print(f"| {kind} | {CORES_PER_GPU * decoded:,} | {wanted} |")
    print(
        "\n| photos | parts | hours of one committer | hours when each part has its own |\n|---|---|---|---|"
    )
    for name, n in PHOTOS.items():
        row = (math.ceil(n / PART), n / COMMITS / 3600, PART / COMMITS / 3600)
        print(f"| {name} | {row[0]} | {row[1]:,.1f} | {row[2]:,.1f} |")


def _size(nbytes: float) -> str:
    unit = "TB" if nbytes >= 1e12 else "GB"
    return f"{nbytes / (1e12 if unit == 'TB' else 1e9):,.1f} {unit}"


if __name__ == "__main__":
    main()
