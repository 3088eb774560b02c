"""What may share a line, a column or a rank, which best is bold, and what intervals are computed from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from fabricated import all_metrics, row, scores, write_scores

from kdbench.cell import canonical_json
from kdbench.reports import estimates, statistics
from kdbench.reports.accuracy import conditions, published, ranking
from kdbench.reports.costs import latencies, sizes, training
from kdbench.reports.entries import COLUMNS, Entry, common_categories, entries, ranks
from kdbench.reports.estimates import Sample
from kdbench.reports.evidence import Evidence
from kdbench.reports.leaderboard import assemble
from kdbench.reports.leave_one_out import image_effects
from kdbench.reports.rows import Group, load, sections
from kdbench.reports.significance import (
    average_ranks,
    comparisons,
    differences_over_images,
    intervals,
    partial_intervals,
    rank_groups,
)
from kdbench.results.store import CELLS, LATENCY, Results


def write(folder: Path, values: dict[str, float], **changes: Any) -> None:
    """One multiclass cell: category -> the value of all metrics."""
    facts = {"dataset_categories": [*values], "categories": [*values]} | changes
    facts = {"cell_id": f"{facts.get('method', 'm')}-{facts.get('seed', 0)}"} | facts
    Results(folder).write(
        CELLS, [row(**{"category": name} | all_metrics(value) | facts) for name, value in values.items()]
    )


def section(folder: Path) -> tuple[Group, list[Entry], Evidence]:
    rows = load(folder)
    ((group, cells),) = sections(rows.cells)
    return group, entries(cells), Evidence(rows.scores)


NAMES = "abcdef"


def test_the_best_is_bold_where_it_is_better_in_six_of_six_categories(tmp_path: Path) -> None:
    write(tmp_path, {name: 0.8 + 0.01 * i for i, name in enumerate(NAMES)}, method="good")
    write(tmp_path, {name: 0.79 + 0.009 * i for i, name in enumerate(NAMES)}, method="next")
    _, found, evidence = section(tmp_path)
    assert evidence.best(found, "aupro") == "good"
    assert evidence.verdict(found[0], found[1], "aupro").over == "categories"
    ranking = assemble(load(tmp_path))[0].tables[0]
    assert [[value.best for value in line[2:11]] for line in ranking.body] == [[True] * 9, [False] * 9]


def test_a_best_that_is_worse_somewhere_is_not_bold(tmp_path: Path) -> None:
    write(tmp_path, {name: 0.6 + 0.01 * i for i, name in enumerate(NAMES)}, method="good")
    write(tmp_path, {name: 0.59 + 0.009 * i + 0.3 * (i == 0) for i, name in enumerate(NAMES)}, method="other")
    _, found, evidence = section(tmp_path)
    assert evidence.best(found, "aupro") == ""


def test_a_mean_that_one_category_lifts_is_not_bold_and_its_signed_ranks_are_marked(tmp_path: Path) -> None:
    """`lucky` has the better mean and is worse in fourteen of fifteen categories."""
    names = [f"c{i:02}" for i in range(15)]
    write(tmp_path, {name: 0.95 if i == 0 else 0.8 for i, name in enumerate(names)}, method="lucky")
    steady = {name: 0.6 if i == 0 else 0.81 + 0.0005 * i for i, name in enumerate(names)}
    write(tmp_path, steady, method="steady")
    group, found, evidence = section(tmp_path)
    assert [entry.name for entry in found] == ["lucky", "steady"]
    assert not evidence.verdict(found[0], found[1], "mad").significant
    assert evidence.best(found, "mad") == ""
    line = next(line for line in next(comparisons(found, group.title)).body if line[0].text == "mAD")
    assert line[3].text == "+1.05"
    assert line[5].mean == line[6].mean > 0.6
    assert line[4].low < 0 < line[4].high
    assert line[7].mean == pytest.approx(2 * 137 / 2**15)  # rank 15 against all others: 137 sums are as small
    assert line[7].text == "0.00836 (against the mean)"


def test_with_few_categories_six_seeds_decide(tmp_path: Path) -> None:
    for seed in range(6):
        write(tmp_path, {"a": 0.9 + 0.001 * seed, "b": 0.8}, method="good", seed=seed)
        write(tmp_path, {"a": 0.89, "b": 0.8}, method="next", seed=seed)
    _, found, evidence = section(tmp_path)
    assert evidence.best(found, "aupro") == "good"
    assert evidence.verdict(found[0], found[1], "aupro").over == "seeds"


def with_scores(folder: Path, merits: dict[str, float]) -> None:
    for i, (method, merit) in enumerate(merits.items()):
        write(folder, {"a": 0.9 - 0.01 * i, "b": 0.8}, method=method)
        both = [
            one for j, name in enumerate("ab") for one in scores(f"{method}-0", name, merit=merit, seed=j)
        ]
        write_scores(folder, both)


def test_with_few_seeds_the_images_decide_for_image_metrics_only(tmp_path: Path) -> None:
    with_scores(tmp_path, {"good": 3.0, "next": 0.5})
    _, found, evidence = section(tmp_path)
    assert evidence.verdict(found[0], found[1], "image_auroc").over == "images"
    assert evidence.best(found, "image_auroc") == "good"
    assert evidence.best(found, "aupro") == ""
    assert evidence.verdict(found[0], found[1], "aupro").over == ""


def test_scores_that_are_alike_make_nothing_bold(tmp_path: Path) -> None:
    with_scores(tmp_path, {"good": 1.0, "next": 1.0})
    _, found, evidence = section(tmp_path)
    assert evidence.best(found, "image_auroc") == ""


def test_scores_of_other_images_are_not_paired(tmp_path: Path) -> None:
    with_scores(tmp_path, {"good": 3.0, "next": 0.5})
    both = [one for j, name in enumerate("ab") for one in scores("next-0", name, merit=0.5, seed=j)]
    write_scores(tmp_path, [one | {"image": f"other/{one['image']}"} for one in both])
    _, found, evidence = section(tmp_path)
    assert evidence.best(found, "image_auroc") == ""


def sample(detectors: dict[str, list[dict[str, Any]]], metric: str) -> Sample:
    """One category's scores by each detector."""
    label = np.array([one["label"] for one in next(iter(detectors.values()))])
    scored = (np.array([one["image_score"] for one in own]) for own in detectors.values())
    effects = [image_effects(values, label)[metric] for values in scored]
    return Sample(
        detectors=tuple(detectors),
        values=np.array([one.value for one in effects]),
        effects=np.stack([one.of_image for one in effects]),
        label=label,
    )


