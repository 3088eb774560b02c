"""The sentence on what can be concluded is true of every pair, whatever the tests found."""

import itertools
import re

import pytest
from fabricated_run import Grid, fabricate

from kdbench.reports.leaderboard import assemble
from kdbench.reports.page import write_report
from kdbench.reports.rows import load
from kdbench.reports.tables import Table
from kdbench.reports.verdict import NOTHING, Judged, sentence

ORDER = ("a", "b", "c", "d")
HEAD = "By mAD, after Holm's correction over "


def said(differences: dict[str, float | None]) -> str:
    """The sentence on pairs such as `ab`. A difference of None was not tested, one below 1 is none."""
    pairs = [
        Judged(first=one, second=two, difference=d or 0, p=None if d is None else 0.2 if abs(d) < 1 else 0.01)
        for (one, two), d in differences.items()
    ]
    return sentence(pairs, ORDER, "mAD")


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ({"ab": 0.5}, "1 pair: no difference between a and b can be told."),
        ({"ab": -2}, "1 pair: b is better than a."),
        (
            {"ab": 0.1, "ac": 2, "bc": 2},
            "3 pairs: a and b are each better than c; no difference between a and b can be told.",
        ),
        (
            {"ab": 2, "ac": 2, "bc": 0.1},
            "3 pairs: a is better than both b and c; no difference between b and c can be told.",
        ),
        # Neither is told from b, though a is better than c: "not told" is not transitive.
        (
            {"ab": 0.5, "ac": 2, "bc": 0.5},
            "3 pairs: a is better than c; no difference between a and b can be told; no difference between b "
            "and c can be told.",
        ),
        # A cycle, which means over other categories could give: each pair is said by itself.
        (
            {"ab": 2, "bc": 2, "ac": -2},
            "3 pairs: a is better than b; b is better than c; c is better than a.",
        ),
        (
            {"ab": 0, "ac": 0, "bc": 0},
            "3 pairs: no difference between any two of a, b and c can be told.",
        ),
        ({"ab": 2, "ac": None}, "1 pair: a is better than b; not tested: a and c."),
    ],
)
def test_the_sentence_by_hand(differences, expected):
    assert said(differences) == HEAD + expected


def test_without_a_test_nothing_is_concluded():
    assert said({"ab": None}) == NOTHING
    assert said({}) == NOTHING


def test_every_pair_of_four_methods_is_said_once_and_truly():
    names = [*map("".join, itertools.combinations(ORDER, 2))]
    for values in itertools.product((-2, 0.1, 2, None), repeat=len(names)):
        if any(value is not None for value in values):
            text = said(dict(zip(names, values, strict=True))).partition(": ")[2].removesuffix(".")
            found = {pair: value for part in text.split("; ") for pair, value in read(part).items()}
            assert found == dict(zip(names, values, strict=True)), text


def read(part: str) -> dict[str, float | None]:
    """Pairs and their differences, as a part of the sentence says them."""
    listed = lambda words: re.findall(r"\b[abcd]\b", words.replace("difference", ""))  # noqa: E731
    if part.startswith("not tested: "):
        one, *others = part.removeprefix("not tested: ").split(", ")
        return {"".join(sorted(pair.split(" and "))): None for pair in (one, *others)}
    if part.startswith("no difference"):
        between = re.fullmatch(r"no difference between (?:any two of )?(.*) can be told", part)[1]
        return {"".join(pair): 0.1 for pair in itertools.combinations(sorted(listed(between)), 2)}
    winners, losers = re.fullmatch(r"(.*) (?:is|are each) better than (?:both |each of )?(.*)", part).groups()
    pairs = itertools.product(listed(winners), listed(losers))
    return {"".join(sorted((w, other))): 2 if w < other else -2 for w, other in pairs}


def test_many_methods_are_counted_and_not_named():
    names = [f"m{i}" for i in range(9)]
    pairs = [
        Judged(first=a, second=b, difference=1, p=0.01 if a == "m0" else 0.3)
        for a, b in itertools.combinations(names, 2)
    ]
    expected = "36 pairs: 8 of them differ at 5 %; the table of pairs says which."
    assert sentence(pairs, names, "mAD") == HEAD + expected


def test_the_report_opens_with_the_ranking_and_a_sentence_that_agrees_with_its_table(tmp_path):
    methods = {"methods": ("dcam", "snl", "stfpm"), "settings": ("oneclass",), "pictures": False}
    fabricate(
        tmp_path / "r", Grid(datasets={"toy": ("nut", "wood")}, num_images=160, latency=False, **methods)
    )
    (section, *_) = (one for one in assemble(load(tmp_path / "r")) if one.standing)
    (table,) = (one for one in section.tables if one.title.startswith("I-AUROC, pairs over images"))
    told = [line for line in table.body if column(table, line, "p (Holm)") < 0.05]
    assert told
    for line in told:
        names = [line[table.head.index(name)].text for name in ("method", "against")]
        one, two = names if column(table, line, "difference") > 0 else names[::-1]
        parts = section.conclusion.split("; ")
        assert any(one in part.split(" better ")[0] and two in part.split(" better ")[1] for part in parts
                   if " better " in part)  # fmt: skip
    assert [line[1].text for line in section.standing.body] == [
        line[1].text for line in section.tables[0].body
    ]
    written = write_report(tmp_path / "r", tmp_path / "out")
    page = written.page.read_text(encoding="utf-8")
    opening = page.split('<main id="main">')[1]
    assert opening.index(section.conclusion.replace("'", "&#39;")) < opening.index('id="section-0"')
    lines = (tmp_path / "out/leaderboard.md").read_text(encoding="utf-8").splitlines()
    assert lines[lines.index(f"## {section.title}") + 2] == section.conclusion


def column(table: Table, line: tuple, name: str) -> float:
    return line[table.head.index(name)].mean
