"""What goes wrong with a run, read off its metrics, in sentences: what is seen, what it means, what to do.

Nothing is remembered between two looks. What was said before stands in the "diagnosis" lines of the log, so
that a resumed run says what a straight one would.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .metrics import flat_numbers

_LATEST = 5  # lines of training that an average is taken over
_WARMING = 0.1  # share of the run in which nothing is said of the loss
_NEAR_UNIFORM = 0.005  # of ln K; healthy runs of tiny models lay 0.8 to 2 % below it, a collapsed one 0.3 %
_UNIFORM = 0.0005  # so near that it needs no other sign
_FLAT = 0.95  # entropy of a target over ln K
_KNN_FELL = 0.9  # of its best
_RANK_FELL = 0.7  # of its peak
_EARLY = 1 / 3  # share of the run in which a score may lie below its start
_STARVING = 0.15  # share of the time
_SPIKE, _MEDIAN_OF, _SPIKE_LASTS = 10.0, 100, 10  # times the median, of so many lines; lines until it is past

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Diagnosis:
    """Something that is wrong, or that no longer is.

    Attributes:
        code: its name, the same in every run.
        sentence: what is seen, and what it means.
        remedy: what to change, by the names of the settings; "" where it is past.
        cleared: whether it is past.
    """

    code: str
    sentence: str
    remedy: str
    cleared: bool = False

    def to_json(self) -> dict[str, object]:
        """Return what a line of metrics says of it."""
        return asdict(self)


@dataclass(frozen=True)
class _Facts:
    """The lines of a run, sorted by kind and read once.

    Attributes:
        train: numbers of the lines of training, by flat names without the kind.
        spoilt: for each of these, what was not finite.
        evals: numbers of the evaluations.
        ln_k: logarithm of the number of prototypes, the loss of a student that knows nothing.
        share: how much of the run is done, 0 to 1.
    """

    train: list[dict[str, float]]
    spoilt: list[list[str]]
    evals: list[dict[str, float]]
    ln_k: float
    share: float

    def mean(self, name: str, least: int = 1) -> float | None:
        """Return the mean of a number over the latest lines that have it, or None of too few."""
        values = [line[name] for line in self.train[-_LATEST:] if name in line]
        return statistics.fmean(values) if len(values) >= least else None

    def measured(self, name: str) -> list[tuple[int, float]]:
        """Return steps and values of what was evaluated."""
        return [(int(line["step"]), line[name]) for line in self.evals if name in line]


def diagnose(lines: Sequence[Line], *, ln_k: float, steps: int) -> list[Diagnosis]:
    """Say what has gone wrong since the last look, and what has cleared.

    Args:
        lines: of the log, in order within each kind: all evaluations and diagnoses, and the latest of
            training, as `MetricsLog.recent` has them.
        ln_k: natural logarithm of the number of prototypes of the DINO head.
        steps: of the whole run.

    Returns: what is to be written as lines of the kind "diagnosis". Each is reported once, and again only
        after it had cleared.
    """
    facts = _read(lines, ln_k, steps)
    said = open_diagnoses(lines)
    found: list[Diagnosis] = []
    for code, look in _RULES.items():
        seen = look(facts)
        if seen is not None and code not in said:
            found.append(Diagnosis(code, *seen))
        elif seen is None and code in said:
            found.append(Diagnosis(code, _PAST[code], "", cleared=True))
    return found


def open_diagnoses(lines: Sequence[Line]) -> dict[str, Line]:
    """Return the diagnoses that stand, by their codes: the latest line of each, unless that one clears it."""
    latest = {line["code"]: line for line in lines if line["kind"] == "diagnosis"}
    return {code: line for code, line in latest.items() if not line.get("cleared")}


def _read(lines: Sequence[Line], ln_k: float, steps: int) -> _Facts:
    def numbers(line: Line) -> dict[str, float]:
        kind = f"{line['kind']}/"
        named = {name.removeprefix(kind): value for name, value in flat_numbers(line).items()}
        return {**named, "step": float(line["step"])}

    train = [line for line in lines if line["kind"] == "train"]
    last = max((line["step"] for line in lines), default=0)
    return _Facts(
        train=[numbers(line) for line in train],
        spoilt=[list(line.get("not_finite", ())) for line in train],
        evals=[numbers(line) for line in lines if line["kind"] == "eval"],
        ln_k=ln_k,
        share=last / max(steps, 1),
    )


Seen = tuple[str, str] | None
"""The sentence and the remedy, or None."""


def _not_finite(facts: _Facts) -> Seen:
    names = [name for spoilt in facts.spoilt[-_LATEST:] for name in spoilt]
    if not names:
        return None
    return (
        f"{', '.join(dict.fromkeys(names))} became infinite or no number in the latest steps: the "
        "arithmetic overflows, and what such a step teaches is lost",
        "lower optim.lr, lengthen optim.warmup, or set scale.precision=fp32 to see whether bf16 is the "
        "cause; the folder nan/ of the run keeps the batch",
    )


def _student_uniform(facts: _Facts) -> Seen:
    share = facts.mean("loss_over_lnk", least=_LATEST)
    if share is None or facts.share < _WARMING or _still_warming(facts) or abs(1 - share) > _NEAR_UNIFORM:
        return None
    entropy = facts.mean("target_entropy")
    knn = facts.measured("knn")
    best = max(knn, key=lambda measured: measured[1], default=(0, 0.0))
    signs = []
    if entropy is not None and entropy >= _FLAT * facts.ln_k:
        signs.append(f"the targets are flat too, with an entropy of {entropy:.2f} nats")
    if knn and knn[-1][1] < _KNN_FELL * best[1]:
        signs.append(f"kNN fell from {best[1]:.1%} at step {best[0]:,} to {knn[-1][1]:.1%}")
    if not signs and abs(1 - share) > _UNIFORM:
        return None
    gap = f"{abs(1 - share):.2%} {'below' if share <= 1 else 'above'}"
    return (
        f"the DINO loss is {share * facts.ln_k:.3f}, {gap} ln K = {facts.ln_k:.3f}, which is the loss of a "
        f"student that finds all prototypes equally likely{'; ' if signs else ''}{', and '.join(signs)}: the "
        "student answers every image alike and no longer learns",
        "start again with optim.lr a third of what it is or a longer optim.warmup; if it comes back, lower "
        "teacher.temperature, or start teacher.momentum closer to 1",
    )


def _still_warming(facts: _Facts) -> bool:
    """Say whether the learning rate is higher than ever before."""
    rates = [line["lr"] for line in facts.train if "lr" in line]
    return len(rates) > 1 and rates[-1] > max(rates[:-1])


def _one_prototype(facts: _Facts) -> Seen:
    entropy = facts.mean("target_marginal_entropy", least=_LATEST)
    used = facts.mean("prototypes_used", least=_LATEST)
    count = None if used is None else used * math.exp(facts.ln_k)
    if entropy is not None and entropy < math.log(2):
        seen = f"the mean target has an entropy of {entropy:.2f} nats, less than two prototypes make"
    elif count is not None and count < 2:
        seen = f"{count:.1f} of {math.exp(facts.ln_k):,.0f} prototypes are the target of anything"
    else:
        return None
    return (
        f"{seen}: nearly all images get the same target, which is learned by giving one answer to everything",
        "use loss.centring=sinkhorn, which forbids it; with softmax raise the first teacher.temperature and "
        "start teacher.momentum closer to 1",
    )


def _rank_falls(facts: _Facts) -> Seen:
    ranks = facts.measured("rankme")
    if not ranks:
        return None
    peak_step, peak = max(ranks, key=lambda measured: measured[1])
    last = ranks[-1][1]
    if last >= _RANK_FELL * peak:
        return None
    return (
        f"the effective rank of the class tokens fell from {peak:.1f} at step {peak_step:,} to {last:.1f}, "
        f"by {1 - last / peak:.0%}: they gather on ever fewer directions",
        "raise loss.koleo (0.1 is usual), lower optim.lr, or lower the last optim.weight_decay",
    )


def _knn_below_start(facts: _Facts) -> Seen:
    scores = facts.measured("knn")
    if len(scores) < 3 or scores[0][0] > 0 or facts.share < _EARLY:
        return None
    start, late = scores[0][1], scores[-2:]  # two, since one may be chance
    if max(score for _, score in late) >= start:
        return None
    return (
        f"kNN is {late[-1][1]:.1%} after {facts.share:.0%} of the run, and was {start:.1%} before its first "
        "step: training makes the backbone worse",
        "lower optim.lr and start teacher.momentum closer to 1; with init, use preset=continue, which lets "
        "the heads learn alone first",
    )


def _loader_starves(facts: _Facts) -> Seen:
    waits = [
        line["data_wait"] for line in facts.train[1:][-_LATEST:] if "data_wait" in line
    ]  # first: start-up
    if len(waits) < 3 or (wait := statistics.fmean(waits)) <= _STARVING:
        return None
    return (
        f"the device waits for images {wait:.0%} of the time: reading and cutting them is slower than "
        "learning",
        "raise reading.workers if cores are idle; else keep smaller images, on a local disk, or lower "
        "crops.local_count",
    )


def _gradient_spikes(facts: _Facts) -> Seen:
    for at in range(len(facts.train) - 1, max(len(facts.train) - 1 - _SPIKE_LASTS, -1), -1):
        line = facts.train[at]
        before = facts.train[max(0, at - _MEDIAN_OF) : at]
        for name in (name for name in line if name.startswith("grad_norm/")):
            norms = [earlier[name] for earlier in before if name in earlier]
            if len(norms) >= _SPIKE_LASTS and line[name] > _SPIKE * (median := statistics.median(norms)) > 0:
                return (
                    f"the gradient of {name.removeprefix('grad_norm/')} was {line[name]:.3g} at step "
                    f"{line['step']:,.0f}, {line[name] / median:.0f} times its median of {median:.3g}: the "
                    "loss has become steep, and weights may jump",
                    "lower optim.clip to a few times the median, lower optim.lr, or lengthen optim.warmup",
                )
    return None


_RULES: dict[str, Callable[[_Facts], Seen]] = {
    "not-finite": _not_finite,
    "student-uniform": _student_uniform,
    "one-prototype": _one_prototype,
    "rank-falling": _rank_falls,
    "knn-below-start": _knn_below_start,
    "loader-starving": _loader_starves,
    "gradient-spike": _gradient_spikes,
}

_PAST = {
    "not-finite": "all numbers are finite again",
    "student-uniform": "the DINO loss has left ln K",
    "one-prototype": "the targets are spread over the prototypes again",
    "rank-falling": "the effective rank has come back",
    "knn-below-start": "kNN is no longer below its start",
    "loader-starving": "images arrive in time again",
    "gradient-spike": "the gradients are as long as usual again",
}
