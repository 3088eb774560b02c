"""What is printed in a terminal of any width: no word is cut, and the last line says what to do next."""

import io

import pytest
from rich.console import Console

from kdbench.cell import Progress
from kdbench.cli import tables, terminal
from kdbench.cli.tables import Line, show
from kdbench.grid.bars import Bars
from kdbench.grid.console import shows_bars

HEAD = ("method", "setting", "what it is")
LINES = [
    Line(cells=("recontrast", "oneclass", "a frozen and an adapting encoder, each rebuilt from the other's")),
    Line(cells=("stfpm", "oneclass", "[red] structural")),
]


@pytest.fixture
def printed(monkeypatch):
    """A function that prints in a terminal of a width, and returns its lines."""

    def call(width, say, *, is_terminal=True):
        file = io.StringIO()
        console = Console(
            file=file, width=width, force_terminal=is_terminal, color_system=None, _environ={"TERM": "xterm"}
        )
        for module in (terminal, tables):
            monkeypatch.setattr(module, "out", console)
        say()
        return file.getvalue().splitlines()

    return call


def words(lines):
    return " ".join(lines).replace("│", " ").split()


@pytest.mark.parametrize("width", [120, 60, 40, 30])
def test_no_word_of_a_table_is_cut_whatever_the_width(printed, width):
    lines = printed(width, lambda: show(HEAD, LINES, title="methods"))
    assert max(map(len, lines)) <= width
    assert {"recontrast", "adapting", "rebuilt", "[red]", "structural", "stfpm"} <= {*words(lines)}
    assert lines[0] == "methods"


def test_what_all_lines_share_is_said_once_where_there_is_no_room(printed):
    wide, narrow = (printed(n, lambda: show(HEAD, LINES)) for n in (120, 30))
    assert words(wide).count("oneclass") == 2
    assert narrow[0] == "setting: oneclass"
    assert words(narrow).count("oneclass") == 1
    assert any("recontrast │" in line for line in narrow)


def test_where_no_table_fits_each_line_is_a_list(printed):
    lines = printed(20, lambda: show(HEAD, LINES))
    assert lines[:3] == ["setting: oneclass", "method: recontrast", "what it is: a frozen"]
    assert lines[-3:] == ["method: stfpm", "what it is: [red]", "  structural"]
    assert "" in lines


def test_an_address_may_be_cut_so_that_a_table_stays_one(printed):
    line = Line(cells=("dagm", "0 of 10", "https://" + 60 * "x"))
    lines = printed(60, lambda: show(HEAD, [line, line]))
    assert max(map(len, lines)) <= 60
    assert sum("dagm" in one for one in lines) == 2


def test_lines_are_folded_between_words_in_a_terminal_only(printed):
    text = "  stfpm: a path /a/very/long/path/that-stays-whole and [markup]"
    assert printed(24, lambda: terminal.say(text)) == [
        "  stfpm: a path",
        "    /a/very/long/path/that-stays-whole",
        "    and [markup]",
    ]
    assert printed(24, lambda: terminal.say(text), is_terminal=False) == [text]


def test_a_command_to_copy_stays_in_one_line(printed):
    (line,) = printed(30, lambda: terminal.say_next("a page", "kdbench", "report", "--out", "my parts"))
    assert line == "next, a page: kdbench report --out 'my parts'"


def test_bars_move_only_where_they_can():
    shows = [
        shows_bars(Console(file=io.StringIO(), force_terminal=really, _environ={"TERM": term}))
        for really, term in ((True, "xterm"), (True, "dumb"), (False, "xterm"))
    ]
    assert shows == [True, False, False]


@pytest.mark.parametrize(("width", "has_bar"), [(80, False), (120, False), (140, True)])
def test_a_running_cell_shows_its_phase_once_and_its_epoch_in_any_terminal(width, has_bar):
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=True, color_system=None, _environ={"TERM": "xterm"}
    )
    view = Bars(console, console)
    view.begin({"abc": 60.0})
    cell = {"cell_id": "abc", "label": "vm: stfpm synthetic/wood oneclass seed 0", "loss": 4.5631}
    cell["problem"] = "no checkpoint: No space left on device"
    view.progress(Progress(**cell, phase="train", done=20, total=240, epoch=3, epochs=6))
    view.end()
    file.truncate(0)
    console.print(view.bars)
    (line,) = (one for one in file.getvalue().splitlines() if "stfpm" in one)
    assert "vm: stfpm synthetic/wood oneclass seed 0 " in line
    assert line.count("train") == line.count("epoch 3/6") == 1
    assert ("20/240" in line) == has_bar


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("list methods", "next, compare some of them: kdbench run --methods NAME,NAME"),
        ("list datasets", "next, look at images on disk: kdbench datasets check NAME --root FOLDER"),
        ("list backbones", "next, train with one of them: kdbench run --backbone NAME"),
        ("list recipes", "next, how long one takes: kdbench run --config RECIPE --root FOLDER --dry-run"),
    ],
)
def test_the_last_line_says_what_to_do_next(kdbench, command, end):
    code, text = kdbench(*command.split())
    assert code == 0
    assert text.splitlines()[-1] == end
