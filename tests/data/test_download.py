"""Downloads: a connection that breaks, a file that changes, an archive that would leave its folder."""

import hashlib
import io
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_category
from filelock import FileLock

from kdbench.data import download as module
from kdbench.data.download import download, download_folder, licence_of
from kdbench.dataset import Archive, Category, Dataset
from kdbench.datasets._layout import scan_layout
from kdbench.errors import DataError, RequestError
from kdbench.files import cache_folder
from kdbench.registry import dataset_names, get_dataset


class Toy(Dataset):
    name = "toy"
    title = "Toy"
    categories = ("bottle", "screw")
    licence = "CC BY 4.0"
    source = "toys.example/toy"
    archives: tuple[Archive, ...] = ()

    def scan(self, root: Path, category: str) -> Category:
        return scan_layout(self, root, category)


@dataclass
class Site:
    """A server with one file, and how it misbehaves."""

    body: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True
    lengths: bool = True
    breaks: list[int] = field(default_factory=list)  # bytes after which each next answer breaks off
    statuses: list[int] = field(default_factory=list)  # what each next request is answered with
    asked: list[str | None] = field(default_factory=list)  # the Range of every request
    url: str = ""

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start >= len(self.body):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        if self.lengths:
            request.send_header("Content-Length", str(len(self.body) - start))
        request.end_headers()
        rest = self.body[start:]
        request.wfile.write(rest[: self.breaks.pop(0)] if self.breaks else rest)
        request.close_connection = True


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.serve(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_address[1]}/data/toy%20set.tar"
        yield found
        server.shutdown()
        thread.join()


def packed(tmp_path: Path, wrapped: str = "") -> bytes:
    """A tar of two small categories, below a folder `wrapped` if it is named."""
    folder = tmp_path / "packed"
    for seed, name in enumerate(Toy.categories):
        write_category(folder / wrapped, name, seed=seed, train=2, good=1, bad=1)
    (folder / wrapped / "readme.txt").write_text("hello")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return buffer.getvalue()


def toy(site: Site, **changes: object) -> Toy:
    dataset = Toy()
    facts = {"url": site.url, "sha256": hashlib.sha256(site.body).hexdigest(), **changes}
    dataset.archives = (Archive(**facts),)  # type: ignore[arg-type]
    return dataset