def test_the_interval_over_images_is_that_of_the_mean_over_categories_and_seeds(tmp_path: Path) -> None:
    detectors: dict[str, dict[str, list[dict[str, Any]]]] = {"a": {}, "b": {}}
    for seed in range(2):
        write(tmp_path, {"a": 0.9, "b": 0.8}, seed=seed)
        both = {name: scores(f"m-{seed}", name, merit=1, seed=10 * seed + j) for j, name in enumerate("ab")}
        # In any order on disk: the images are what pairs, not their place.
        write_scores(tmp_path, [*reversed(both["b"]), *both["a"]])
        for name, own in both.items():
            detectors[name][f"m-{seed}"] = own
    group, (entry,), evidence = section(tmp_path)
    within = evidence.over_images(entry, "image_ap")
    expected = estimates.mean_over_images([sample(detectors[name], "image_ap") for name in "ab"])
    assert within == pytest.approx(expected.interval_of_share)
    assert evidence.over_categories(entry, "image_ap") is None  # of two categories
    (table,) = intervals(evidence, [entry], group.title)
    assert [value.low for value in table.body[0]] == [None] * 5 + [
        evidence.over_images(entry, metric).low for metric in ("image_auroc", "image_ap", "image_f1_max")
    ]


def test_seeds_that_disagree_make_intervals_of_differences_wide(tmp_path: Path) -> None:
    """On the same images, `steady` is better than `base` with every seed, `lucky` with one of three."""
    merits = {"base": (1.0, 1.0, 1.0), "steady": (1.6, 1.6, 1.6), "lucky": (0.6, 0.6, 5.0)}
    for method, by_seed in merits.items():
        for seed, merit in enumerate(by_seed):
            write(tmp_path, {"a": merit / 5}, method=method, seed=seed, dataset_categories=["a", "b"])
            own = scores(f"{method}-{seed}", "a", merit=merit, seed=0, num_images=200)
            write_scores(tmp_path, own)
    group, found, evidence = section(tmp_path)
    (table,) = differences_over_images(evidence, found, ["a"], group.title)
    clear = {frozenset((line[0].text, line[1].text)): line[-1].mean < 0.05 for line in table.body}
    assert clear == {
        frozenset(("base", "steady")): True,
        frozenset(("base", "lucky")): False,
        frozenset(("steady", "lucky")): False,
    }
    p_values = [line[-2].mean for line in table.body]
    assert [line[-1].mean for line in table.body] == statistics.holm(p_values)


def test_detectors_of_oneclass_are_drawn_each_for_its_own_category(tmp_path: Path) -> None:
    """One category's seeds say nothing of another's, where no detector has both."""
    own = {merit: scores("x", "a", merit=merit, seed=0) for merit in (0.5, 3.0)}
    for category in "ab":
        for seed, merit in enumerate((0.5, 3.0)):
            name = f"{category}{seed}"
            facts = {"cell_id": name, "seed": seed, "setting": "oneclass"}
            write(tmp_path, {category: 0.5}, dataset_categories=["a", "b"], **facts)
            renamed = [one | {"cell_id": name, "category": category} for one in own[merit]]
            write_scores(tmp_path, renamed)
    _, (entry,), evidence = section(tmp_path)
    assert not entry.shared
    apart = [sample({f"{name}0": own[0.5], f"{name}1": own[3.0]}, "image_auroc") for name in "ab"]
    expected = estimates.mean_over_images(apart)
    assert evidence.over_images(entry, "image_auroc") == pytest.approx(expected.interval_of_share)
    alone = estimates.mean_over_images(apart[:1])
    assert expected.variance == pytest.approx(alone.variance / 2)


