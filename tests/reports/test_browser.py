"""The page in a browser, without a network: it sorts, filters, plots, says no error, and is accessible."""

import json
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fabricated import trial_row
from fabricated_run import Grid, fabricate

from kdbench.reports.page import write_report
from kdbench.results.store import TRIALS, Results

pytestmark = pytest.mark.slow
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    grid = Grid(
        datasets={"toy": ("nut", "wood")}, methods=("dcam", "dskd", "stfpm"), seeds=(0, 1), num_images=60
    )
    fabricate(folder / "results", grid)
    return write_report(folder / "results", folder / "out").page


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which stfpm, the faster of two methods, has one seed of two."""
    folder = tmp_path_factory.mktemp("uneven")
    for method, seeds in (("dcam", (0, 1)), ("stfpm", (0,))):
        grid = Grid(
            datasets={"toy": ("nut",)}, methods=(method,), settings=("oneclass",), seeds=seeds, pictures=False
        )
        fabricate(folder / "results", grid)
    return write_report(folder / "results", folder / "out").page


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium of the system; nothing is downloaded."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install kdbench[browser]")
    browser, control = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and control):
        pytest.skip("no chromium and chromedriver on this machine (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(control))
    yield started
    started.quit()


@pytest.fixture
def page(driver: Any, report: Path) -> Any:
    """The page as it opens, 1280 pixels wide and light."""
    show(driver, report, width=1280, dark=False)
    return driver


def show(driver: Any, report: Path, *, width: int, dark: bool) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(report.as_uri())


def column(driver: Any, table: str, number: int) -> list[str]:
    script = "return [...document.querySelectorAll(`${arguments[0]} tbody tr:not([hidden])`)]"
    return driver.execute_script(f"{script}.map(row => row.cells[arguments[1]].textContent)", table, number)


def ranking(driver: Any) -> str:
    """The selector of the ranking of the oneclass section."""
    tables = "[...document.querySelectorAll('table')]"
    script = f"return {tables}.filter(t => t.caption.textContent === 'Ranking')[1].id"
    return f"#{driver.execute_script(script)}"


def test_no_error_in_the_console_and_nothing_is_asked_of_the_network(page: Any) -> None:
    assert page.get_log("browser") == []
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_a_page_of_a_sweep_alone_says_no_error(driver: Any, tmp_path: Path) -> None:
    for number in (0, 1):
        Results(tmp_path / "results").write(TRIALS, [trial_row(number, 0.5 + 0.1 * number)])
    show(driver, write_report(tmp_path / "results", tmp_path / "out").page, width=1280, dark=False)
    assert driver.get_log("browser") == []
    assert driver.execute_script("return document.querySelectorAll('header button').length") == 2


def test_a_table_sorts_by_a_column_either_way_and_says_so(page: Any) -> None:
    table = ranking(page)
    head = page.find_elements("css selector", f"{table} thead th")[2]
    button = head.find_element("tag name", "button")
    assert button.text == "I-AUROC"
    button.click()
    falling = column(page, table, 2)
    assert head.get_attribute("aria-sort") == "descending"
    assert falling == sorted(falling, key=lambda text: -float(text.split()[0]))
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, table, 2) == falling[::-1]


def test_the_list_of_cells_is_filtered_by_words(page: Any) -> None:
    page.execute_script("document.getElementById('all-cells').open = true")
    box = page.find_element("css selector", "#all-cells input")
    box.send_keys("dskd oneclass")
    assert set(column(page, "#cells", 1)) == {"dskd"}
    assert set(column(page, "#cells", 3)) == {"oneclass"}
    assert "4 of 18 lines" in page.find_element("css selector", "#all-cells output").text


def test_a_number_shows_the_cells_behind_it(page: Any) -> None:
    number = page.find_element("css selector", f"{ranking(page)} tbody td.number a")
    shown = number.text
    name = number.find_element("xpath", "ancestor::tr").find_element("css selector", "th").text
    number.click()
    assert set(column(page, "#cells", 1)) == {name}
    assert len(column(page, "#cells", 0)) == 4
    said = page.find_element("id", "behind").text
    assert said.startswith(f"4 cells behind {shown} · {name} · I-AUROC")
    page.find_element("css selector", "#behind button").click()
    assert len(column(page, "#cells", 0)) == 18


def test_a_number_shows_its_cells_whatever_words_the_list_was_filtered_by(page: Any) -> None:
    page.execute_script("document.getElementById('all-cells').open = true")
    box = page.find_element("css selector", "#all-cells input")
    box.send_keys("multiclass")
    assert set(column(page, "#cells", 3)) == {"multiclass"}
    page.find_element("css selector", f"{ranking(page)} tbody td.number a").click()
    assert set(column(page, "#cells", 3)) == {"oneclass"}
    assert len(column(page, "#cells", 0)) == 4
    assert box.get_attribute("value") == ""


def test_signed_intervals_sort_by_their_lower_end(page: Any) -> None:
    tables = "[...document.querySelectorAll('table')]"
    name = "caption.textContent.startsWith('Oneclass against multiclass')"
    table = f"#{page.execute_script(f'return {tables}.find(t => t.{name}).id')}"
    head = page.find_elements("css selector", f"{table} thead th")[5]
    assert head.text == "95 % interval"
    page.execute_script("arguments[0].querySelector('button').click()", head)
    intervals = [text for text in column(page, table, 5) if text != "-"]
    low = [float(text.split()[0]) for text in intervals]
    assert low == sorted(low)
    assert low[0] < low[1] < 0 < low[-1]


def test_the_plot_answers_to_keyboard_and_hides_methods(page: Any) -> None:
    points = page.find_elements("css selector", "#chart .point")
    assert len(points) == 3
    page.execute_script("arguments[0].focus()", points[0])
    tip = page.find_element("id", "tip")
    assert tip.is_displayed()
    assert "ms median" in tip.text
    assert "99th percentile: fewer than 100 batches" in tip.text
    assert points[0].get_attribute("aria-label").startswith(tip.text.splitlines()[0])
    button = page.find_element("css selector", "#chart .legend button")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert len(page.find_elements("css selector", "#chart .point")) == 2
    front = page.find_element("css selector", "#chart .front").get_attribute("d")
    device = page.find_elements("css selector", "#chart select")[1]
    device.find_elements("tag name", "option")[1].click()
    assert page.find_element("css selector", "#chart .front").get_attribute("d") != front


def test_the_axis_of_latency_has_numbers_where_one_method_is_shown(page: Any) -> None:
    """Between 3 / 1.15 and 3 * 1.15 ms lies one round number at most."""
    for button in page.find_elements("css selector", "#chart .legend button"):
        if button.text != "stfpm":
            button.click()
    (point,) = page.find_elements("css selector", "#chart .point")
    shown = point.get_attribute("aria-label").split(", ")[2]
    assert shown.endswith(" ms median")
    ms = float(shown.split()[0])
    texts = [text.text for text in page.find_elements("css selector", "#chart > svg > text")]
    ticks = [float(text) for text in texts[: texts.index("median ms per batch (log)")] if text]
    ticks = [tick for tick in ticks if ms / 1.16 < tick < ms * 1.16]
    assert len(ticks) >= 3
    assert min(ticks) < ms < max(ticks)


def test_what_has_no_rank_is_hollow_and_not_on_the_front(driver: Any, uneven: Path) -> None:
    show(driver, uneven, width=1280, dark=False)
    said = {}
    for point in driver.find_elements("css selector", "#chart .point"):
        name, *_, last = point.get_attribute("aria-label").split(", ")
        said[name] = (last, "hollow" in point.find_element("css selector", ".glyph").get_attribute("class"))
    assert said["stfpm"] == ("not on the front: 1 of 2 seeds", True)
    assert said["dcam"] == (said["dcam"][0], False)
    front = driver.find_element("css selector", "#chart .front").get_attribute("d")
    place = driver.find_element("css selector", "#chart .point .glyph:not(.hollow)").get_attribute(
        "transform"
    )
    x, y = place.removeprefix("translate(").split(")")[0].split()
    assert front == f"M{x},{y}"


def test_colours_follow_the_system_until_they_are_chosen(driver: Any, report: Path) -> None:
    show(driver, report, width=1280, dark=True)
    paper = "return getComputedStyle(document.body).backgroundColor"
    assert driver.execute_script(paper) == "rgb(20, 23, 28)"
    driver.find_element("css selector", "button.theme").click()
    assert driver.execute_script(paper) == "rgb(255, 255, 255)"


def test_a_click_enlarges_the_pictures_of_an_image_and_escape_closes_them(page: Any) -> None:
    picture = page.find_elements("css selector", ".exhibit button.picture")[2]
    before = picture.size["width"]
    assert picture.get_attribute("aria-label") == "Enlarge anomaly map of dcam"
    picture.click()
    (zoom,) = page.find_elements("css selector", "dialog[open]")
    shown = zoom.find_elements("css selector", ".picture")
    assert len(shown) == len(
        page.find_elements("css selector", ".exhibit")[0].find_elements("css selector", ".picture")
    )
    assert min(one.size["width"] for one in shown) > 2 * before
    (chosen,) = zoom.find_elements("css selector", ".chosen")
    assert "dcam" in chosen.text
    assert len(zoom.find_elements("css selector", ".scale")) == 1
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    zoom.send_keys("\ue00c")
    assert page.find_elements("css selector", "dialog") == []
    assert page.get_log("browser") == []


def test_a_phone_needs_no_sideways_scrolling(driver: Any, report: Path) -> None:
    show(driver, report, width=360, dark=False)
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert driver.execute_script("return document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_accessibility_checks_of_axe_find_nothing(
    driver: Any, report: Path, width: int, dark: bool
) -> None:
    package = pytest.importorskip("axe_selenium_python", reason="pip install kdbench[browser]")
    show(driver, report, width=width, dark=dark)
    driver.set_script_timeout(300)
    driver.execute_script((files(package) / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8"))
    found = driver.execute_async_script(
        "const done = arguments[0]; axe.run().then(r => done(JSON.stringify(r.violations)))"
    )
    told = [(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in json.loads(found)]
    assert told == []
