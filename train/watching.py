"""What is seen of a run while it goes on: metrics, measurements, diagnoses, and the exported model."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from .agreement import build_agreement
from .diagnosis import diagnose
from .metrics import MetricsLog, Sink, open_sinks
from .pixels import PixelRules
from .probe import Embed, Probe, ProbeResult
from .probe_images import labelled_probe, views_probe
from .run_folder import RunFolder
from .run_setup import Setup
from .schedules import Rates
from .targets import TargetStatistics
from .train_report import TrainProgress
from .trainer import Meter, Trainer


class Watcher:
    """Watches a run.

    Args:
        setup: of the run.
        trainer: what is watched.
        folder: where lines and exports go.
        resumed_at: the step of the checkpoint that the run goes on from; None for a new run.

    Attributes:
        best: the line of the best measurement; None before the first.
        last_measure: the line of the last one; empty before it.
    """

    def __init__(self, setup: Setup, trainer: Trainer, folder: RunFolder, *, resumed_at: int | None) -> None:
        self.setup, self.trainer, self.folder = setup, trainer, folder
        self._log: MetricsLog | None = None
        self._sinks: list[Sink] = []
        self.best: Mapping[str, Any] | None = None
        self.last_measure: Mapping[str, Any] = {}
        self._last: Mapping[str, Any] = {}
        self._new: tuple[str, ...] = ()
        self._since = time.monotonic()
        if trainer.world.leads:
            self._log = MetricsLog.open(folder.path, -1 if resumed_at is None else resumed_at)
            self._sinks = open_sinks(setup.config.sinks, folder.path, resume_step=resumed_at)
            for line in self._log.recent:
                if line["kind"] == "eval":
                    self._remember(line)
        self._probe = build_probe(setup)
        self._agreement = build_agreement(setup, trainer.world)

    def progress(self, stage: str) -> TrainProgress:
        """Return how far the run is; a diagnosis is told once."""
        assert self.setup.config.steps is not None
        told, self._new = self._new, ()
        line = {**self._last, **{f"eval_{name}": value for name, value in self.last_measure.items()}}
        return TrainProgress(
            stage=stage,
            step=self.trainer.step,
            steps=self.setup.config.steps,
            images_per_second=float(self._last.get("images_per_second", 0.0)),
            line=line,
            diagnoses=told,
        )

    def log(self, meter: Meter, rates: Rates, statistics: TargetStatistics | None, *, waited: float) -> None:
        """Write a line about the steps since the last one.

        Args:
            meter: what they measured; it starts anew.
            rates: of the last of them.
            statistics: of its targets.
            waited: seconds that they waited for images.
        """
        seconds, config = max(time.monotonic() - self._since, 1e-9), self.setup.config
        steps, means = meter.steps, meter.means() if meter.steps else {}
        self._since = time.monotonic()
        norms = {name.removeprefix("grad_norm/"): means.pop(name) for name in list(means) if "/" in name}
        line: dict[str, Any] = {
            "kind": "train",
            **self._place(),
            "epoch": self.trainer.step * config.batch / len(self.setup.images),
            **means,
            "grad_norm": norms,
            "lr": rates.lr,
            "weight_decay": rates.weight_decay,
            "momentum": rates.momentum,
            "temperature": rates.temperature,
            "images_per_second": steps * config.batch / seconds,
            "data_wait": min(waited / seconds, 1.0),
            "memory_bytes": memory_in_use(self.trainer.world.device),
        }
        if "dino_global" in means:
            terms = ("dino_local", "dino_global") if config.crops.local_count else ("dino_global",)
            mean = sum(means[name] for name in terms) / len(terms)
            line["loss_over_lnk"] = mean / math.log(config.loss.prototypes)
        if statistics is not None:
            line["target_entropy"] = statistics.entropy
            line["target_marginal_entropy"] = statistics.marginal_entropy
            line["prototypes_used"] = statistics.prototypes_used
        self._last = self._write(line)
        self._diagnose()

    def measure(self) -> None:
        """Measure the moving average and export it; all processes take part."""
        world, chosen, started = self.trainer.world, self.setup.config.eval, time.monotonic()
        line: dict[str, Any] = {"kind": "eval", **self._place()}
        if self._probe is not None:
            line |= self._probed(self._probe, self.trainer.embed, rankme=chosen.rankme).to_json()
            if self.trainer.step == 0:
                line["knn_pixels"] = self._probe.control("pixels")
                if (teacher := self._teacher()) is not None:
                    line["knn_teacher"] = self._probed(self._probe, teacher, rankme=False).knn
        if self._agreement is not None:
            line |= self._agreement.measure(self.trainer.networks, world)
        if self._probe is not None or self._agreement is not None:
            self._remember(self._write(line))
            self._diagnose()
        self.trainer.networks.release_teacher()
        self.folder.export(self.trainer, {"measured": dict(self.last_measure)})
        self._since += time.monotonic() - started  # what it took is no part of the steps around it

    def _probed(self, probe: Probe, embed: Embed, *, rankme: bool) -> ProbeResult:
        world = self.trainer.world
        return probe.measure(
            embed,
            rank=world.rank,
            world=world.size,
            gather=world.gather if world.size > 1 else None,
            rankme=rankme,
        )

    def _teacher(self) -> Embed | None:
        """Return what embeds images by the teacher; None where it cannot be asked."""
        lessons, config, world = self.setup.lessons, self.setup.config, self.trainer.world
        return None if lessons is None else lessons.embedder(config, world)

    def _place(self) -> dict[str, int]:
        return {"step": self.trainer.step, "images": self.trainer.step * self.setup.config.batch}

    def _write(self, line: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._log is None:
            return line
        written = self._log.append(line)
        for sink in self._sinks:
            sink(written)
        return written

    def _remember(self, line: Mapping[str, Any]) -> None:
        self.last_measure = line
        score = line.get("knn")
        if score is not None and (self.best is None or score >= self.best["knn"]):
            self.best = line

    def _diagnose(self) -> None:
        if self._log is None:
            return
        config = self.setup.config
        assert config.steps is not None
        found = diagnose(self._log.recent, ln_k=math.log(config.loss.prototypes), steps=config.steps)
        for diagnosis in found:
            self._write({"kind": "diagnosis", **self._place(), **diagnosis.to_json()})
            self._new += (f"{diagnosis.sentence} {diagnosis.remedy}".strip(),)


def build_probe(setup: Setup) -> Probe | None:
    """Return what a run is measured on; None where there is nothing to measure on.

    That is labelled images if they are named; else, where the training images have labels, held-out images
    against training images; else two views of each held-out image.
    """
    chosen, reading, size = setup.config.eval, setup.config.reading, setup.config.crops.global_size
    labelled = partial(
        labelled_probe,
        size=size,
        rules=PixelRules(reading.channels, reading.window),
        most=chosen.most,
        k=chosen.k,
        seed=setup.config.seed,
    )
    if chosen.knn is not None:
        return labelled(chosen.knn)
    if setup.held_out is None:
        return None
    if len(set(setup.images.labels or ())) > 1:
        return labelled(setup.images, unseen=setup.held_out)
    return views_probe(setup.held_out, size=size, most=chosen.most)


def memory_in_use(device: torch.device) -> int:
    """Return the most bytes that this process has held so far: on the GPU, or in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
