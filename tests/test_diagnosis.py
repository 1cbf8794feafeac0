"""Diagnoses: quiet on healthy runs, loud on planted faults, each said once until it has cleared."""

import math

import pytest

from dinov2kit.train.diagnosis import Diagnosis, diagnose, open_diagnoses
from dinov2kit.train.metrics import MetricsLog

LN_K = math.log(1024)
STEPS = 1000


def train(step: int, **numbers: object) -> dict[str, object]:
    """Return a line of a healthy run."""
    usual = {
        "loss_over_lnk": 0.985,
        "target_entropy": 2.1,
        "target_marginal_entropy": 6.5,
        "prototypes_used": 0.4,
        "grad_norm": {"backbone": 1.0 + 0.1 * (step % 3), "dino_head": 0.3},
        "lr": 1e-3,
        "data_wait": 0.02,
    }
    return {"kind": "train", "step": step, "images": 64 * step, "time": 0.0, **usual, **numbers}


def measured(step: int, **numbers: float) -> dict[str, object]:
    return {"kind": "eval", "step": step, "images": 64 * step, "time": 0.0, **numbers}


def codes(lines: list[dict[str, object]], steps: int = STEPS, ln_k: float = LN_K) -> set[str]:
    return {one.code for one in diagnose(lines, ln_k=ln_k, steps=steps) if not one.cleared}


def sentence(lines: list[dict[str, object]], code: str, ln_k: float = LN_K) -> str:
    (one,) = [one for one in diagnose(lines, ln_k=ln_k, steps=STEPS) if one.code == code]
    return one.sentence


HEALTHY = [train(step) for step in range(0, 700, 20)]
SHAPES = [  # drawn shapes, 180 s: kNN 15.6 -> 41.6, RankMe 14 -> 39; loss 0.8 to 2 % below ln K
    *(train(step, loss_over_lnk=0.992 - 0.012 * step / 1000) for step in range(0, 1001, 20)),
    *(
        measured(step, knn=knn, rankme=rank)
        for step, knn, rank in [(0, 0.156, 14), (330, 0.351, 25), (670, 0.408, 34), (1000, 0.416, 39)]
    ),
]
COLLAPSED = [  # CIFAR, lr too high: loss 6.80 -> 6.91, kNN 27.1, 31.4, 28.2, 27.3, RankMe 12 -> 49
    *(train(step, loss_over_lnk=min(6.80 + 0.14 * step / 500, 6.91) / 6.931) for step in range(0, 601, 20)),
    *(
        measured(step, knn=knn, rankme=rank)
        for step, knn, rank in [(0, 0.271, 12), (200, 0.314, 35), (400, 0.282, 44), (600, 0.273, 49)]
    ),
]


def test_healthy_runs_are_left_in_peace_at_every_step() -> None:
    for lines in (HEALTHY, SHAPES):
        for last in range(0, 1001, 20):
            assert codes([line for line in lines if line["step"] <= last]) == set()


def test_the_collapse_on_small_photos_is_seen_although_the_rank_rises() -> None:
    assert codes(COLLAPSED) == {"student-uniform"}
    said = sentence(COLLAPSED, "student-uniform")
    assert "the DINO loss is 6.910, 0.30% below ln K = 6.931" in said
    assert "kNN fell from 31.4% at step 200 to 27.3%" in said
    early = [line for line in COLLAPSED if line["step"] <= 300]  # loss 6.884, 0.7 % below
    assert codes(early) == set()


def test_so_near_to_uniform_that_no_other_sign_is_needed() -> None:
    """The plateau that users report: 8.3178 with 4,096 prototypes, which is ln K to four digits."""
    ln_k = math.log(4096)
    flat = [train(step, loss_over_lnk=8.3178 / ln_k) for step in range(0, 700, 20)]
    assert codes(flat, ln_k=ln_k) == {"student-uniform"}
    assert "8.318, 0.00%" in sentence(flat, "student-uniform", ln_k)
    near = [train(step, loss_over_lnk=0.996) for step in range(0, 700, 20)]
    assert codes(near) == set()
    assert codes([{**line, "target_entropy": 0.97 * LN_K} for line in near]) == {"student-uniform"}
    assert "entropy of 6.72 nats" in sentence(
        [{**line, "target_entropy": 0.97 * LN_K} for line in near], "student-uniform"
    )


