"""Adapters trained without labels: the room's verb, and its dry run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from dinov2kit.adapter import save_adapter
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError

from .adapt_config import AdaptConfig, AdaptPlan, AdaptReport, Progress
from .adapt_run import AdaptRun
from .held_out import Judge, Measure, measure

_SAVE_SECONDS = 60.0


def adapt(
    config: AdaptConfig,
    *,
    advance: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> AdaptReport:
    """Train an adapter for keypoint matching on photos without labels, measure it, and write it.

    The backbone stays as it is. Two views of one photo have known correspondence; with `pseudo`, pairs of
    photos that raw features label by themselves come in. The losses are a symmetric InfoNCE over keypoints
    and a cross-entropy between similarity maps and Gaussians around the true places.

    A run that was stopped goes on where it was when it is called again with the same settings: on a CPU the
    adapter is then bitwise that of a run without a stop.

    Args:
        config: the settings.
        advance: called after each step and each pair measured.
        stop: asked after each step, whether to save the unfinished run and raise `KeyboardInterrupt`.

    Returns:
        what was done, with raw tokens beside adapted ones on photos held out. An adapter that lost anywhere
        is written all the same, marked as not recommended.

    Raises:
        ArgumentError: the settings make no sense, there are too few photos, or the file exists.
        ImageError: photos cannot be found, or more than half of them cannot be read.
        WeightsError: the backbone cannot be had, or the unfinished run is damaged.
        KitError: the loss is not finite.
        KeyboardInterrupt: `stop` said so; the unfinished run is saved.

    Source: the recipes of Zhang et al. (GeoAware-SC), 2024, Dünkel et al. (DIY-SC), 2025, and MARCO.
    """
    started = time.monotonic()
    _check_out(config)
    run = AdaptRun(config, Encoder(config.model, device=config.device, precision=config.precision))
    resumed_at = run.restore()
    saved = time.monotonic()
    while run.step < config.steps:
        loss = run.update()
        stopping = stop()
        due = run.step % config.save_every == 0 or run.step == config.steps
        if stopping or due or time.monotonic() - saved > _SAVE_SECONDS:
            run.save()
            saved = time.monotonic()
        advance(Progress("train", run.step, config.steps, loss))
        if stopping:
            raise KeyboardInterrupt
    measures = _measured(run, advance, stop)
    tenth = max(1, config.steps // 10)
    report = AdaptReport(
        out=config.out,
        model=run.encoder.name,
        photos=len(run.training.paths),
        held_out=len(run.held_out.paths),
        steps=config.steps,
        resumed_at=resumed_at,
        loss_start=sum(run.losses[:tenth]) / tenth,
        loss_end=sum(run.losses[-tenth:]) / tenth,
        measures=measures,
        unreadable=tuple(run.training.paths[index] for index in sorted(run.training.unreadable)),
        seconds=time.monotonic() - started,
    )
    kept = ("photos", "held_out", "loss_start", "loss_end", "measures")
    facts = {name: value for name, value in asdict(report).items() if name in kept}
    save_adapter(
        run.finished({"recommended": report.recommended, **facts, "settings": config.learning()}), config.out
    )
    run.path.unlink(missing_ok=True)
    return report


def plan_adapt(config: AdaptConfig) -> AdaptPlan:
    """Return what `adapt` would do, and how long it would take, from one step that is not kept.

    Raises:
        ArgumentError: as for `adapt`.
        ImageError: as for `adapt`.
        WeightsError: as for `adapt`.
    """
    _check_out(config)
    run = AdaptRun(config, Encoder(config.model, device=config.device, precision=config.precision))
    done = run.restore()
    started = time.monotonic()
    torch.autograd.backward(run.losses_of(done).sum())
    seconds = time.monotonic() - started
    return AdaptPlan(
        out=config.out,
        model=run.encoder.name,
        device=str(run.encoder.device),
        precision=run.encoder.precision,
        dim=run.encoder.dim,
        parameters=sum(parameter.numel() for parameter in run.adapter.parameters()),
        photos=len(run.training.paths),
        held_out=len(run.held_out.paths),
        pairs=len(run.pairs),
        cells=run.cells,
        steps=config.steps,
        done=done,
        seconds=seconds * (config.steps - done),
    )


def _measured(
    run: AdaptRun, advance: Callable[[Progress], None], stop: Callable[[], bool]
) -> tuple[Measure, ...]:
    """Judge the adapter; the run is saved, so that it can be stopped here too."""
    run.adapter.eval()
    done, total = 0, 2 * len(run.held_out.paths) + len(run.pairs)

    def count() -> None:
        nonlocal done
        done += 1
        advance(Progress("measure", done, total))
        if stop():
            raise KeyboardInterrupt

    judge = Judge(run.encoder, run.adapter, run.config.size)
    return measure(judge, run.held_out, run.pairs, advance=count)


def _check_out(config: AdaptConfig) -> None:
    out = config.out
    if out.suffix != ".safetensors":
        raise ArgumentError(f"cannot write an adapter as {out.name!r}", hint="wanted out=NAME.safetensors")
    if out.exists() and not config.overwrite:
        raise ArgumentError(f"{out} exists already", hint="name another file, or add overwrite=true")
    if not out.parent.is_dir():
        raise ArgumentError(f"cannot write {out}: there is no folder {out.parent}")
