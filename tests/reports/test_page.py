"""The page: nothing fetched, nothing from rows unescaped, every number leads to its cells."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fabricated_run import Grid, fabricate

from kdbench.reports.page import write_report
from kdbench.results.store import CELLS, LATENCY, Results, read

EVIL = "<script>alert('x')</script>\"&</table>"


class Page(HTMLParser):
    """Ids, links, tags and the stored data of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append((tag, own))
        if "id" in own:
            self.ids.append(str(own["id"]))

    @property
    def data(self) -> dict:
        return json.loads(re.search(r'id="data">(.*?)</script>', self.text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[Page, Path]:
    folder = tmp_path_factory.mktemp("page")
    grid = Grid(
        datasets={"toy": ("nut", "wood")}, methods=("dcam", "stfpm"), settings=("oneclass",), seeds=(0, 1)
    )
    fabricate(folder / "results", grid)
    written = write_report(folder / "results", folder / "out")
    path, headline = written.page, written.headline
    on_disk = {path for path in (folder / "out").rglob("*") if path.is_file()}
    assert set(written.files) == on_disk
    assert len(written.files) == len(on_disk)
    assert "dcam" in headline
    return Page(path.read_text(encoding="utf-8")), folder


def test_the_report_has_page_figures_and_leaderboard(page):
    out = page[1] / "out"
    assert {path.name for path in out.iterdir()} >= {"report.html", "leaderboard.md", "figures"}
    drawn = sorted(path.stem for path in (out / "figures").glob("*.svg"))
    assert drawn == sorted(path.stem for path in (out / "figures").glob("*.png"))
    assert "latency-toy-oneclass-paper-exact-v1-0" in drawn
    assert "workers-0" in drawn


def test_cells_that_ended_well_have_no_error(page):
    text = page[0].text
    assert ">nan<" not in text
    assert "error 1" not in text
    assert "<h3>Errors</h3>" not in text


def test_nothing_is_fetched_and_only_our_script_may_run(page):
    text = page[0].text
    for tag, own in page[0].tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") or name == "style" for name in own)
        if tag == "img":
            assert own["src"].startswith("data:image/")
            assert own["alt"]
        if tag == "a":
            assert own["href"].startswith(("#", "figures/"))
    policy = next(own["content"] for tag, own in page[0].tags if "http-equiv" in own)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for kind in ("style", "script"):
        inline = re.search(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_every_link_leads_somewhere_and_every_id_is_unique(page):
    targets = {own["href"] for tag, own in page[0].tags if tag == "a"}
    assert len(set(page[0].ids)) == len(page[0].ids)
    missing = {target for target in targets if target[0] == "#" and target[1:] not in page[0].ids}
    assert not missing
    assert all((page[1] / "out" / target).exists() for target in targets if target[0] != "#")


def test_a_number_leads_to_exactly_the_cells_behind_it(page):
    rows = read(page[1] / "results", CELLS).to_pandas()
    cells = re.findall(r'<tr id="(cell-\d+)"><th scope="row"><code>([^<]+)</code>', page[0].text)
    assert [name for _, name in cells] == list(dict.fromkeys(rows["cell_id"]))
    groups = page[0].data["groups"]
    section = page[0].text.split(">toy, oneclass, profile paper, preset exact (metrics v1)</h2>")[1]
    line = re.search(r'<th scope="row"[^>]*>dcam</th>.*?</tr>', section, re.DOTALL)[0]
    own = rows[(rows["method"] == "dcam") & (rows["setting"] == "oneclass")]
    mean = own.groupby("seed")["image_auroc"].mean().mean()
    value, group, shown = re.search(
        r'data-sort="([\d.]+)"[^>]*><a href="#cell-\d+" data-group="(\d+)">([^<]+)</a>', line
    ).groups()
    assert float(value) == pytest.approx(mean)
    assert shown.startswith(f"{100 * mean:.2f}")
    assert {cells[i][1] for i in groups[int(group)]} == set(own["cell_id"])


def test_a_cell_says_its_recipe_seed_versions_and_machine(page):
    line = re.search(r'<tr id="cell-0">.*?</tr>', page[0].text, re.DOTALL)[0]
    recipe, machine = re.findall(r'href="#((?:recipe|machine)-\d+)"', line)
    facts = dict(
        re.findall(
            r'<details id="([a-z]+-\d+)"><summary>.*?<pre tabindex="0">(.*?)</pre>', page[0].text, re.DOTALL
        )
    )
    assert "&#34;lr&#34;: 0.4" in facts[recipe]
    assert "teacher_sha256 0123456789abcdef" in facts[recipe]
    assert "device_name Tesla X" in facts[machine]
    assert "torch_version 2.9.0" in facts[machine]


def test_the_gallery_says_whose_pictures_it_shows(page):
    assert "Each method shows the lowest seed that has its pictures." in page[0].text
    assert "the lowest seed that succeeded" not in page[0].text


def test_the_points_of_the_plot_are_those_of_the_rows(page):
    data = page[0].data
    assert data["metrics"][0] == "mAD"
    assert len(data["points"]) == 2 * 2 * 2  # methods, devices, batch sizes
    assert {point["precision"] for point in data["points"]} == {"fp32"}
    first = data["points"][0]
    assert data["sections"][first["section"]].startswith("toy, oneclass")
    rows = read(page[1] / "results", CELLS).to_pandas()
    own = rows[(rows["method"] == first["entry"]) & (rows["setting"] == "oneclass")]
    assert first["accuracy"][0][0] == pytest.approx(100 * own.groupby("seed")["mad"].mean().mean(), abs=1e-3)


def test_a_point_says_why_it_can_be_on_no_front(tmp_path):
    for method, seeds in (("dcam", (0, 1)), ("stfpm", (0,))):
        grid = Grid(
            datasets={"toy": ("nut",)}, methods=(method,), settings=("oneclass",), seeds=seeds, pictures=False
        )
        fabricate(tmp_path / "r", grid)
    text = write_report(tmp_path / "r", tmp_path / "out").page.read_text(encoding="utf-8")
    said = {(point["entry"], point["off_front"]) for point in Page(text).data["points"]}
    assert said == {("dcam", ""), ("stfpm", "1 of 2 seeds")}


def row(**changes: object) -> dict:
    own = {
        "schema_version": 1, "cell_id": "c", "run_id": "r", "method": "stfpm", "config": "{}",
        "dataset": "toy", "setting": "oneclass", "category": "a", "categories": ["a"],
        "dataset_categories": ["a"], "seed": 0,
        "profile": "paper", "selection": "heldout", "preset": "exact", "metric_version": 1,
        "status": "ok", "image_auroc": 0.9,
    }  # fmt: skip
    return own | changes


def test_what_comes_from_rows_cannot_become_markup_or_script(tmp_path):
    names = {"method": EVIL, "dataset": EVIL, "category": EVIL, "host": EVIL, "device_name": EVIL}
    names |= {"categories": [EVIL], "dataset_categories": [EVIL], "config": json.dumps({"key": EVIL})}
    results = Results(tmp_path / "r")
    results.write(CELLS, [row(**names, started_at="2026-01-01T00:00:00+00:00", train_s=3.0)])
    results.write(CELLS, [row(**names, cell_id="d", seed=1, status="failed", error=f"Traceback\n{EVIL}")])
    times = {
        "batch_size": 1,
        "times_ms": [1.0, 2.0],
        "p50_ms": 1.5,
        "p90_ms": 2.0,
        "p99_ms": 2.0,
        "busy": False,
    }
    timing = {"cell_id": "c", "method": EVIL, "device_name": EVIL, "device": "cuda", "images_per_s": 1.0}
    results.write(LATENCY, [timing | times])
    path = write_report(tmp_path / "r", tmp_path / "out").page
    page = Page(path.read_text(encoding="utf-8"))
    assert "<script>alert" not in page.text
    assert [own for tag, own in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page.text
    assert all(p.parent == tmp_path / "out/figures" for p in (tmp_path / "out").rglob("*.svg"))


def test_a_result_with_nothing_but_one_row_has_a_page_that_says_what_is_missing(tmp_path):
    Results(tmp_path / "r").write(CELLS, [row()])
    path = write_report(tmp_path / "r", tmp_path / "out").page
    text = path.read_text(encoding="utf-8")
    assert 'id="chart"' not in text
    assert "No pictures" in text
    assert "<strong>Accuracy against latency:</strong> not drawn, no detector was timed." in text
    assert "1 row of 1 cell (1 ok): 1 method, 1 dataset, 1 seed." in text


def test_only_failures_have_a_page_too(tmp_path):
    Results(tmp_path / "r").write(CELLS, [row(status="oom", error="MemoryError", image_auroc=None)])
    path = write_report(tmp_path / "r", tmp_path / "out").page
    assert "error 1: MemoryError" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_same_rows_give_the_same_page(page, tmp_path):
    again = write_report(page[1] / "results", tmp_path / "out").page
    assert again.read_text(encoding="utf-8") == page[0].text