def test_nothing_is_said_of_the_loss_while_the_run_warms_up() -> None:
    uniform = [train(step, loss_over_lnk=1.0, lr=1e-6 * step) for step in range(0, 700, 20)]
    assert codes(uniform) == set()  # the learning rate still rises
    assert codes([*uniform, train(700, loss_over_lnk=1.0, lr=6e-4)]) == {"student-uniform"}
    assert (
        codes([train(step, loss_over_lnk=1.0) for step in range(0, 100, 10)]) == set()
    )  # a tenth of the run
    beyond = [train(step, loss_over_lnk=1.05) for step in range(0, 700, 20)]
    assert codes(beyond) == set()  # above ln K is another thing than uniform


def test_one_prototype_for_all_is_seen_by_either_number() -> None:
    few = [train(step, target_marginal_entropy=0.3) for step in range(0, 300, 20)]
    assert codes(few) == {"one-prototype"}
    assert "0.30 nats" in sentence(few, "one-prototype")
    one = [train(step, prototypes_used=1 / 1024) for step in range(0, 300, 20)]
    assert codes(one) == {"one-prototype"}
    assert "1.0 of 1,024 prototypes" in sentence(one, "one-prototype")
    rows = 128 / 65536  # all that a small batch can reach of a large head is healthy
    assert codes([train(s, prototypes_used=rows) for s in range(0, 300, 20)], ln_k=math.log(65536)) == set()


def test_a_rank_that_falls_by_more_than_30_percent_is_seen() -> None:
    ranks = [measured(0, rankme=12.0), measured(200, rankme=40.0), measured(400, rankme=28.1)]
    assert codes([*HEALTHY, *ranks]) == set()
    fallen = [*HEALTHY, *ranks, measured(600, rankme=27.9)]
    assert codes(fallen) == {"rank-falling"}
    assert "from 40.0 at step 200 to 27.9, by 30%" in sentence(fallen, "rank-falling")


def test_knn_below_its_start_counts_after_a_third_of_the_run_and_twice() -> None:
    scores = [measured(0, knn=0.80), measured(100, knn=0.3), measured(200, knn=0.2)]
    assert codes([*HEALTHY[:11], *scores]) == set()  # 200 of 1,000 steps
    below = [*HEALTHY, *scores, measured(600, knn=0.10)]
    assert codes(below) == {"knn-below-start"}
    assert "kNN is 10.0% after 68% of the run, and was 80.0%" in sentence(below, "knn-below-start")
    assert codes([*HEALTHY, *scores, measured(600, knn=0.81), measured(680, knn=0.79)]) == set()
    assert codes([*HEALTHY, *(line for line in below if line["step"])]) == set()  # no start to compare with


def test_a_starving_loader_is_seen_after_the_start_up() -> None:
    slow_start = [train(0, data_wait=0.9), *(train(20 * i, data_wait=0.1) for i in range(1, 5))]
    assert codes(slow_start) == set()
    starved = [train(20 * i, data_wait=0.2) for i in range(8)]
    assert codes(starved) == {"loader-starving"}
    assert "20% of the time" in sentence(starved, "loader-starving")
    assert codes([*starved, *(train(20 * i, data_wait=0.01) for i in range(8, 13))]) == set()


