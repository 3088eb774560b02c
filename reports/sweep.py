"""The section of a sweep: the best configurations, the importance of keys, the gain of peeking.

Only trials that were trained to the end can be chosen. The others were judged earlier, on another detector
than the one that `kdbench run` would train.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import number_of
from kdbench.reports.tables import Table, Value, number, percent, text

TOP = 10
MIN_TRIALS = 10  # below, an importance is noise
FOLDS, TREES = 5, 50
REPEATS = 10  # permutations of each key on each fold
LEGEND = (
    "A trial is one configuration. It is judged on held-out normal images, each once as it is and once with "
    "a synthetic defect. Compare these values with each other, never with those of the leaderboard; see "
    "docs/sweeps.md."
)
PEEKED = "Chosen on test images: this shows what that does. It is never ranked and never a result."


@dataclass(frozen=True, kw_only=True)
class SweepRows:
    """The rows of one sweep."""

    trials: pd.DataFrame
    audits: pd.DataFrame  # test metrics of trials, a row per category and seed; empty without `--audit`

    @property
    def id(self) -> str:
        return str(self.trials["sweep_id"].iloc[0])

    @property
    def objective(self) -> str:
        """The metric that trials were judged by."""
        return str(self.trials["objective"].iloc[0])

    @property
    def title(self) -> str:
        """The heading of its section."""
        first = self.trials.iloc[0]
        return f"Sweep of {first['method']}: {first['dataset']}, {first['setting']} ({self.id})"

    @property
    def finished(self) -> pd.DataFrame:
        """The trials that were trained to the end, in the order in which they began."""
        whole = (self.trials["status"] == "ok") & ~self.trials["stopped_early"].astype(bool)
        return self.trials[whole].sort_values(["started_at", "trial_id"], kind="stable")

    @property
    def keys(self) -> list[str]:
        """The keys of the configuration that were searched."""
        return sorted({key for searched in self.trials["searched"] for key in json.loads(searched)})


def sweeps(trials: pd.DataFrame, audits: pd.DataFrame) -> list[SweepRows]:
    """The sweeps of a results folder, by their ids."""
    return [
        SweepRows(trials=own, audits=audits[audits["sweep_id"] == sweep_id])
        for sweep_id, own in trials.groupby("sweep_id")
    ]


def tables(sweep: SweepRows) -> Iterator[Table]:
    """The tables of a sweep's section."""
    yield best_trials(sweep)
    yield importance_table(sweep)
    if len(sweep.audits):
        yield peeking_table(sweep)


def headline(sweep: SweepRows) -> str:
    """The lines of a sweep for the terminal."""
    lines = [sweep.title, f"  {_counts(sweep)}"]
    if best := find_best(sweep.trials.to_dict("records")):
        lines.append(f"  best {sweep.objective} {best['objective_value']:.4f}{_gain(sweep, best)}")
    return "\n".join(lines)