def test_some_categories_have_intervals_and_differences_over_their_images(tmp_path: Path) -> None:
    samples = {}
    for method, merit in (("good", 3.0), ("next", 0.5)):
        write(tmp_path, {"a": merit / 4, "b": merit / 5}, method=method, dataset_categories=["a", "b", "c"])
        own = {name: scores(f"{method}-0", name, merit=merit, seed=j) for j, name in enumerate("ab")}
        write_scores(tmp_path, [*own["a"], *own["b"]])
        samples[method] = [sample({f"{method}-0": own[name]}, "image_auroc") for name in "ab"]
    group, found, evidence = section(tmp_path)
    assert [entry.holes for entry in found] == [("2 of 3 categories",)] * 2
    (table,) = partial_intervals(evidence, found, ["a", "b"], group.title)
    for line, method in zip(table.body, ("good", "next"), strict=True):
        within = estimates.mean_over_images(samples[method]).interval_of_share
        assert (line[0].text, line[1].low, line[1].high) == (method, within.low, within.high)
    (table,) = differences_over_images(evidence, found, ["a", "b"], group.title)
    expected = estimates.difference_over_images(samples["good"], samples["next"])
    ((method, against, difference, _, p, corrected),) = table.body
    assert (method.text, against.text) == ("good", "next")
    assert p.mean == corrected.mean == expected.p
    assert p.mean < 0.001
    assert (difference.low, difference.high) == expected.interval
    assert difference.mean == pytest.approx(expected.value) == pytest.approx(0.324375)
    assert difference.text == "+32.44"
    assert not [*differences_over_images(evidence, found, [], group.title)]


def test_recipes_of_one_method_are_paired_where_one_key_differs(tmp_path: Path) -> None:
    recipes = [{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 2, "b": 2}]
    for i, recipe in enumerate(recipes):
        write(tmp_path, {"x": 0.5 + i / 10}, cell_id=f"c{i}", config=canonical_json(recipe))
        write_scores(tmp_path, scores(f"c{i}", "x", merit=i, seed=i))
    write(tmp_path, {"x": 0.5}, method="other")
    write_scores(tmp_path, scores("other-0", "x", merit=1, seed=9))
    group, found, evidence = section(tmp_path)
    (table,) = differences_over_images(evidence, found, ["x"], group.title)
    pairs = [{line[0].text, line[1].text} for line in table.body]
    one, two, three = (f"fabricated_a (a={r['a']}, b={r['b']})" for r in recipes)
    assert len(pairs) == 2
    assert all(pair in pairs for pair in ({one, two}, {two, three}))


def test_a_pair_that_scores_every_image_alike_is_shown_and_not_tested(tmp_path: Path) -> None:
    for method in ("one", "same"):
        write(tmp_path, {"a": 0.75}, method=method, dataset_categories=["a", "b"])
        write_scores(tmp_path, scores(f"{method}-0", "a", merit=1, seed=0))
    group, found, evidence = section(tmp_path)
    ((*_, difference, within, p, corrected),) = next(
        differences_over_images(evidence, found, ["a"], group.title)
    ).body
    assert [value.text for value in (difference, within, p, corrected)] == [
        *("+0.00", "-", "- (nothing varies)", "-")
    ]


def test_a_missing_score_leaves_no_interval(tmp_path: Path) -> None:
    write(tmp_path, {"a": 0.9, "b": 0.8})
    write_scores(tmp_path, scores("m-0", "a", merit=1, seed=0))
    _, (entry,), evidence = section(tmp_path)
    assert evidence.over_images(entry, "image_auroc") is None


def test_pairs_are_tested_over_categories_and_corrected(tmp_path: Path) -> None:
    for i, method in enumerate(("one", "three", "two")):
        write(tmp_path, {name: 0.5 + 0.1 * i + 0.001 * i * j for j, name in enumerate(NAMES)}, method=method)
    group, found, _ = section(tmp_path)
    (table,) = comparisons(found, group.title)
    lines = [line for line in table.body if line[0].text == "AUPRO"]
    assert [(line[1].text, line[2].text) for line in lines] == [
        ("two", "three"),
        ("two", "one"),
        ("three", "one"),
    ]
    assert [line[3].text for line in lines] == ["+10.25", "+20.50", "+10.25"]
    steps = 0.1 + 0.001 * np.arange(6)
    expected = [scipy.stats.ttest_1samp(scale * steps, 0) for scale in (1, 2, 1)]
    assert [line[5].mean for line in lines] == pytest.approx([test.pvalue for test in expected])
    assert [line[6].mean for line in lines] == pytest.approx([3 * expected[0].pvalue] * 3)
    assert [line[7].mean for line in lines] == pytest.approx([2 / 64] * 3)
    assert (lines[0][4].low, lines[0][4].high) == pytest.approx(tuple(expected[0].confidence_interval()))


