"""The choice of an index as a table: collection and memory in, kind of index out."""

import pytest

from dinov2kit.indexes.plan import EXACT_VALUES, available_memory, default_memory, plan_ann

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("n", "dim", "memory", "kind", "factory"),
    [
        (0, 384, 256 * MB, "exact", "SQfp16"),
        (1_000, 384, 256 * MB, "exact", "SQfp16"),
        (100_000, 384, 256 * MB, "exact", "SQfp16"),
        (500_000, 384, 4 * GB, "exact", "SQfp16"),
        (500_000, 384, 256 * MB, "ivf", "IVF2048,SQ8"),
        (500_000, 384, 64 * MB, "ivf", "RR384,IVF2048,RaBitQ"),
        (1_000_000, 384, 4 * GB, "exact", "SQfp16"),
        (1_100_000, 384, 4 * GB, "ivf", "IVF4096,SQfp16"),
        (1_000_000, 1536, 2 * GB, "ivf", "IVF4096,SQ8"),
        (10_000_000, 384, 64 * GB, "ivf", "IVF16384,SQfp16"),
        (10_000_000, 384, 4 * GB, "ivf", "IVF16384,SQ8"),
        (10_000_000, 384, 1 * GB, "ivf", "RR384,IVF16384,RaBitQ"),
        (100_000_000, 384, 256 * GB, "ivf", "IVF16384,SQfp16"),
        (100_000_000, 384, 64 * GB, "ivf", "IVF16384,SQ8"),
        (100_000_000, 384, 8 * GB, "ivf", "RR384,IVF16384,RaBitQ"),
        (100_000_000, 384, 256 * MB, "ivf", "RR384,IVF16384,RaBitQ"),
    ],
)
def test_the_most_exact_index_that_fits(n, dim, memory, kind, factory):
    plan = plan_ann(n, dim, memory)
    assert (plan.kind, plan.factory) == (kind, factory)
    assert plan.nbytes <= memory or "more than" in plan.reason


@pytest.mark.parametrize("n", [2, 77, 5_000, 300_000, 3_000_000, 10**8])
@pytest.mark.parametrize("gpus", [0, 1])
def test_clusters_see_enough_rows_and_stay_trainable(n, gpus):
    plan = plan_ann(n, 768, 0, gpus=gpus)
    assert 1 <= plan.nlist <= (65536 if gpus else 16384)
    assert plan.nlist == 1 or n / plan.nlist >= 39  # what faiss asks for
    assert plan.train_rows <= n
    assert plan.train_rows == min(n, 64 * plan.nlist)


def test_a_gpu_allows_more_clusters():
    assert (
        plan_ann(10**8, 384, 64 * GB, gpus=1).nlist == 32768
        or plan_ann(10**8, 384, 64 * GB, gpus=1).nlist == 65536
    )
    assert plan_ann(10**8, 384, 64 * GB).nlist == 16384


def test_exact_search_ends_where_it_takes_too_long_or_too_much():
    at_most = int(EXACT_VALUES) // 384
    assert plan_ann(at_most, 384, 10 * GB).kind == "exact"
    assert plan_ann(at_most + 1, 384, 10 * GB).kind == "ivf"
    needed = 100_000 * (2 * 384 + 8)
    assert plan_ann(100_000, 384, needed).kind == "exact"
    assert plan_ann(100_000, 384, needed - 1).kind == "ivf"


def test_coarse_codes_are_scored_again_and_fine_ones_are_not():
    rerank = [plan_ann(5_000_000, 384, memory).rerank for memory in (64 * GB, 3 * GB, 1 * GB)]
    assert rerank == [1, 4, 20]


@pytest.mark.parametrize(
    ("asked", "factory", "nlist"),
    [
        ("IVF1024,SQ8", "IVF1024,SQ8", 1024),
        ("RR64,IVF512_HNSW32,RaBitQ", "RR64,IVF512_HNSW32,RaBitQ", 512),
        ("HNSW32", "IDMap,HNSW32", 0),
        ("IDMap,SQ8", "IDMap,SQ8", 0),
    ],
)
def test_a_factory_string_is_taken_as_it_is_and_gets_ids(asked, factory, nlist):
    plan = plan_ann(10**6, 384, 1, factory=asked)
    assert (plan.kind, plan.factory, plan.nlist) == ("custom", factory, nlist)
    assert plan.train_rows == 2**18


def test_free_memory_is_what_the_system_says():
    psutil = pytest.importorskip("psutil")
    assert 0 < available_memory() <= psutil.virtual_memory().total
    assert default_memory() == pytest.approx(available_memory() / 4, rel=0.2)