def find_best(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the highest objective of those trained to the end; of equal ones the first."""
    ended = [row for row in rows if row["status"] == "ok" and not row["stopped_early"]]
    ended = sorted(ended, key=lambda row: (row["started_at"], not row["is_default"]))
    return max(ended, key=lambda row: row["objective_value"], default=None)


def best_trials(sweep: SweepRows) -> Table:
    """The ten best trials that were trained to the end, by the keys that were searched."""
    ranked = sweep.finished.sort_values("objective_value", ascending=False, kind="stable").head(TOP)
    body = []
    for rank, trial in enumerate(ranked.to_dict("records"), 1):
        searched = json.loads(trial["searched"])
        name = trial["trial_id"].rpartition("-")[2] + (" (default)" if trial["is_default"] else "")
        value = number(trial["objective_value"], f"{trial['objective_value']:.4f}")
        body.append((number(rank), text(name), value, *(_searched(searched[key]) for key in sweep.keys)))
    return Table(
        title=f"Best trials: {sweep.title}",
        head=("rank", "trial", sweep.objective, *sweep.keys),
        body=tuple(body),
        keys=("trial",),
        notes=tuple(_notes(sweep)),
    )


def _notes(sweep: SweepRows) -> Iterator[str]:
    first, peeked = sweep.trials.iloc[0], bool((sweep.trials["selection"] == "test").all())
    if peeked:
        yield PEEKED
    best = find_best(sweep.trials.to_dict("records"))
    if best is None:
        yield "No trial was trained to the end yet."
    judges = "test images" if peeked else "synthetic defects on held-out normal images"
    categories, seeds = ", ".join(first["categories"]), ", ".join(map(str, first["seeds"]))
    searched = f"Search {first['search']}, scheduler {first['scheduler']}; categories {categories}"
    yield (
        f"Objective: {sweep.objective} of {judges}. {searched}; seeds {seeds}; "
        f"{number_of(first['epochs'], 'epoch')}. {_counts(sweep)}."
    )
    if best and (gain := _gain(sweep, best)):
        yield f"The best trial has {best['objective_value']:.4f}{gain}."
    if not peeked:
        yield LEGEND


def _counts(sweep: SweepRows) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in sweep.trials["status"].value_counts().items())
    return f"Trials: {counts}; {int(sweep.trials['stopped_early'].sum())} of them stopped early"


def _gain(sweep: SweepRows, best: dict[str, Any]) -> str:
    """How far the best trial is from the default; "" if that was not trained to the end."""
    defaults = sweep.finished.loc[sweep.finished["is_default"], "objective_value"]
    if defaults.empty:
        return ""
    default = float(defaults.iloc[0])
    return f", the default {default:.4f} ({best['objective_value'] - default:+.4f})"


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much each key matters for a random forest that predicts the objective, and how well it does."""

    epoch: int  # at which all of the trials were compared
    num_trials: int
    explained: float  # R^2 on trials that the forest has not seen
    drop: dict[str, float]  # key -> the loss in R^2 if its values are shuffled; the largest first


def importance(sweep: SweepRows, seed: int = 0) -> Importance | str:
    """Permutation importance of the searched keys, on folds that the forest has not seen; or why not.

    Trials that were stopped early count, too: all are compared at the last epoch that all of them reached.
    """
    judged = sweep.trials[sweep.trials["objective_epochs"].map(len) > 0]
    if len(judged) < MIN_TRIALS:
        return f"{number_of(len(judged), 'trial')} cannot say which key matters: {MIN_TRIALS} are needed"
    epoch = int(min(max(epochs) for epochs in judged["objective_epochs"]))
    histories = zip(judged["objective_epochs"], judged["objective_history"], strict=True)
    value = np.array([_value_at(epoch, *history) for history in histories])
    if np.ptp(value) == 0:
        return f"all {len(judged)} trials have the same objective at epoch {epoch}: no key matters"
    searched = pd.DataFrame([json.loads(one) for one in judged["searched"]])[sweep.keys]
    codes = np.column_stack([_codes(searched[key]) for key in sweep.keys])
    unexplained, lost = _errors(codes, value, seed)
    spread = np.sum((value - value.mean()) ** 2)
    drop = lost / spread
    return Importance(
        epoch=epoch,
        num_trials=len(judged),
        explained=float(1 - unexplained / spread),
        drop={sweep.keys[i]: float(drop[i]) for i in np.argsort(-drop, kind="stable")},
    )


def _errors(codes: np.ndarray, value: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """Sum of squared errors on unseen folds; and what shuffling each column [K] of them adds to it."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    # One generator for all folds: with a seed for each, folds of one size would be shuffled alike.
    generator = np.random.RandomState(seed)
    plain, lost = 0.0, np.zeros(codes.shape[1])
    for fitted, unseen in KFold(FOLDS, shuffle=True, random_state=seed).split(codes):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=seed)
        forest.fit(codes[fitted], value[fitted])
        shuffled = permutation_importance(
            forest,
            codes[unseen],
            value[unseen],
            scoring="neg_mean_squared_error",
            n_repeats=REPEATS,
            random_state=generator,
        )
        plain += float(np.sum((forest.predict(codes[unseen]) - value[unseen]) ** 2))
        lost += len(unseen) * shuffled.importances_mean
    return plain, lost


def importance_table(sweep: SweepRows) -> Table:
    """The importance of each key, or a note that says why there is none."""
    title, head = f"Importance of keys: {sweep.title}", ("key", "lost, %")
    found = importance(sweep)
    if isinstance(found, str):
        return Table(title=title, head=head, body=(), keys=("key",), notes=(f"No importance: {found}.",))
    note = (
        f"From {found.num_trials} trials at epoch {found.epoch}, the last that all of them reached. A random "
        f"forest explains {100 * found.explained:.0f} % of the variance of the objective on trials that it "
        "has not seen. The importance of a key is how much of that is lost when its values are shuffled."
    )
    if found.explained <= 0:
        note = f"{note} That is nothing: the trials do not show which key matters."
        return Table(title=title, head=head, body=(), keys=("key",), notes=(note,))
    body = tuple((text(key), number(drop, f"{100 * drop:.1f}")) for key, drop in found.drop.items())
    return Table(title=title, head=head, body=body, keys=("key",), notes=(note,))


@dataclass(frozen=True, kw_only=True)
class Peeking:
    """Objective and test score of the trials of a sweep, and what choosing by the latter would change."""

    objective: np.ndarray
    test: np.ndarray  # mean over categories and seeds
    chosen: float  # test score of the trial with the best objective
    best: float  # the best test score of all trials
    default: float | None
    spearman: float
    low: float
    high: float


def peeking(sweep: SweepRows) -> Peeking | None:
    """Compare the honest choice with the one on test images; None with fewer than two audited trials."""
    ended = sweep.finished
    scores = sweep.audits.groupby("trial_id")[sweep.objective].mean()
    both = ended[ended["trial_id"].isin(scores.index)]
    if len(both) < 2:
        return None
    test, objective = scores[both["trial_id"]].to_numpy(), both["objective_value"].to_numpy()
    best = find_best(both.to_dict("records"))
    assert best is not None
    default = both.loc[both["is_default"], "trial_id"]
    correlation, low, high = spearman(objective, test)
    return Peeking(
        objective=objective,
        test=test,
        chosen=float(scores[best["trial_id"]]),
        best=float(test.max()),
        default=float(scores[default.iloc[0]]) if len(default) else None,
        spearman=correlation,
        low=low,
        high=high,
    )


def spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Rank correlation with a 95 % interval: NaN for constant values, no interval below four pairs.

    Fisher's z with the variance (1 + r^2 / 2) / (n - 3) of Bonett and Wright (Psychometrika 65, 2000,
    doi 10.1007/BF02294183).
    """
    from scipy.stats import spearmanr

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan"), float("nan")
    r = float(spearmanr(x, y).statistic)
    if len(x) < 4 or abs(r) > 1 - 1e-12:
        return r, float("nan"), float("nan")
    reach = 1.959964 * np.sqrt((1 + r**2 / 2) / (len(x) - 3))
    return r, float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach))


