"""Figures of sweeps: the best value over time, keys against the objective, objective against test score."""

import json
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from kdbench.reports.figures import COLOURS, Axes, Figure, Sketch, add_legend, new_figure, new_panels
from kdbench.reports.sweep import Peeking, SweepRows, peeking, shown

CHOSEN, OTHERS, BESIDE = COLOURS[0], COLOURS[7], COLOURS[5]
COLUMNS = 4
MANY_VALUES = 4  # numbers with more values than this have an axis, others a tick for each
DECADES = 1.5  # from this range on an axis is logarithmic
TO_THE_END, STOPPED = "trained to the end", "stopped early or running"


def sketches(sweep: SweepRows) -> Iterator[Sketch]:
    """The figures of a sweep's section."""
    why = "" if len(sweep.finished) else "no trial was trained to the end"
    yield Sketch(
        name=f"sweep-{sweep.id}-progress",
        title=f"Best {sweep.objective} so far: {sweep.title}",
        says="The objective of each trial that was trained to the end, when it finished, and the best until "
        "then. The dotted line is the method's default.",
        draw=None if why else partial(_progress, sweep),
        why_not=why,
    )
    yield Sketch(
        name=f"sweep-{sweep.id}-slices",
        title=f"{sweep.objective} against each key: {sweep.title}",
        says="A point is a trial. A cross was stopped early or still runs: it was judged after fewer epochs, "
        "so compare it with other crosses only.",
        draw=None if why else partial(_slices, sweep),
        why_not=why,
    )
    if len(sweep.audits):
        found = peeking(sweep)
        yield Sketch(
            name=f"sweep-{sweep.id}-peeking",
            title=f"Objective and test score: {sweep.title}",
            says="A point is a trial that was trained to the end. The trial that the objective chose and the "
            "best one on test images are far apart only if the objective and the test rank differently.",
            draw=partial(_peeking, found, sweep.objective) if found else None,
            why_not="" if found else "fewer than two trials were audited",
        )


def _progress(sweep: SweepRows) -> Figure:
    ended = sweep.finished.sort_values("ended_at", kind="stable")
    begun = pd.to_datetime(sweep.trials["started_at"]).min()
    minutes = (pd.to_datetime(ended["ended_at"]) - begun).dt.total_seconds() / 60
    figure, ((axes,),) = new_figure(6, 3.2)
    axes.plot(minutes, ended["objective_value"], "o", color=OTHERS, label="trial")
    axes.step(minutes, ended["objective_value"].cummax(), where="post", color=CHOSEN, label="best so far")
    default = ended.loc[ended["is_default"], "objective_value"]
    if len(default):
        axes.axhline(default.iloc[0], color=BESIDE, linestyle=":", label="default")
    axes.set(xlabel="minutes since the first trial began", ylabel=sweep.objective)
    add_legend(figure)
    return figure


def _slices(sweep: SweepRows) -> Figure:
    trials = sweep.trials
    judged = trials[trials["objective_value"].notna() & trials["status"].isin(["ok", "running"])]
    searched = pd.DataFrame([json.loads(one) for one in judged["searched"]])
    whole = judged["trial_id"].isin(sweep.finished["trial_id"]).to_numpy()
    value = judged["objective_value"].to_numpy()
    figure, panels = new_panels(len(sweep.keys), COLUMNS, [TO_THE_END, STOPPED], gap=(0.5, 0.8))
    for axes, key in zip(panels, sweep.keys, strict=True):
        place = _place(axes, searched[key])
        axes.plot(place[~whole], value[~whole], "x", color=OTHERS, markersize=4, label=STOPPED)
        axes.plot(place[whole], value[whole], "o", color=CHOSEN, markersize=4, label=TO_THE_END)
        axes.set_xlabel(key)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel(sweep.objective)
    add_legend(figure)
    return figure


def _place(axes: Axes, values: pd.Series) -> np.ndarray:
    """The place of each value on the horizontal axis, which is set up for these values."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers and values.nunique() > MANY_VALUES:
        place = values.to_numpy(float)
        if place.min() > 0 and np.log10(place.max() / place.min()) > DECADES:
            axes.set_xscale("log")
        return place
    names = sorted({shown(v) for v in values})
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set_xlim(-0.5, len(names) - 0.5)
    return np.array([names.index(shown(v)) for v in values], float)


def _peeking(found: Peeking, metric: str) -> Figure:
    figure, ((axes,),) = new_figure(4.6, 3.4)
    axes.plot(found.objective, found.test, "o", color=OTHERS, label="trial")
    axes.plot(found.objective.max(), found.chosen, "o", color=CHOSEN, label="chosen by the objective")
    best = (found.objective[found.test.argmax()], found.best)
    axes.plot(*best, "o", markerfacecolor="none", markersize=10, color=BESIDE, label="best on test images")
    axes.set(xlabel=f"{metric}, the objective", ylabel=f"{metric}, test images")
    add_legend(figure)
    return figure