def test_average_ranks_are_shown_with_what_they_do_not_differ_from(tmp_path: Path) -> None:
    for i, method in enumerate(("low", "mid", "top")):
        write(tmp_path, {name: 0.5 + 0.1 * i + 0.001 * j for j, name in enumerate(NAMES)}, method=method)
    group, found, _ = section(tmp_path)
    table = average_ranks(found, "mad", group.title)
    assert [[value.text for value in line] for line in table.body] == [
        ["top", "1.00", "mid"],
        ["mid", "2.00", "top, low"],
        ["low", "3.00", "mid"],
    ]
    assert rank_groups(found[:2], "mad") == "it needs 3 complete methods, there are 2"


def test_a_method_that_differs_from_all_others_is_not_different_from_none(tmp_path: Path) -> None:
    names = [f"c{i:02}" for i in range(15)]
    for i, method in enumerate(("low", "mid", "top")):
        write(tmp_path, {name: 0.5 + 0.1 * i + 0.001 * j for j, name in enumerate(names)}, method=method)
    group, found, _ = section(tmp_path)
    assert [line[2].text for line in average_ranks(found, "mad", group.title).body] == ["none"] * 3


def test_an_entry_with_fewer_seeds_is_marked_and_has_no_rank(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, {"a": 0.8, "b": 0.8}, method="two", seed=seed)
    write(tmp_path, {"a": 0.9, "b": 0.9}, method="one")
    _, found, evidence = section(tmp_path)
    assert [entry.remarks for entry in found] == [(), ("1 of 2 seeds",)]
    assert ranks(found, "mad") == {"two": 1}
    assert evidence.best(found, "mad") == ""


def test_ties_share_the_better_rank(tmp_path: Path) -> None:
    for method, value in (("a", 0.8), ("b", 0.9), ("c", 0.8), ("d", 0.7)):
        write(tmp_path, {"x": value, "y": value}, method=method)
    _, found, _ = section(tmp_path)
    assert ranks(found, "mad") == {"b": 1, "a": 2, "c": 2, "d": 4}


def test_without_masks_the_rank_is_by_image_auroc(tmp_path: Path) -> None:
    for method, value in (("low", 0.7), ("top", 0.8)):
        none = dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_05", "mad"))
        write(tmp_path, {"x": value, "y": value}, method=method, **none)
    ranking = assemble(load(tmp_path))[0].tables[0]
    assert [(line[0].text, line[1].text) for line in ranking.body] == [("1", "top"), ("2", "low")]
    assert "Ranked by I-AUROC" in ranking.notes[0]


def test_with_masks_in_some_categories_the_rank_is_by_image_auroc(tmp_path: Path) -> None:
    none = dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_05", "mad"))
    for method, value in (("low", 0.7), ("top", 0.8)):
        facts = {"cell_id": method, "method": method, "categories": ["x", "y"]}
        facts |= {"dataset_categories": ["x", "y"]} | all_metrics(value)
        Results(tmp_path).write(CELLS, [row(category="x", **facts), row(category="y", **(facts | none))])
    tables = assemble(load(tmp_path))[0].tables
    assert [(line[0].text, line[1].text) for line in tables[0].body] == [("1", "top"), ("2", "low")]
    assert tables[0].notes == ("Ranked by I-AUROC: not all categories have masks.",)
    assert any(table.title.startswith("Average ranks by I-AUROC") for table in tables)


def test_detectors_trained_on_other_categories_are_other_lines(tmp_path: Path) -> None:
    write(tmp_path, {"a": 0.8, "b": 0.8}, dataset_categories=["a", "b", "c"], cell_id="two")
    write(tmp_path, {"a": 0.7, "b": 0.7, "c": 0.7}, cell_id="three")
    _, found, _ = section(tmp_path)
    assert {entry.name: entry.holes for entry in found} == {
        "fabricated_a (categories=all)": (),
        "fabricated_a (categories=a+b)": ("2 of 3 categories",),
    }


def test_what_ran_in_another_precision_is_another_line(tmp_path: Path) -> None:
    """All asked for `auto`; a cell that failed before it had one is of the only one there is, or of none."""
    config = canonical_json({"precision": "auto"})
    for seed, (method, precision) in enumerate((("two", "fp32"), ("two", "bf16"), ("one", "bf16"))):
        write(tmp_path, {"a": 0.5 + seed / 4}, method=method, seed=seed, precision=precision, config=config)
    for method in ("one", "two"):
        facts = {"seed": 3, "status": "failed", "config": config}
        write(tmp_path, {"a": 0.0}, method=method, **facts)
    _, found, _ = section(tmp_path)
    assert {entry.name: (entry.seeds, entry.holes) for entry in found} == {
        "one": ((2, 3), ("1 failed",)),
        "two (precision=auto)": ((3,), ("1 failed",)),
        "two (precision=bf16)": ((1,), ()),
        "two (precision=fp32)": ((0,), ()),
    }
    means = {entry.name: mean.mean for entry in found if (mean := entry.means["mad"])}
    assert means == {"two (precision=bf16)": 0.75, "two (precision=fp32)": 0.5}


