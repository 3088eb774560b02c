"""Test scores of the trials of a finished sweep: how much better a choice by test scores would have looked.

An audit evaluates the detector that a trial kept and trains nothing. So objective and test score belong to
the same weights, and an audit takes seconds. It writes rows of its own (`audits/`) with `selection` "test",
which nothing ranks.
"""

import time
from collections.abc import Callable, Iterator, Set
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kdbench.cell import Cell
from kdbench.engine import evaluate, provenance
from kdbench.engine.build import kept_state
from kdbench.engine.device import threads
from kdbench.engine.ready import Ready, ready_cell
from kdbench.errors import RequestError, number_of
from kdbench.results.schema import CODE, IDENTITY, MEASURED, picked
from kdbench.results.store import AUDITS, DETECTORS, Results
from kdbench.sweeps._plan import SweepPlan
from kdbench.sweeps._trial import PRESET, detector_key, judged_on_test
from kdbench.sweeps.tune import read_sweep

Row = dict[str, Any]


def audit_trials(
    planned: SweepPlan, on_trial: Callable[[Row, float], None], copied: Set[str] = frozenset()
) -> int:
    """Score each trial that was trained to its end and has no scores yet.

    Trials of which only the rows were `copied` have no detector and are left out; returns how many.
    RequestError if another trial has none.
    """
    sweep = planned.sweep
    results = Results(sweep.place.results)
    ended = [row for row in read_sweep(sweep) if row["status"] == "ok" and not row["stopped_early"]]
    todo = [row for row in ended if not results.storage.exists(AUDITS.name(row["trial_id"]))]
    lost = [row for row in todo if not results.storage.exists(DETECTORS.name(row["trial_id"]))]
    left_out = {row["trial_id"] for row in lost} & copied
    if len(lost) > len(left_out):
        raise RequestError(
            [
                f"{len(lost)} of {number_of(len(ended), 'trial')} kept no detector, first: "
                f"{results.storage.path(DETECTORS.name(lost[0]['trial_id']))}. Sweep again without "
                "--discard-detectors, with another --results"
            ]
        )
    for row in (row for row in todo if row["trial_id"] not in left_out):
        with threads(sweep.place.num_threads):
            scored = list(_audit(planned, row))
        results.write(AUDITS, scored)
        on_trial(row, float(np.mean([one[sweep.objective] for one in scored])))
    return len(left_out)


def _audit(planned: SweepPlan, trial: Row) -> Iterator[Row]:
    """A row per model and category."""
    tensors = kept_state(Results(planned.sweep.place.results), trial["trial_id"])
    for base in planned.sweep.cells:
        cell = replace(base, config=trial["config"])
        ready = ready_cell(cell, planned.sweep.place)
        prefix = detector_key(cell, "")
        state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        ready.method.load_detector(state)
        yield from _scored(trial, cell, ready)


def _scored(trial: Row, cell: Cell, ready: Ready) -> Iterator[Row]:
    machine = provenance.machine_provenance(ready.device)
    trial_facts = picked(trial, "schema_version", "trial_id", "sweep_id", "dataset_categories")
    common = {
        **picked(asdict(cell) | trial_facts, *IDENTITY, "teacher_sha256"),
        **trial_facts,
        "selection": "test",
        "preset": "exact",
        "metric_version": trial["metric_version"],
        "precision": ready.precision,
        **picked(machine, "device", "device_name", "num_threads", "host"),
        **picked(provenance.code_provenance(), *CODE),
    }
    for category, store in zip(ready.categories, ready.stores, strict=True):
        clock = time.perf_counter()
        judged = judged_on_test(ready, category, store, cached=False)
        scored = evaluate.score(ready.method, judged.batches, lambda count: None)
        values = evaluate.measure(scored, judged.truth, PRESET).metrics
        yield common | {
            "category": category.name,
            **picked(values, *MEASURED),
            "num_test": len(category.test),
            "num_defective": int(judged.truth.label.sum()),
            "evaluate_s": time.perf_counter() - clock,
        }
