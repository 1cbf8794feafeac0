"""Balanced samples: how evenly they cover the classes of a collection where few classes have most photos.

    python benchmarks/curation.py [--n 40000] [--classes 200] [--dim 384]

The classes have Zipf's frequencies, and their points are a direction with noise. The entropy of the classes
of a sample, as a share of that of equal numbers, says how balanced it is. Random choice, flat k-means with
equal numbers per cluster, and hierarchical k-means with resampling are compared.
"""

import argparse
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=40_000)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--noise", type=float, default=1.0, help="length; that of a class is 1")
    parser.add_argument("--targets", type=int, nargs="+", default=[2000, 5000])
    parser.add_argument("--levels", type=int, nargs="+", default=[1000, 200])
    parser.add_argument("--keep", type=int, nargs="+", default=[10, 3])
    parser.add_argument("--rounds", type=int, default=10)
    measure(parser.parse_args())


def measure(options: argparse.Namespace) -> None:
    import numpy as np
    from setting import describe_setting

    from dinov2kit.indexes.hierarchy import Level, build_hierarchy, sample_balanced
    from dinov2kit.indexes.kmeans import fit_centroids, nearest_centroids

    print(describe_setting(), f"; {options.n:,} x {options.dim}, {options.classes} classes")
    rows, classes = zipf_classes(options.n, options.classes, options.dim, options.noise)
    started = time.process_time()
    centroids = fit_centroids(rows, options.levels[0])
    flat = [Level(centroids, nearest_centroids(rows, centroids)[0][:, 0])]
    flat_seconds = time.process_time() - started
    started = time.process_time()
    rounds = [options.rounds] * len(options.levels)
    levels = build_hierarchy(rows, options.levels, keep=options.keep, rounds=rounds, seed=0)
    seconds = time.process_time() - started
    print(f"seconds of all cores: flat k-means {flat_seconds:.1f}, with levels and rounds {seconds:.1f}")
    for target in options.targets:
        random = np.random.default_rng(0).choice(options.n, target, replace=False)
        samples = (random, *(sample_balanced(one, target, seed=0) for one in (flat, levels)))
        shares = [entropy(classes[chosen], options.classes) for chosen in samples]
        print("entropy of {:,}: random {:.3f}, flat {:.3f}, hierarchical {:.3f}".format(target, *shares))


def zipf_classes(n: int, count: int, dim: int, noise: float):
    """Return unit rows and their classes; class c is drawn with a probability of about (c + 1) ** -1.2."""
    import numpy as np

    rng = np.random.default_rng(0)
    odds = np.arange(1, count + 1) ** -1.2
    classes = rng.choice(count, n, p=odds / odds.sum())
    centres = rng.normal(size=(count, dim)) / dim**0.5
    rows = centres[classes] + noise * rng.normal(size=(n, dim)) / dim**0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), classes


def entropy(classes, count: int) -> float:
    """Return the entropy of some classes as a share of that of equal numbers of all."""
    import numpy as np

    share = np.bincount(classes, minlength=count) / len(classes)
    return float(-(share[share > 0] * np.log(share[share > 0])).sum() / np.log(count))


if __name__ == "__main__":
    main()