def test_a_category_that_was_run_with_two_sets_of_images_is_a_hole(tmp_path: Path) -> None:
    for number in range(2):
        facts = {"cell_id": f"c{number}", "fingerprint": f"images {number}", "setting": "oneclass"}
        write(tmp_path, {"a": 0.8}, **facts)
    _, (entry,), _ = section(tmp_path)
    assert entry.holes == ("1 twice, with other images",)


def write_images(folder: Path, method: str, values: dict[str, float], **changes: Any) -> None:
    """A oneclass cell per category, whose fingerprint is that of `changes` and the category."""
    images, seed = changes.pop("images", "v1"), changes.get("seed", 0)
    for name, value in values.items():
        facts = {"cell_id": f"{method}-{name}-{seed}", "categories": [name], "fingerprint": images + name}
        write(folder, {name: value}, **{"dataset_categories": [*values]} | facts | changes, method=method)


def oneclass(folder: Path) -> dict[str, Entry]:
    ((_, cells),) = sections(load(folder).cells)
    return {entry.name: entry for entry in entries(cells)}


def test_a_category_that_the_dataset_gained_is_a_hole_of_what_ran_before(tmp_path: Path) -> None:
    write_images(tmp_path, "old", {"b": 0.95}, setting="oneclass")
    write_images(tmp_path, "new", {"a": 0.9, "b": 0.8}, setting="oneclass")
    found = oneclass(tmp_path)
    assert {name: entry.holes for name, entry in found.items()} == {"new": (), "old": ("1 of 2 categories",)}
    assert [entry.dataset_categories for entry in found.values()] == [["a", "b"]] * 2
    assert ranks([*found.values()], "mad") == {"new": 1}
    write(tmp_path, {"a": 0.9}, cell_id="before", dataset_categories=["a"])
    write(tmp_path, {"a": 0.8, "b": 0.8}, cell_id="after", seed=1)
    after = [cells for group, cells in sections(load(tmp_path).cells) if group.setting == "multiclass"]
    assert {entry.name: entry.seeds for entry in entries(after[0])} == {
        "fabricated_a (categories=a)": (0,),
        "fabricated_a (categories=all)": (1,),
    }


def test_entries_over_other_images_have_means_and_no_rank(tmp_path: Path) -> None:
    write_images(tmp_path, "one", {"a": 0.75, "b": 0.75}, setting="oneclass")
    write_images(tmp_path, "two", {"a": 0.5, "b": 0.5}, setting="oneclass", images="v2")
    found = oneclass(tmp_path)
    assert {name: entry.remarks for name, entry in found.items()} == dict.fromkeys(found, ("other images",))
    assert {name: entry.means["mad"].mean for name, entry in found.items()} == {"one": 0.75, "two": 0.5}
    assert ranks([*found.values()], "mad") == {}
    assert common_categories([*found.values()]) == []
    ranking = assemble(load(tmp_path))[0].tables[0]
    assert [(line[0].text, line[-1].text) for line in ranking.body] == [("-", "other images")] * 2


def test_seeds_over_other_images_have_no_mean(tmp_path: Path) -> None:
    for seed in range(2):
        write_images(tmp_path, "m", {"a": 0.75}, setting="oneclass", seed=seed, images=f"v{seed}")
    (entry,) = oneclass(tmp_path).values()
    assert entry.holes == ("other images for some seeds",)
    assert entry.means["mad"] is None


def test_an_entry_has_the_same_name_in_every_setting(tmp_path: Path) -> None:
    for setting, rates in (("oneclass", (0.1,)), ("multiclass", (0.1, 0.4))):
        for lr in rates:
            config = canonical_json({"lr": lr, "epochs": 2 if setting == "oneclass" else 9})
            write(tmp_path, {"a": lr}, setting=setting, config=config, cell_id=f"{setting}-{lr}")
    rows = load(tmp_path).cells
    assert set(rows.loc[rows["setting"] == "oneclass", "entry"]) == {"fabricated_a (lr=0.1)"}
    titles = [s.title for s in assemble(load(tmp_path))]
    assert "Oneclass against multiclass" in titles


def test_costs_of_two_devices_are_two_tables(tmp_path: Path) -> None:
    for seed, place in enumerate(("cuda", "cpu", "cpu")):
        facts = {
            "device": place,
            "device_name": f"a {place}",
            "num_threads": 4 * seed,
            "train_s": 10.0 + seed,
        }
        write(tmp_path, {"a": 0.8, "b": 0.8}, seed=seed, **facts)
    group, found, _ = section(tmp_path)
    tables = {table.title.split(":")[0]: table.body for table in training(group, found)}
    # One line per detector, although a multiclass cell has a row per category.
    assert {name: [value.text for value in body[0][1:]] for name, body in tables.items()} == {
        "Training on a cpu, 4 threads": ["11.0", "-", "1"],
        "Training on a cpu, 8 threads": ["12.0", "-", "1"],
        "Training on a cuda": ["10.0", "-", "1"],
    }


