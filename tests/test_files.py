"""How paths and texts of users are read."""

import os
import re
import stat

import pytest

from kdbench.data.download import download_folder
from kdbench.errors import RequestError
from kdbench.files import cache_folder, expanded, folder_of, provide_home, read_text
from kdbench.registry import get_dataset
from kdbench.weights import cached_weights

TEXT = "name = 'Gehäuse 中'\r\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(
    ("path", "full"),
    [
        ("~", "{home}"),
        ("~/res", "{home}/res"),
        ("./~", "./~"),
        ("a/~/b", "a/~/b"),
        ("s3://bucket/~/b", "s3://bucket/~/b"),
        ("", ""),
    ],
)
def test_a_tilde_at_the_start_of_a_path_is_the_home_folder(home, path, full):
    assert expanded(path) == full.format(home=home)


def test_a_home_folder_that_does_not_exist_is_named():
    with pytest.raises(RequestError, match=r"^there is no home folder '~no-such-user'$"):
        expanded("~no-such-user/x")


def test_a_tilde_in_an_environment_variable_is_the_home_folder(home, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", "~/cache")
    monkeypatch.setenv("KDBENCH_DATA", "~/data")
    monkeypatch.setenv("KDBENCH_WEIGHTS", "~/weights")
    assert cache_folder() == home / "cache"
    assert download_folder(get_dataset("visa"), None) == home / "data/visa"
    (home / "data/visa").mkdir(parents=True)
    assert get_dataset("visa").root(None) == home / "data/visa"
    (home / "weights").mkdir()
    (home / "weights/resnet18.tv_in1k.pth").write_bytes(b"weights")
    found = cached_weights("resnet18.tv_in1k")
    assert found is not None
    assert found.path == str(home / "weights/resnet18.tv_in1k.pth")


def test_an_environment_variable_that_is_empty_names_no_folder(monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", "")
    assert folder_of("KDBENCH_DATA") is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_text_is_read_with_and_without_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path) == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "the text is UTF-16. Save it as UTF-8"),
        (TEXT.encode("utf-32"), "the text is UTF-32. Save it as UTF-8"),
        (
            "a = 1".encode("utf-16-le"),
            "it has NUL characters, as UTF-16 without a mark has. Save it as UTF-8",
        ),
        ("a = 'ä'".encode("latin-1"), "byte 0xe4 at position 5 is not UTF-8. Save it as UTF-8"),
    ],
)
def test_a_text_of_another_encoding_is_named(tmp_path, content, message):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_text(path)


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """A user whom the system does not know, as in a container; the temporary folder."""
    monkeypatch.setenv("HOME", "to be restored")
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("KDBENCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # KeyError, as for an unknown user
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path / f"kdbench-{os.getuid()}"


def test_a_user_without_a_home_folder_gets_one_that_nobody_else_can_write(homeless):
    assert provide_home() == (
        f"user {os.getuid()} has no home folder; it is {homeless} now. HOME or KDBENCH_CACHE chooses another"
    )
    assert os.environ["HOME"] == str(homeless)
    assert cache_folder() == homeless / ".cache/kdbench"
    assert stat.S_IMODE(homeless.stat().st_mode) == 0o700
    assert provide_home() is None  # processes that this one starts have a home


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_folder_that_is_no_absolute_path_is_none(homeless, monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    assert provide_home() is not None
    assert os.environ["HOME"] == str(homeless)


def test_a_link_in_the_temporary_folder_is_not_taken_for_a_home(homeless, tmp_path):
    (tmp_path / "of somebody").mkdir()
    homeless.symlink_to(tmp_path / "of somebody")
    with pytest.raises(RequestError, match=r"another user owns .*kdbench-\d+\. Set HOME to a folder of "):
        provide_home()


def test_a_user_with_a_home_folder_keeps_it(home):
    assert provide_home() is None
    assert os.environ["HOME"] == str(home)