@pytest.mark.parametrize("flat", [False, True])
def test_a_gradient_ten_times_its_median_is_seen_in_its_module(flat: bool) -> None:
    def spike(norm: float) -> dict[str, object]:
        line = train(700, grad_norm={"backbone": 1.0, "dino_head": norm})
        return (
            {**line, "grad_norm": {}, "grad_norm/backbone": 1.0, "grad_norm/dino_head": norm}
            if flat
            else line
        )

    lines = HEALTHY
    if flat:
        lines = [{**line, "grad_norm": {}, "grad_norm/dino_head": 0.3} for line in HEALTHY]
    assert codes([*lines, spike(2.9)]) == set()
    assert codes([*lines, spike(3.1)]) == {"gradient-spike"}
    assert "dino_head was 3.1 at step 700, 10 times its median of 0.3" in sentence(
        [*lines, spike(3.1)], "gradient-spike"
    )
    assert codes([*HEALTHY[:9], spike(99.0)]) == set()  # too few to know what is usual


def test_numbers_that_are_not_finite_are_named() -> None:
    broken = [*HEALTHY, {**train(700), "loss": None, "not_finite": ["loss", "grad_norm/backbone"]}]
    assert codes(broken) == {"not-finite"}
    assert sentence(broken, "not-finite").startswith("loss, grad_norm/backbone became infinite")


def test_each_is_said_once_until_it_has_cleared_and_a_resumed_run_says_the_same(tmp_path) -> None:
    waits = [0.02] * 6 + [0.5] * 10 + [0.02] * 10 + [0.5] * 6

    def go(run, first: int, last: int, resume: int | None) -> None:
        log = MetricsLog(run) if resume is None else MetricsLog.open(run, resume)
        with log:
            for i in range(first, last):
                log.append(train(20 * i, data_wait=waits[i]))
                for one in diagnose(log.recent, ln_k=LN_K, steps=STEPS):
                    log.append(
                        {"kind": "diagnosis", "step": 20 * i, "images": 0, "time": 0.0, **one.to_json()}
                    )

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for run in (straight, resumed):
        run.mkdir()
    go(straight, 0, len(waits), None)
    go(resumed, 0, 20, None)
    go(resumed, 11, len(waits), 200)
    assert (resumed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    with MetricsLog(straight) as log:
        said = [
            (line["step"], line["code"], line["cleared"])
            for line in log.recent
            if line["kind"] == "diagnosis"
        ]
        assert [(code, cleared) for _, code, cleared in said] == [
            ("loader-starving", False),
            ("loader-starving", True),
            ("loader-starving", False),
        ]
        assert open_diagnoses(log.recent).keys() == {"loader-starving"}
        assert diagnose(log.recent, ln_k=LN_K, steps=STEPS) == []
    assert 120 <= said[0][0] < 220
    assert 320 <= said[1][0] <= 420


def test_a_new_run_has_nothing_wrong_and_remedies_name_settings_that_there_are() -> None:
    from dinov2kit.train.settings import setting_names
    from dinov2kit.train.train_config import TrainConfig

    assert diagnose([], ln_k=LN_K, steps=STEPS) == []
    assert diagnose([train(0)], ln_k=LN_K, steps=STEPS) == []
    known = set(setting_names(TrainConfig))
    faults = {"loss_over_lnk": 1.0, "data_wait": 0.4, "target_marginal_entropy": 0.0}
    bad = [
        *(train(step, **faults) for step in range(0, 700, 20)),
        {**train(700, **faults, grad_norm={"backbone": 100.0}), "not_finite": ["loss"]},
        *(measured(step, knn=0.5 - step / 2000, rankme=40 - step / 20) for step in (0, 300, 700)),
    ]
    found = diagnose(bad, ln_k=LN_K, steps=STEPS)
    assert len(found) == 7
    assert all(isinstance(one, Diagnosis) and one.remedy and not one.cleared for one in found)
    words = {word.strip("(),.;=") for one in found for word in one.remedy.replace("=", " ").split()}
    named = {word for word in words if "." in word and word[0].isalpha()}
    assert named <= known
    assert {"optim.lr", "optim.warmup", "teacher.temperature", "reading.workers"} <= named
