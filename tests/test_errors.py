"""How errors are put into words."""

import errno
import os
from pathlib import Path

import pytest

from kdbench.errors import first_line, last_line, number_of, reason
from kdbench.files import build_once, written_aside


def test_the_reason_of_an_oserror_is_the_systems_words_without_the_path(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "missing").read_bytes()
    assert reason(raised.value) == os.strerror(errno.ENOENT)


@pytest.mark.parametrize(
    ("error", "text"),
    [(ValueError("no good"), "no good"), (OSError("disk gone"), "disk gone"), (IndexError(), "IndexError")],
)
def test_the_reason_of_another_error_is_its_message_or_its_type(error, text):
    assert reason(error) == text


def test_one_line_of_a_text_is_chosen_whatever_blank_lines_surround_it():
    assert first_line(ValueError("\nfirst\nsecond\n")) == "first"
    assert first_line(ValueError("x" * 300)) == "x" * 200
    assert first_line(KeyError()) == "KeyError"
    assert last_line("Traceback\n  file\nValueError: no\n\n") == "ValueError: no"
    assert last_line(" \n") == ""


def test_a_file_that_fails_while_it_is_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "made" / "file.txt"
    with written_aside(path) as aside:
        aside.write_text("old")

    def fail(aside: Path):
        aside.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), written_aside(path) as aside:
        fail(aside)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_is_built_once_and_a_failed_one_is_not_there(tmp_path):
    calls = []

    def build(folder: Path):
        calls.append(folder)
        (folder / "part").write_text("whole")
        if len(calls) == 1:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        build_once(tmp_path / "store", build)
    assert [p.name for p in tmp_path.iterdir()] == ["store.lock"]
    for _ in range(2):
        assert (build_once(tmp_path / "store", build) / "part").read_text() == "whole"
    assert len(calls) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "store.lock"]


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (0, "cell", "0 cells"),
        (1, "cell", "1 cell"),
        (2, "category", "2 categories"),
        (1, "category", "1 category"),
        (1.0, "GPU", "1 GPU"),
        (0.5, "GPU", "0.5 GPUs"),
        (4.0, "CPU", "4 CPUs"),
        (1234567, "image", "1234567 images"),
    ],
)
def test_a_number_stands_with_the_right_form_of_its_noun(number, noun, said):
    assert number_of(number, noun) == said
    assert number_of(number, "worker or node", "workers or nodes").endswith("s") == (number != 1)