def peeking_table(sweep: SweepRows) -> Table:
    """The gain of a choice by test images: test scores of the default, the chosen and the best trial."""
    title = f"What peeking would have bought: {sweep.title}"
    head = ("configuration", f"test {sweep.objective}, %")
    found = peeking(sweep)
    if found is None:
        why = "Fewer than two trials were audited."
        return Table(title=title, head=head, body=(), keys=("configuration",), notes=(why,))
    scores = {
        "default": found.default,
        "chosen by the objective": found.chosen,
        "best of all trials on test images": found.best,
        "what peeking would have bought": found.best - found.chosen,
    }
    body = tuple((text(name), percent(score)) for name, score in scores.items() if score is not None)
    return Table(title=title, head=head, body=body, keys=("configuration",), notes=tuple(_peeked(found)))


def _peeked(found: Peeking) -> Iterator[str]:
    yield (
        f"Of {len(found.test)} trials that were trained to the end. The best test score of many trials is by "
        "itself too high an estimate: a part of it is luck with these test images."
    )
    interval = "" if np.isnan(found.low) else f" (95 % interval {found.low:.2f} to {found.high:.2f})"
    ranks = f"{found.spearman:.2f}{interval}"
    if np.isnan(found.spearman):
        ranks = "not defined, one of them is constant"
    yield f"Rank correlation (Spearman) of the objective with the test score over these trials: {ranks}."


def _value_at(epoch: int, epochs: Sequence[int], history: Sequence[float]) -> float:
    """The last value reported up to this epoch."""
    return float(history[int(np.searchsorted(epochs, epoch, "right")) - 1])


def _codes(values: pd.Series) -> np.ndarray:
    """Numbers as they are, other values by the order of their texts: a forest needs no more."""
    if all(isinstance(v, int | float) for v in values):
        return values.to_numpy(float)
    texts = [json.dumps(v) for v in values]
    order = {text: i for i, text in enumerate(sorted(set(texts)))}
    return np.array([order[text] for text in texts], float)


def shown(value: object) -> str:
    """A value of a configuration as people write it."""
    return value if isinstance(value, str) else json.dumps(value)


def _searched(value: object) -> Value:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, shown(value))
    return text(shown(value))