class Clock:
    """Sleeps that take no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


def get(dataset: Dataset, root: Path, clock: Clock | None = None, **options: object) -> Path:
    return download(
        dataset,
        root,
        accept_licence=True,
        sleep=clock or Clock(),
        timeout_s=5,
        **options,  # type: ignore[arg-type]
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path != cache_folder())


def test_a_download_is_verified_unpacked_and_leaves_nothing_else(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    told: list[tuple[str, int, int | None]] = []
    root = tmp_path / "data" / "toy"
    assert get(toy(site), root, on_progress=lambda *news: told.append(news)) == root
    assert names_in(root) == ["bottle", "readme.txt", "screw"]
    assert len(Toy().scan(root, "screw").train) == 2
    assert names_in(root.parent) == ["toy"]
    assert site.asked == [None]
    size = len(site.body)
    for what in ("download", "verify", "unpack"):
        news = [(done, total) for said, done, total in told if said == what]
        assert news == sorted(news)
        assert news[-1][1] == size
    assert [news[1] for news in told if news[0] == "download"][-1] == size
    assert list(dict.fromkeys(what for what, _, _ in told)) == ["download", "verify", "unpack"]


def test_an_empty_folder_is_filled_and_a_full_one_is_refused(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    (tmp_path / "toy").mkdir()
    get(toy(site), tmp_path / "toy")
    with pytest.raises(RequestError, match=r"toy is not empty.*kdbench datasets check toy"):
        get(toy(site), tmp_path / "toy")
    assert len(site.asked) == 1


@pytest.mark.parametrize(("wrapped", "strip"), [("deep", "deep"), ("deep", "")])
def test_what_an_archive_wraps_is_taken_out(site: Site, tmp_path: Path, wrapped: str, strip: str) -> None:
    site.body = packed(tmp_path, wrapped)
    root = get(toy(site, strip=strip), tmp_path / "toy")
    assert names_in(root) == ["bottle", "readme.txt", "screw"]


def test_an_archive_of_something_else_is_refused(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    with pytest.raises(DataError, match="has no folder 'other'"):
        get(toy(site, strip="other"), tmp_path / "toy")
    dataset = toy(site)
    dataset.categories = ("candle",)  # type: ignore[misc]
    with pytest.raises(DataError, match="none of the categories candle is in it"):
        get(dataset, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


def test_the_licence_is_named_and_has_to_be_accepted(site: Site, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as raised:
        download(toy(site), tmp_path / "toy", accept_licence=False)
    assert str(raised.value) == (
        "toy has the licence CC BY 4.0: https://creativecommons.org/licenses/by/4.0/. "
        "Read it, then add --accept-licence"
    )
    assert site.asked == []


def test_a_dataset_without_an_archive_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"toy has no archive.*toys\.example/toy \(CC BY 4\.0\)"):
        get(Toy(), tmp_path / "toy")


@pytest.mark.parametrize("name", dataset_names())
def test_every_archive_is_complete_and_has_a_licence(name: str) -> None:
    dataset = get_dataset(name)
    for archive in dataset.archives:
        assert archive.url.startswith("https://")
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert "https://creativecommons.org/" in licence_of(dataset)


def test_only_what_is_verified_can_be_downloaded() -> None:
    known = {name for name in dataset_names() if get_dataset(name).archives}
    assert known == {"mvtec_ad", "mvtec_ad_2", "mvtec_loco", "visa", "btad", "kolektor_sdd"}


def test_where_a_download_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert download_folder(Toy(), tmp_path) == tmp_path
    with pytest.raises(RequestError, match="where shall toy go"):
        download_folder(Toy(), None)
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    assert download_folder(Toy(), None) == tmp_path / "toy"


# The connection


def test_a_connection_that_breaks_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    site.breaks = [1000, 500, 0]
    clock = Clock()
    get(toy(site), tmp_path / "toy", clock)
    assert site.asked == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-"]
    assert clock.slept == [1, 1, 2]  # what brings something new is patient again


def test_after_five_retries_without_progress_what_came_is_kept(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    site.breaks = [1000, 0, 0, 0, 0, 0, 0]
    clock = Clock()
    with pytest.raises(RequestError, match=r"the connection broke 6 times in a row.*toy set\.tar\.part"):
        get(toy(site), tmp_path / "toy", clock)
    assert clock.slept == [1, 2, 4, 8, 16]
    part = tmp_path / "toy set.tar.part"
    assert part.read_bytes() == site.body[:1000]
    assert not (tmp_path / "toy").exists()
    site.asked.clear()
    site.breaks.clear()
    get(toy(site), tmp_path / "toy")
    assert site.asked == ["bytes=1000-"]
    assert not part.exists()


def test_a_server_that_ignores_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    site.ranges, site.breaks = False, [1000]
    root = get(toy(site), tmp_path / "toy")
    assert site.asked == [None, "bytes=1000-"]
    assert names_in(root) == ["bottle", "readme.txt", "screw"]


def test_a_server_that_ignores_ranges_and_always_breaks_is_given_up(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    site.ranges, site.breaks = False, 99 * [1000]
    with pytest.raises(RequestError, match="6 times"):
        get(toy(site), tmp_path / "toy")


@pytest.mark.parametrize("longer", [0, 10240])
def test_a_file_that_changed_meanwhile_starts_again(site: Site, tmp_path: Path, longer: int) -> None:
    site.body = b"old" + packed(tmp_path)[3:]
    site.breaks = [1000, 0, 0, 0, 0, 0]
    with pytest.raises(RequestError):
        get(toy(site), tmp_path / "toy")
    site.body = packed(tmp_path) + longer * b"\0"  # a tar ends with zeros
    if not longer:
        site.etag = '"two"'
    site.breaks.clear()
    site.asked.clear()
    root = get(toy(site), tmp_path / "toy")
    assert site.asked == ["bytes=1000-", None]
    assert names_in(root) == ["bottle", "readme.txt", "screw"]


def test_a_file_that_became_shorter_starts_again(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path) + 10240 * b"\0"
    site.breaks = [len(site.body) - 10, 0, 0, 0, 0, 0]
    with pytest.raises(RequestError):
        get(toy(site), tmp_path / "toy")
    site.body = packed(tmp_path)
    site.breaks.clear()
    get(toy(site), tmp_path / "toy")
    assert site.asked[-1] is None


@pytest.mark.parametrize("spoilt", ["", "[]", "{", '{"url": "http://elsewhere/"}'])
def test_a_part_of_unknown_origin_is_not_continued(site: Site, tmp_path: Path, spoilt: str) -> None:
    site.body = packed(tmp_path)
    (tmp_path / "toy set.tar.part").write_bytes(b"whatever")
    if spoilt:
        (tmp_path / "toy set.tar.part.json").write_text(spoilt)
    get(toy(site), tmp_path / "toy")
    assert site.asked == [None]


def test_a_file_of_unknown_length_is_taken_to_its_end(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    site.lengths, site.etag = False, None
    get(toy(site), tmp_path / "toy")


def test_a_known_length_replaces_what_the_server_does_not_say(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    site.lengths, site.breaks = False, [1000]
    get(toy(site, size_bytes=len(site.body)), tmp_path / "toy")
    assert site.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_in_trouble_is_asked_again(site: Site, tmp_path: Path, status: int) -> None:
    site.body = packed(tmp_path)
    site.statuses = [status, status]
    clock = Clock()
    get(toy(site), tmp_path / "toy", clock)
    assert clock.slept == [1, 2]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_gone_is_said_at_once(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(RequestError, match=rf"answers {status} .* get the archive from toys\.example/toy"):
        get(toy(site), tmp_path / "toy")
    assert len(site.asked) == 1


def test_no_server_at_all_is_a_broken_connection(site: Site, tmp_path: Path) -> None:
    dataset = Toy()
    dataset.archives = (Archive("http://127.0.0.1:9/toy.tar", 64 * "0"),)
    with pytest.raises(RequestError, match=r"http://127\.0\.0\.1:9/toy\.tar: the connection broke"):
        get(dataset, tmp_path / "toy")


# What came


def test_a_wrong_hash_names_both_and_deletes_what_came(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    expected, found = 64 * "a", hashlib.sha256(site.body).hexdigest()
    with pytest.raises(DataError, match=f"SHA-256 is {found}, must be {expected}"):
        get(toy(site, sha256=expected), tmp_path / "toy")
    assert names_in(tmp_path) == ["packed"]


def test_what_is_whole_already_is_not_asked_for_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.body = packed(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "unpack", lambda *args, **named: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(RequestError, match="full"):
            get(toy(site), tmp_path / "toy")
    assert names_in(tmp_path) == ["packed", "toy set.tar.part", "toy set.tar.part.json"]
    get(toy(site), tmp_path / "toy")
    assert site.asked == [None]


def test_what_a_killed_process_left_half_unpacked_is_removed(site: Site, tmp_path: Path) -> None:
    site.body = packed(tmp_path)
    (tmp_path / ".toy.0123abcd.unpack" / "whole").mkdir(parents=True)
    get(toy(site), tmp_path / "toy")
    assert names_in(tmp_path) == ["packed", "toy"]


def test_too_little_disk_is_said_before_the_download(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.body = packed(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=len(site.body)))
    with pytest.raises(RequestError, match=r"0 MiB free, 0 MiB are needed"):
        get(toy(site), tmp_path / "toy")
    assert names_in(tmp_path) == ["packed"]


def test_two_downloads_into_one_folder_do_not_mix(site: Site, tmp_path: Path) -> None:
    key = hashlib.sha256(str(tmp_path / "toy").encode()).hexdigest()[:12]
    lock = cache_folder() / "locks" / f"download-{key}.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(RequestError, match="another process is downloading into"):
        get(toy(site), tmp_path / "toy")


def test_a_folder_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="file"):
        get(toy(site), tmp_path / "file" / "toy")


# What an archive must not do


def tar_of(*members: tarfile.TarInfo, packing: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=packing) as tar:  # type: ignore[call-overload]
        for member in members:
            tar.addfile(member, io.BytesIO(member.size * b"x"))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
    return info


BAD_TARS = {
    "above": [member("../out.txt")],
    "above deep": [member("bottle/../../out.txt")],
    "absolute": [member("/tmp/out.txt")],
    "backslash": [member("..\\out.txt")],
    "drive": [member("C:/out.txt")],
    "link to a file outside": [member("bottle/a", tarfile.SYMTYPE, "../../secret.txt")],
    "link to an absolute path": [member("bottle/a", tarfile.SYMTYPE, "/etc/passwd")],
    "through a link": [member("bottle", tarfile.SYMTYPE, ".."), member("bottle/out.txt")],
    "hard link outside": [member("a", tarfile.LNKTYPE, "../secret.txt")],
    "character device": [member("bottle/null", tarfile.CHRTYPE)],
    "block device": [member("bottle/disk", tarfile.BLKTYPE)],
    "pipe": [member("bottle/pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("kind", BAD_TARS)
def test_a_tar_that_would_leave_its_folder_is_refused(site: Site, tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").mkdir()
    site.body = tar_of(member("bottle/first.txt"), *BAD_TARS[kind])
    with pytest.raises(DataError, match="toy%20set"):
        get(toy(site), tmp_path / "data" / "toy")
    assert [n for n in names_in(tmp_path / "data") if ".part" not in n] == []
    assert names_in(tmp_path) == ["data"]


def zip_of(*names: str, mode: int = stat.S_IFREG | 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, "xxx")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../out.txt", "bottle/../../out.txt", "/tmp/out.txt", "..\\o", "C:\\o"])
def test_a_zip_that_would_leave_its_folder_is_refused(site: Site, tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    site.body = zip_of("bottle/first.txt", name)
    with pytest.raises(DataError, match="would leave the folder"):
        get(toy(site), tmp_path / "data" / "toy")
    assert [n for n in names_in(tmp_path / "data") if ".part" not in n] == []
    assert names_in(tmp_path) == ["data"]


def test_a_zip_with_a_link_is_refused(site: Site, tmp_path: Path) -> None:
    site.body = zip_of("bottle/link", mode=stat.S_IFLNK | 0o777)
    with pytest.raises(DataError, match=r"'bottle/link' is a link or a device"):
        get(toy(site), tmp_path / "toy")


def test_a_zip_that_is_larger_than_the_disk_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bottle/zeros", bytes(50 << 20))
    site.body = buffer.getvalue()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 << 20))
    with pytest.raises(RequestError, match="10 MiB free, 50 MiB are needed"):
        get(toy(site), tmp_path / "toy")


@pytest.mark.parametrize("packing", ["w:gz", "w:xz", "w:bz2"])
def test_packed_tars_and_zips_are_unpacked(site: Site, tmp_path: Path, packing: str) -> None:
    site.body = tar_of(member("./bottle/a.txt"), packing=packing)
    assert (get(toy(site), tmp_path / "one") / "bottle/a.txt").read_text() == "xxx"
    site.body = zip_of("bottle/a.txt", "screw/ü b.txt")
    assert (get(toy(site), tmp_path / "two") / "screw/ü b.txt").read_text() == "xxx"


@pytest.mark.parametrize("packing", ["w:gz", "w:xz", "w:bz2"])
def test_an_archive_that_is_cut_off_is_named(site: Site, tmp_path: Path, packing: str) -> None:
    # More than a block of every compressor, so that the beginning is still a tar.
    members = [member(f"bottle/{i:05}") for i in range(600)]
    whole = tar_of(*members, packing=packing)
    site.body = whole[: len(whole) * 9 // 10]
    with pytest.raises(DataError, match=r"toy%20set\.tar (cannot be unpacked|is neither)"):
        get(toy(site), tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


def test_what_is_no_archive_is_named(site: Site, tmp_path: Path) -> None:
    site.body = b"<html>Please log in</html>"
    with pytest.raises(DataError, match="is neither a tar nor a zip"):
        get(toy(site), tmp_path / "toy")