def test_timings_are_ranked_within_precision_and_batch_and_only_if_nothing_else_ran(tmp_path: Path) -> None:
    facts = {name: row()[name] for name in ("run_id", "config", "dataset", "setting", "seed", "profile")}
    facts |= {"device": "cuda", "device_name": "gpu", "images_per_s": 10.0, "peak_memory_bytes": 2**21}
    for method, p50, busy in (("slow", 2.0, False), ("fast", 1.0, False), ("loud", 0.5, True)):
        write(tmp_path, {"a": 0.8, "b": 0.8}, method=method)
        Results(tmp_path).write(
            LATENCY,
            [
                facts
                | {"cell_id": f"{method}-0", "method": method, "batch_size": batch, "precision": precision}
                | {"p50_ms": p50 * batch, "p99_ms": 3 * p50 * batch, "busy": busy, "neighbours": "others"}
                for batch, precision in ((1, "fp16"), (1, "fp32"), (8, "fp32"))
            ],
        )
    group, found, _ = section(tmp_path)
    rows = load(tmp_path)
    (table,) = latencies(group, found, rows.latencies, rows.untimed)
    lines = [[value.text for value in line] for line in table.body]
    assert [line[:4] for line in lines[6:]] == [
        ["1", "fast", "fp32", "8"],
        ["2", "slow", "fp32", "8"],
        ["-", "loud", "fp32", "8"],
    ]
    assert lines[6][4:] == ["8.00", "24.0", "10.0", "2.00", "1", ""]
    assert lines[8][-1] == "busy: others"


def timed(folder: Path, method: str, batches: int, seed: int = 0, **changes: Any) -> None:
    """A cell of a method, and a timing of its detector with that many batches of 1 to 10 ms."""
    write(folder, {"a": 0.8, "b": 0.8}, method=method, seed=seed)
    facts = {name: row()[name] for name in ("run_id", "config", "dataset", "setting", "profile")}
    facts |= {"device": "cuda", "device_name": "gpu", "precision": "fp32", "busy": False, "seed": seed}
    times = np.linspace(1, 10, batches)
    facts |= {"times_ms": times.tolist(), "p50_ms": 5.5 + seed, "p99_ms": 9.91, "images_per_s": 100.0}
    cell = {"cell_id": f"{method}-{seed}", "method": method, "batch_size": 1}
    Results(folder).write(LATENCY, [facts | cell | changes])


def test_a_p99_of_fewer_than_100_batches_is_a_hole(tmp_path: Path) -> None:
    timed(tmp_path, "many", 100)
    timed(tmp_path, "few", 99)
    for seed, batches in enumerate((100, 99)):  # of two detectors one
        timed(tmp_path, "some", batches, seed)
    group, found, _ = section(tmp_path)
    rows = load(tmp_path)
    (table,) = latencies(group, found, rows.latencies, rows.untimed)
    p99 = {line[1].text: line[table.head.index("p99 ms")] for line in table.body}
    assert {name: (value.text, value.mean) for name, value in p99.items()} == {
        "many": ("9.91", 9.91),
        "few": ("- (fewer than 100 batches)", None),
        "some": ("- (fewer than 100 batches)", None),
    }
    assert p99["some"].cell_ids == ("some-0", "some-1")


def test_the_notes_of_costs_say_where_one_detector_is_all_there_is(tmp_path: Path) -> None:
    def notes() -> tuple[str, ...]:
        group, found, _ = section(tmp_path)
        rows = load(tmp_path)
        (of_latency,) = latencies(group, found, rows.latencies, rows.untimed)
        (of_training,) = training(group, found)
        return (*of_latency.notes, *of_training.notes)

    single = "A rank from one detector says nothing about how much the detectors of a method differ."
    timed(tmp_path, "m", 100)
    says, about_ranks, trained = notes()
    assert says.startswith("One detector each; for a batch, ")
    assert (about_ranks, trained) == (single, "One detector each.")
    timed(tmp_path, "m", 100, seed=1)
    says, trained = notes()
    assert says.startswith("Mean ± standard deviation over the detectors timed; for a batch, ")
    assert trained == "Mean ± standard deviation over the detectors trained, one per cell."
    timed(tmp_path, "loud", 100, busy=True)  # one, but without a rank
    assert single not in notes()
    timed(tmp_path, "alone", 100)
    assert notes()[1] == single


def test_sizes_that_differ_within_an_entry_are_a_range(tmp_path: Path) -> None:
    for seed, count in enumerate((1_000_000, 2_500_000)):
        write(tmp_path, {"a": 0.8, "b": 0.8}, seed=seed, num_parameters=count, flops=318_000_000)
    group, found, _ = section(tmp_path)
    (table,) = sizes(group, found)
    assert [value.text for value in table.body[0][1:]] == ["1 M to 2.5 M", "-", "318 M"]
    assert [value.mean for value in table.body[0][1:]] == [1_750_000, None, 318_000_000]
    assert {value.low for value in table.body[0]} == {None}  # a page would call it a 95 % interval


