"""What sweeps found: the best configurations, what mattered, what peeking at test images would have bought.

Only trials that were trained to the end can be chosen: the others were judged earlier, on another detector
than the one that `kdbench run` would train.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kdbench.files import written_aside
from kdbench.results.store import AUDITS, TRIALS, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 10
MIN_TRIALS = 10  # below, an importance is noise
REPEATS = 20  # permutations of each key on each fold
FOLDS, TREES = 5, 100
DPI = 150
LEGEND = """A trial is one configuration, judged without any test image: by a metric of held-out normal
images, each once as it is and once with a synthetic defect. These values are not comparable with those of the
leaderboard; only differences between trials mean something. See docs/sweeps.md.
"""


def write_sweeps(results: str | Path, folder: Path) -> list[Path]:
    """Write `sweep.md` and its figures, of all sweeps of a results folder; returns its path, then theirs."""
    path = folder / "sweep.md"
    said, figures = sweep_sections(results, folder)
    with written_aside(path) as aside:
        aside.write_text(f"# Sweeps\n\n{said}", encoding="utf-8")
    return [path, *figures]


def sweep_sections(results: str | Path, folder: Path) -> tuple[str, list[Path]]:
    """Markdown of all sweeps, empty if there are none, and the files of their figures in `folder/figures`."""
    trials, audits = read(results, TRIALS).to_pandas(), read(results, AUDITS).to_pandas()
    sections = [
        _section(group, audits[audits["sweep_id"] == sweep_id], folder)
        for sweep_id, group in trials.groupby("sweep_id")
    ]
    files = [file for _, own in sections for file in own]
    return "\n".join([LEGEND, *(said for said, _ in sections)]) if sections else "", files


def find_best(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the highest objective of those trained to the end; of equal ones the first."""
    ended = [row for row in rows if row["status"] == "ok" and not row["stopped_early"]]
    ended = sorted(ended, key=lambda row: (row["started_at"], not row["is_default"]))
    return max(ended, key=lambda row: row["objective_value"], default=None)


def _section(trials: pd.DataFrame, audits: pd.DataFrame, folder: Path) -> tuple[str, list[Path]]:
    first = trials.iloc[0]
    rows = trials.to_dict("records")
    best, default = find_best(rows), next((row for row in rows if row["is_default"]), None)
    title = f"## Sweep of {first['method']}: {first['dataset']}, {first['setting']} ({first['sweep_id']})\n"
    statuses = trials["status"].value_counts()
    said = ", ".join(f"{count} {status}" for status, count in statuses.items())
    stopped = int(trials["stopped_early"].sum())
    parts = [
        title,
        f"Objective: {_objective(first)}. Search {first['search']}, scheduler {first['scheduler']}; "
        f"categories {', '.join(first['categories'])}; seeds {', '.join(map(str, first['seeds']))}; "
        f"{first['epochs']} epochs. Trials: {said}; {stopped} of them stopped early.\n",
    ]
    if first["selection"] == "test":
        parts.append("**Chosen on test images: shows what that does, is never ranked and never a result.**\n")
    if best and default and default["status"] == "ok" and not default["stopped_early"]:
        gain = best["objective_value"] - default["objective_value"]
        parts.append(
            f"The default has {default['objective_value']:.4f}, the best trial {best['objective_value']:.4f} "
            f"({gain:+.4f}).\n"
        )
    lines, files = _figures(trials, audits, folder)
    parts += [top_table(trials), importance_text(trials), *lines]
    if len(audits):
        parts.append(peeking_text(trials, audits))
    return "\n".join(parts), files


def _objective(trial: pd.Series) -> str:
    seen = "test images" if trial["selection"] == "test" else "synthetic defects on held-out normal images"
    return f"{trial['objective']} of {seen}"


