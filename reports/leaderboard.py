"""The leaderboard: which tables a report has, and the files that they are written to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from kdbench.errors import number_of
from kdbench.files import written_aside
from kdbench.reports import (
    accuracy,
    below_chance,
    budget,
    costs,
    deployment,
    gaps,
    normals,
    shortcuts,
    significance,
    sweep,
    verdict,
)
from kdbench.reports.entries import (
    MAIN,
    TITLES,
    Entry,
    Means,
    common_categories,
    entries,
    means,
    ranked_by,
    shown,
)
from kdbench.reports.evidence import Evidence
from kdbench.reports.rows import Group, Rows, load, sections
from kdbench.reports.tables import Table, markdown_line, to_csv, to_latex, to_markdown

LEGEND = (
    "Percent. A mean is over all categories of the dataset, then over seeds (± standard deviation). I image, "
    "P pixel; AUPRO up to a false positive rate of 30 %, and of 5 %; mAD is the mean of the first seven.",
    "Methods are ranked by mAD. A method has a rank only if every category of every seed succeeded, no other "
    "method has more seeds, and none had other images. A - is a hole: there is no number.",
    significance.LEGEND,
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """The tables under one heading."""

    title: str
    tables: tuple[Table, ...]
    headline: str = ""  # its line for the terminal
    conclusion: str = ""  # the sentence that its paired tests allow
    standing: Table | None = None  # its ranking in a few columns


def write_leaderboard(results: str | Path, folder: Path) -> tuple[Path, str]:
    """Write `leaderboard.md`, `.csv` and `.tex` of all rows; returns the first and a headline."""
    files, headline = write_tables(assemble(load(results)), folder)
    return files[0], headline


def all_tables(results: str | Path) -> list[Table]:
    """Every table of the report."""
    return [table for section in assemble(load(results)) for table in section.tables]


def write_tables(found: Sequence[Section], folder: Path) -> tuple[list[Path], str]:
    """Write the files of `rendered`; returns them and a headline for the terminal."""
    files = rendered(found)
    for name, content in files.items():
        with written_aside(folder / name) as aside:
            aside.write_text(content, encoding="utf-8")
    headline = "\n".join(section.headline for section in found if section.headline)
    return [folder / name for name in files], headline


def rendered(found: Sequence[Section]) -> dict[str, str]:
    """The files of a leaderboard: name -> text."""
    tables = [table for section in found for table in section.tables]
    markdown = ["# Leaderboard\n", *(f"{line}\n" for line in LEGEND), *map(_markdown, found)]
    return {
        "leaderboard.md": "\n".join(markdown),
        "leaderboard.csv": to_csv(tables),
        "leaderboard.tex": "\n".join(to_latex(table) for table in tables),
    }


def assemble(rows: Rows) -> list[Section]:
    """Every section of the report, in order."""
    evidence = Evidence(rows.scores)
    found = [(group, entries(cells)) for group, cells in sections(rows.cells)]
    report = [*_overviews(found, evidence)]
    report += [_section(group, lines, rows, evidence) for group, lines in found]
    others = {
        "Oneclass against multiclass": accuracy.settings(found, evidence),
        "Holes": (
            *gaps.earlier(rows.earlier),
            *gaps.copies(rows.copies),
            *gaps.of_other_attempts(rows.of_other_attempts),
            *gaps.contradicted(rows.contradicted),
            *gaps.counts(found),
            *gaps.failures(found),
        ),
        "Methods": accuracy.papers([entry.method for _, lines in found for entry in lines]),
    }
    says = {"Holes": gaps.left_out(rows)}
    whole = [
        Section(title=title, tables=tuple(tables), headline=says.get(title, ""))
        for title, tables in others.items()
    ]
    searched = [
        Section(title=one.title, tables=tuple(sweep.tables(one)), headline=sweep.headline(one))
        for one in sweep.sweeps(rows.trials, rows.audits)
    ]
    return [*report, *(section for section in whole if section.tables), *searched]


def _overviews(found: Sequence[tuple[Group, list[Entry]]], evidence: Evidence) -> Iterator[Section]:
    """Methods x (dataset, setting), if several sections share their conditions.

    A section in which no method is complete is left out: its column would have holes only.
    """
    complete = [pair for pair in found if not all(entry.holes for entry in pair[1])]
    ordered = sorted(complete, key=lambda pair: pair[0].conditions)
    for conditions, of_conditions in groupby(ordered, key=lambda pair: pair[0].conditions):
        beside = list(of_conditions)
        if len(beside) > 1:
            title = f"Datasets and settings, {conditions}"
            yield Section(title=title, tables=tuple(accuracy.overview(beside, title, evidence)))


def _section(group: Group, found: list[Entry], rows: Rows, evidence: Evidence) -> Section:
    common = common_categories(found)
    some = common if any(entry.holes for entry in found) else []
    pairs = [*significance.comparisons(found, group.title)]
    over_images = [*significance.differences_over_images(evidence, found, common, group.title)]
    tables = [
        accuracy.ranking(group, found, evidence),
        *accuracy.partial(group, found),
        *below_chance.tables(group, found),
        *shortcuts.flagged(group, found, rows),
        accuracy.conditions(group, found),
        *accuracy.further(group, found),
        *normals.at_threshold(group, found, rows),
        *costs.sizes(group, found),
        *costs.latencies(group, found, rows.latencies, rows.untimed),
        *deployment.runtimes(group, found, rows.latencies, rows.untimed),
        *deployment.exported(group, found, rows),
        *costs.training(group, found),
        *budget.flattened(group, found, rows),
        *budget.in_between(group, found, rows),
        *significance.intervals(evidence, found, group.title),
        *significance.partial_intervals(evidence, found, some, group.title),
        *pairs,
        *over_images,
        significance.average_ranks(found, ranked_by(found), group.title),
        *(accuracy.per_category(group, found, metric) for metric in accuracy.PER_CATEGORY),
        *accuracy.published(group, found),
        *accuracy.interference(group, found, rows.probes),
    ]
    return Section(
        title=group.title,
        tables=tuple(tables),
        headline=_headline(group, found),
        conclusion=verdict.conclusion(found, pairs, over_images),
        standing=verdict.standing(found, group.title),
    )


def _headline(group: Group, found: list[Entry]) -> str:
    lines = [group.title]

    def say(name: str, numbers: Means) -> str:
        return f"  {name}: " + ", ".join(f"{TITLES[m]} {shown(numbers[m]).text}" for m in MAIN)

    common = common_categories(found)
    partial = f"{len(common)} of {number_of(len(found[0].dataset_categories), 'category')}" if common else ""
    for entry in found:
        if entry.holes == (partial,):
            continue  # the means over these categories follow
        if entry.holes:
            lines.append(f"  {entry.name}: no mean, {'; '.join(entry.holes)}")
        else:
            remark = f" ({'; '.join(entry.unlike)}: not ranked)" if entry.unlike else ""
            lines.append(say(entry.name, entry.means) + remark)
    if common and any(entry.holes for entry in found):
        lines.append(f"  {accuracy.partial_title(found, common)}")
        for entry in found:
            lines.append("  " + say(entry.name, means(entry.rows[entry.rows["category"].isin(common)])))
    return "\n".join([*lines, *below_chance.said(found)])


def _markdown(section: Section) -> str:
    parts = [f"## {markdown_line(section.title)}\n"]
    parts += [f"{markdown_line(section.conclusion)}\n"] if section.conclusion else []
    for table in section.tables:
        title = table.title.removesuffix(f": {section.title}")
        parts.append(f"### {markdown_line(title)}\n\n{to_markdown(table)}")
    return "\n".join(parts)