def test_conditions_are_those_of_the_cells_and_stand_beside_published_numbers(tmp_path: Path) -> None:
    config = {"backbone": "resnet18.tv_in1k", "image_size": 128, "epochs": 4, "batch_size": 16}
    facts = {"dataset": "mvtec_ad", "precision": "bf16", "config": canonical_json(config)}
    known = ["bottle", *(f"c{i:02}" for i in range(14))]
    for seed in range(2):
        own = {"seed": seed, "num_steps": 140 + seed, "dataset_categories": known}
        write(tmp_path, {"bottle": 0.75}, method="stfpm", **facts, **own, setting="oneclass")
    group, (entry,), evidence = section(tmp_path)
    table = conditions(group, [entry])
    assert dict(zip(table.head, (value.text for value in table.body[0]), strict=True)) == {
        "method": "stfpm",
        "backbone": "resnet18.tv_in1k",
        "image size": "128",
        "epochs": "4",
        "batch size": "16",
        "precision": "bf16",
        "optimizer steps": "140 to 141",
        "categories trained on": "1 of 15",
    }
    (table,) = published(group, [entry])
    said = {line[table.head.index("conditions of ours")].text for line in table.body}
    assert said == {"resnet18.tv_in1k, 128 px, 4 epochs, 1 of 15 categories"}
    assert ranking(group, [entry], evidence).head[2 + len(COLUMNS)] == "fidelity of the method"
    titles = [table.title for table in assemble(load(tmp_path))[0].tables]
    assert titles.index(f"Conditions: {group.title}") == 2  # after the ranking and the means over a part


def test_a_legacy_pro_stands_beside_the_published_one_and_nowhere_else(tmp_path: Path) -> None:
    names = [f"c{i:02}" for i in range(14)]
    facts = {"dataset": "mvtec_ad", "setting": "oneclass", "preset": "stfpm_legacy"}
    for method, pro in (("stfpm", 0.953125), ("rd4ad", None)):
        write(tmp_path, dict.fromkeys(["bottle", *names], 0.75), method=method, pro_stfpm_legacy=pro, **facts)
    group, found, _ = section(tmp_path)
    (table,) = published(group, found)
    lines = {tuple(value.text for value in line[:3]): line[4] for line in table.body}
    assert [lines["stfpm", name, "pro_stfpm_legacy"].text for name in ("bottle", "mean")] == ["95.31"] * 2
    assert lines["stfpm", "bottle", "pro_stfpm_legacy"].cell_ids == ("stfpm-0",)
    assert {entry.name: entry.means["pro_stfpm_legacy"] for entry in found}["rd4ad"] is None
    assert {entry.means["pro_rd4ad_legacy"] for entry in found} == {None}
    others = [t for s in assemble(load(tmp_path)) for t in s.tables if not t.title.startswith("Beside")]
    assert not [t.title for t in others for line in t.body for value in line if value.text == "95.31"]
    assert not [t.title for t in others for name in t.head if "legacy" in name]


def test_textures_and_objects_have_means_of_their_own(tmp_path: Path) -> None:
    rows = [
        row(category=name, dataset_categories=["a", "b", "c"], texture=name == "a", **all_metrics(value))
        for name, value in (("a", 0.5), ("b", 0.7), ("c", 0.8))
    ]
    Results(tmp_path).write(CELLS, [one | {"categories": ["a", "b", "c"]} for one in rows])
    table = next(t for t in assemble(load(tmp_path))[0].tables if t.title.startswith("AUPRO per category"))
    assert [[value.text for value in line] for line in table.body[3:]] == [
        ["mean of textures", "50.00"],
        ["mean of objects", "75.00"],
        ["mean", "66.67"],
    ]


def test_the_drop_is_paired_over_the_categories_of_both_settings(tmp_path: Path) -> None:
    for i, name in enumerate("abcdefg"):
        facts = {"setting": "oneclass", "cell_id": name, "dataset_categories": [*"abcdefg"]}
        write(tmp_path, {name: 0.9 + 0.01 * i}, **facts)
    write(tmp_path, {name: 0.85 for name in "abcdefg"} | {"a": 0.91}, cell_id="all")
    section_ = next(s for s in assemble(load(tmp_path)) if s.title == "Oneclass against multiclass")
    line = next(line for line in section_.tables[0].body if line[1].text == "mAD")
    assert [line[i].text for i in (2, 3, 4, 8)] == ["93.00", "85.86", "+7.14", "7 of 7"]
    expected = scipy.stats.ttest_1samp([-0.01, 0.06, 0.07, 0.08, 0.09, 0.10, 0.11], 0)
    assert (
        line[6].mean == line[7].mean == pytest.approx(expected.pvalue)
    )  # of one method nothing is corrected
    assert (line[5].low, line[5].high) == pytest.approx(tuple(expected.confidence_interval()))