def top_table(trials: pd.DataFrame) -> str:
    """The ten best trials that were trained to the end, by the keys that were searched."""
    ended = _ended(trials).sort_values("objective_value", ascending=False, kind="stable")
    if ended.empty:
        return "No trial was trained to the end yet.\n"
    keys = _keys(trials)
    body = []
    for rank, (_, trial) in enumerate(ended.head(TOP).iterrows(), 1):
        searched = json.loads(trial["searched"])
        name = trial["trial_id"].rpartition("-")[2] + (" (default)" if trial["is_default"] else "")
        body.append(
            [str(rank), name, f"{trial['objective_value']:.4f}", *(_plain(searched[key]) for key in keys)]
        )
    return _table(["rank", "trial", ended["objective"].iloc[0], *keys], body)


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much each key matters for a random forest that predicts the objective, and how well it does."""

    epoch: int  # at which all of the trials were compared
    num_trials: int
    explained: float  # R^2 on trials that the forest has not seen
    drop: dict[str, float]  # of R^2 there, when the key's values are shuffled; largest first


def importance(trials: pd.DataFrame, seed: int = 0) -> Importance | str:
    """Permutation importance of the searched keys, on folds that the forest was not fitted to; or why not.

    Trials that were stopped early count, too: all are compared at the last epoch that each of them reached.
    """
    judged = trials[trials["objective_epochs"].map(len) > 0]
    if len(judged) < MIN_TRIALS:
        return f"{len(judged)} trials are too few to say which key matters: {MIN_TRIALS} are needed"
    epoch = int(min(max(epochs) for epochs in judged["objective_epochs"]))
    histories = zip(judged["objective_epochs"], judged["objective_history"], strict=True)
    value = np.array([_value_at(epoch, *history) for history in histories])
    if np.ptp(value) == 0:
        return f"all {len(judged)} trials have the same objective at epoch {epoch}: no key matters"
    keys = _keys(trials)
    searched = pd.DataFrame([json.loads(text) for text in judged["searched"]])[keys]
    codes = np.column_stack([_codes(searched[key]) for key in keys])
    unexplained, shuffled = _errors(codes, value, seed)
    spread = np.sum((value - value.mean()) ** 2)
    drop = (shuffled - unexplained) / spread
    return Importance(
        epoch=epoch,
        num_trials=len(judged),
        explained=float(1 - unexplained / spread),
        drop={keys[i]: float(drop[i]) for i in np.argsort(-drop, kind="stable")},
    )


def _errors(codes: np.ndarray, value: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """Sum of squared errors on unseen folds; and the same with each column [K] shuffled, mean of REPEATS."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    generator, num_keys = np.random.default_rng(seed), codes.shape[1]
    plain, shuffled = 0.0, np.zeros(num_keys)
    for fitted, unseen in KFold(FOLDS, shuffle=True, random_state=seed).split(codes):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=seed)
        forest.fit(codes[fitted], value[fitted])
        tried = np.tile(codes[unseen], (num_keys, REPEATS, 1, 1))  # [K,REPEATS,N,K], predicted all at once
        for key in range(num_keys):
            tried[key, ..., key] = generator.permuted(tried[key, ..., key], axis=1)
        found = forest.predict(tried.reshape(-1, num_keys)).reshape(tried.shape[:3])
        plain += float(np.sum((forest.predict(codes[unseen]) - value[unseen]) ** 2))
        shuffled += np.sum((found - value[unseen]) ** 2, axis=2).mean(1)
    return plain, shuffled


def importance_text(trials: pd.DataFrame) -> str:
    """The importance of each key as Markdown, or why there is none."""
    found = importance(trials)
    if isinstance(found, str):
        return f"Importance of keys: {found}.\n"
    said = (
        f"Importance of keys, from {found.num_trials} trials at epoch {found.epoch}, the last that all of "
        f"them reached. A random forest explains {100 * found.explained:.0f} % of the variance of the "
        "objective on trials that it has not seen; a key's importance is how much of that is lost when its "
        "values are shuffled there."
    )
    if found.explained <= 0:
        return f"{said} That is nothing: the trials do not show which key matters.\n"
    body = [[key, f"{100 * drop:.1f}"] for key, drop in found.drop.items()]
    return f"{said}\n\n{_table(['key', 'lost, %'], body)}"


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


def peeking(trials: pd.DataFrame, audits: pd.DataFrame) -> Peeking | None:
    """Compare the honest choice with the one on test images; None with fewer than two audited trials."""
    ended = _ended(trials)
    metric = ended["objective"].iloc[0] if len(ended) else ""
    scores = audits.groupby("trial_id")[metric].mean() if metric else pd.Series(dtype=float)
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
    from scipy.stats import rankdata

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan"), float("nan")
    r = float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    if len(x) < 4 or abs(r) > 1 - 1e-12:
        return r, float("nan"), float("nan")
    reach = 1.959964 * np.sqrt((1 + r**2 / 2) / (len(x) - 3))
    return r, float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach))


def peeking_text(trials: pd.DataFrame, audits: pd.DataFrame) -> str:
    """What peeking would have bought, as Markdown."""
    found = peeking(trials, audits)
    if found is None:
        return "### What peeking would have bought\n\nFewer than two trials were audited.\n"
    metric = trials["objective"].iloc[0]
    body = [
        ["chosen without test images", f"{100 * found.chosen:.2f}"],
        ["best of all trials on test images", f"{100 * found.best:.2f}"],
        ["**what peeking would have bought**", f"**{100 * (found.best - found.chosen):.2f}**"],
    ]
    if found.default is not None:
        body.insert(0, ["default", f"{100 * found.default:.2f}"])
    interval = "" if np.isnan(found.low) else f" (95 % interval {found.low:.2f} to {found.high:.2f})"
    ranks = (
        "not defined, one of them is constant"
        if np.isnan(found.spearman)
        else f"{found.spearman:.2f}{interval}"
    )
    return (
        f"### What peeking would have bought\n\n{_table(['configuration', f'test {metric}, %'], body)}\n"
        f"Of {len(found.test)} trials that were trained to the end. The best test score of many trials is by "
        "itself too high an estimate: a part of it is luck with these test images.\n\n"
        f"Rank correlation (Spearman) of the objective with the test score over these trials: {ranks}.\n"
    )


def _figures(trials: pd.DataFrame, audits: pd.DataFrame, folder: Path) -> tuple[list[str], list[Path]]:
    """Draw and save; returns the lines of Markdown that show them, and the files."""
    sweep_id, metric = trials["sweep_id"].iloc[0], trials["objective"].iloc[0]
    drawn = {}
    if len(_ended(trials)):
        drawn["progress"] = (f"Best {metric} so far", _progress(trials))
        drawn["slices"] = (f"{metric} against each key", _slices(trials))
    if (found := peeking(trials, audits)) is not None:
        drawn["peeking"] = ("Objective and test score", _peeking(found, metric))
    lines: list[str] = []
    files: list[Path] = []
    for name, (says, figure) in drawn.items():
        stem = f"sweep-{sweep_id}-{name}"
        lines.append(f"![{says}](figures/{stem}.svg)\n")
        files += _save(figure, folder / "figures" / stem)
    return lines, files


def _progress(trials: pd.DataFrame) -> "Figure":
    from matplotlib.figure import Figure

    ended = _ended(trials).sort_values("ended_at", kind="stable")
    begun = pd.to_datetime(trials["started_at"]).min()
    minutes = (pd.to_datetime(ended["ended_at"]) - begun).dt.total_seconds() / 60
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(minutes, ended["objective_value"], "o", color="tab:gray", label="trial")
    axes.step(minutes, ended["objective_value"].cummax(), where="post", color="tab:blue", label="best so far")
    default = ended[ended["is_default"]]
    if len(default):
        axes.axhline(default["objective_value"].iloc[0], color="tab:orange", ls=":", label="default")
    axes.set(xlabel="minutes since the first trial began", ylabel=ended["objective"].iloc[0])
    figure.legend(loc="outside upper center", ncols=4, frameon=False)  # "best" would look at every point
    return figure