def test_what_else_differs_between_the_settings_is_beside_the_drop(tmp_path: Path) -> None:
    recipes = {
        "oneclass": {"backbone": "wrn50", "image_size": 256, "epochs": 200, "lr": 0.4},
        "multiclass": {"backbone": "resnet18", "image_size": 128, "epochs": 2, "lr": 0.4},
    }
    for i, (setting, recipe) in enumerate(recipes.items()):
        facts = {"setting": setting, "cell_id": setting, "config": canonical_json(recipe), "seed": 7 * i}
        write(tmp_path, {name: 0.9 - i / 10 for name in NAMES}, teacher_sha256=4 * setting[0], **facts)
        write(tmp_path, {name: 0.9 for name in NAMES}, setting=setting, method="same", cell_id=f"s{i}")
    section_ = next(s for s in assemble(load(tmp_path)) if s.title == "Oneclass against multiclass")
    assert {line[0].text: line[-1].text for line in section_.tables[0].body} == {
        "fabricated_a": "backbone wrn50 against resnet18, epochs 200 against 2, image_size 256 against 128, "
        "teacher oooo against mmmm; seeds 0 against 7",
        "same": "",
    }


def test_with_few_categories_the_drop_has_its_interval_over_images(tmp_path: Path) -> None:
    samples = []
    for setting, merit, value in (("oneclass", 3.0, 0.9), ("multiclass", 0.5, 0.6)):
        write(tmp_path, {"a": value}, setting=setting, cell_id=setting, dataset_categories=["a", "b"])
        own = scores(setting, "a", merit=merit, seed=0)
        write_scores(tmp_path, own)
        samples.append(sample({setting: own}, "image_auroc"))
    section_ = next(s for s in assemble(load(tmp_path)) if s.title == "Oneclass against multiclass")
    lines = {line[1].text: line for line in section_.tables[0].body}
    expected = estimates.difference_over_images(samples[:1], samples[1:])
    assert (lines["I-AUROC"][5].low, lines["I-AUROC"][5].high) == expected.interval
    assert lines["I-AUROC"][4].text == "+30.03"
    assert lines["P-AUROC"][5].text == "-"  # pixels have no scores of images


def drop_lines(folder: Path) -> dict[tuple[str, str], Any]:
    """Lines of the drop by method and metric."""
    whole = next(s for s in assemble(load(folder)) if s.title == "Oneclass against multiclass")
    return {(line[0].text, line[1].text): line for line in whole.tables[0].body}


def test_a_category_that_failed_for_a_seed_is_in_no_drop(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path, {"a": 0.5, "b": 0.7}, seed=seed, cell_id=f"all{seed}")
        for name in "ab":
            facts = {"setting": "oneclass", "cell_id": f"{name}{seed}", "dataset_categories": ["a", "b"]}
            lost = {"status": "oom"} | all_metrics(None) if (name, seed) == ("b", 1) else {}
            write(tmp_path, {name: 0.9}, seed=seed, **facts | lost)
    line = drop_lines(tmp_path)["fabricated_a", "mAD"]
    assert [line[i].text for i in (2, 3, 4, 8)] == ["90.00", "50.00", "+40.00", "1 of 2"]


def test_the_drop_says_when_the_settings_have_other_images(tmp_path: Path) -> None:
    for method, renamed in (("same", False), ("moved", True)):
        for setting in ("oneclass", "multiclass"):
            cell_id = f"{method}-{setting}"
            facts = {"setting": setting, "cell_id": cell_id, "method": method}
            write(tmp_path, {"a": 0.9}, dataset_categories=["a", "b"], **facts)
            own = scores(cell_id, "a", merit=1, seed=0)
            if renamed and setting == "oneclass":
                own = [one | {"image": f"new/{one['image']}"} for one in own]
            write_scores(tmp_path, own)
    found = drop_lines(tmp_path)
    assert {method: found[method, "I-AUROC"][-1].text for method in ("same", "moved")} == {
        "same": "",
        "moved": "other images",
    }


def test_drops_of_several_methods_are_corrected_together(tmp_path: Path) -> None:
    for method, drop in (("m", 0.01), ("n", 0.02)):
        for i, name in enumerate("abcdefg"):
            facts = {"setting": "oneclass", "method": method, "dataset_categories": [*"abcdefg"]}
            write(tmp_path, {name: 0.9 + drop * i / 7 + 0.01}, cell_id=f"{method}{name}", **facts)
        write(tmp_path, {name: 0.9 for name in "abcdefg"}, method=method, cell_id=f"{method}-all")
    lines = drop_lines(tmp_path)
    drops = {method: drop * np.arange(7) / 7 + 0.01 for method, drop in (("m", 0.01), ("n", 0.02))}
    expected = {method: scipy.stats.ttest_1samp(own, 0).pvalue for method, own in drops.items()}
    assert expected["m"] < expected["n"]
    for method, corrected in (("m", 2 * expected["m"]), ("n", max(2 * expected["m"], expected["n"]))):
        found = [value.mean for value in lines[method, "AUPRO"][6:8]]
        assert found == pytest.approx([expected[method], corrected])