def _slices(trials: pd.DataFrame) -> "Figure":
    from matplotlib.figure import Figure

    keys = _keys(trials)
    judged = trials[trials["objective_value"].notna() & trials["status"].isin(["ok", "running"])]
    searched = pd.DataFrame([json.loads(text) for text in judged["searched"]])
    whole = ~judged["stopped_early"].to_numpy(bool) & (judged["status"] == "ok").to_numpy()
    value = judged["objective_value"].to_numpy()
    columns = min(4, len(keys))
    lines = -(-len(keys) // columns)
    figure = Figure(figsize=(2.4 * columns + 0.6, 2.2 * lines), layout="constrained")
    for i, key in enumerate(keys):
        axes = figure.add_subplot(lines, columns, i + 1)
        x = searched[key]
        if _is_number(x):
            place = x.to_numpy(float)
            if place.min() > 0 and place.max() / place.min() > 30:
                axes.set_xscale("log")
        else:
            names = sorted({_plain(v) for v in x})
            place = np.array([names.index(_plain(v)) for v in x], float)
            axes.set_xticks(range(len(names)), names, rotation=20)
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.plot(place[~whole], value[~whole], "x", color="tab:gray", ms=4, alpha=0.6)
        axes.plot(place[whole], value[whole], "o", color="tab:blue", ms=4)
        axes.set_xlabel(key)
        axes.tick_params(labelsize=7)
    figure.supylabel(f"{trials['objective'].iloc[0]} (crosses: stopped early)", fontsize=8)
    return figure


def _peeking(found: Peeking, metric: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.objective, found.test, "o", color="tab:gray")
    axes.plot(found.objective.max(), found.chosen, "o", color="tab:blue", label="chosen honestly")
    axes.plot(
        found.objective[found.test.argmax()], found.best, "o", mfc="none", ms=10, mec="tab:red",
        label="best on test",
    )  # fmt: skip
    axes.set(xlabel=f"{metric}, synthetic defects", ylabel=f"{metric}, test images")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)  # "best" would look at every point
    return figure


def _save(figure: "Figure", stem: Path) -> list[Path]:
    """As SVG (the same bytes for the same numbers) and PNG; returns both paths."""
    import matplotlib as mpl

    files: list[Path] = []
    with mpl.rc_context({"svg.hashsalt": "kdbench", "svg.fonttype": "none"}):
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {})):
            files.append(stem.with_name(stem.name + suffix))
            with written_aside(files[-1]) as aside:
                figure.savefig(aside, format=suffix[1:], dpi=DPI, metadata=metadata)
    return files


def _ended(trials: pd.DataFrame) -> pd.DataFrame:
    """Trained to the end, in the order in which they began."""
    ended = trials[(trials["status"] == "ok") & ~trials["stopped_early"].astype(bool)]
    return ended.sort_values(["started_at", "trial_id"], kind="stable")


def _keys(trials: pd.DataFrame) -> list[str]:
    return sorted({key for text in trials["searched"] for key in json.loads(text)})


def _value_at(epoch: int, epochs: Sequence[int], history: Sequence[float]) -> float:
    """The last value that was reported until this epoch."""
    return float(history[int(np.searchsorted(epochs, epoch, "right")) - 1])


def _is_number(values: pd.Series) -> bool:
    return (
        all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) and values.nunique() > 4
    )


def _codes(values: pd.Series) -> np.ndarray:
    """Numbers as they are, anything else by the order of its text: a forest needs no more."""
    if all(isinstance(v, int | float) for v in values):
        return values.to_numpy(float)
    texts = [json.dumps(v) for v in values]
    order = {text: i for i, text in enumerate(sorted(set(texts)))}
    return np.array([order[text] for text in texts], float)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(head: list[str], body: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, body)]) + "\n"
