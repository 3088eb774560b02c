"""Compare a dataset on disk with its published counts, category by category, and name each problem."""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdbench import machine
from kdbench.data.fingerprint import Contents, check_apart, contents, shared_images
from kdbench.data.masks import NOTHING, Remarks, check_blank, copies, read_mask, remarks_of
from kdbench.data.store import look
from kdbench.data.together import Seen, check_together, notes
from kdbench.dataset import Category, Dataset, Sample
from kdbench.errors import DataError, number_of, reason

# Called with a category, the number of its files that are done, and the number of all its files.
Progress = Callable[[str, int, int], None]

ONE_IMAGE = "{}: 1 training image. Methods that hold out some need at least 2"
PARTS = ("train", "normal test", "defective test")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many images a category has, and how many of the defective ones have a mask."""

    train: int
    normal: int
    defective: int
    masks: int


@dataclass(frozen=True, kw_only=True)
class CategoryCheck:
    """The result for one category; `found` is None if it cannot be listed."""

    category: str
    present: bool
    found: Counts | None
    published: tuple[int, int, int] | None  # train, normal test, defective test
    problems: tuple[str, ...]
    num_empty_masks: int | None = None  # only known after a deep check
    remarks: tuple[str, ...] = ()  # only a person can judge these; most need a deep check
    contents: Contents | None = field(default=None, repr=False, compare=False)

    @property
    def good(self) -> bool:
        return not self.problems


def check(
    dataset: Dataset,
    root: Path,
    *,
    deep: bool = False,
    accept_large: bool = False,
    on_progress: Progress | None = None,
) -> list[CategoryCheck]:
    """Check every category of the dataset, on disk or not; `deep` also decodes every image and every mask.

    With `accept_large`, masks that mark most of their image get no remark. Raises DataError only if there is
    nothing to check: everything else is a problem of its category.
    """
    categories = dataset.all_categories(root)
    if not categories:
        raise DataError(f"{dataset.name}: {root} has no categories. {dataset.hint(root)}")
    present = dataset.present(root)
    tell = on_progress or (lambda category, done, total: None)
    found = [
        _check(dataset, root, category, category in present, deep, accept_large, tell)
        for category in categories
    ]
    return _compared(_together(dataset, found))


def _together(dataset: Dataset, found: list[CategoryCheck]) -> list[CategoryCheck]:
    """The categories; the last gets the differences from counts that are published for all together."""
    counted = [one.found for one in found if one.found]
    if dataset.whole is None or len(counted) < len(found):
        return found
    sums = Counts(
        train=sum(one.train for one in counted),
        normal=sum(one.normal for one in counted),
        defective=sum(one.defective for one in counted),
        masks=sum(one.masks for one in counted),
    )
    problems = _different("all categories", sums, dataset.whole)
    return [*found[:-1], replace(found[-1], problems=(*found[-1].problems, *problems))]


def _check(
    dataset: Dataset,
    root: Path,
    name: str,
    present: bool,
    deep: bool,
    accept_large: bool,
    tell: Progress,
) -> CategoryCheck:
    published = dataset.counts.get(name)
    if not present:
        problem = f"{name} is not in {root}"
        return CategoryCheck(
            category=name, present=False, found=None, published=published, problems=(problem,)
        )
    try:
        category = dataset.scan(root, name)
    except (DataError, OSError) as error:
        return CategoryCheck(
            category=name, present=True, found=None, published=published, problems=(_text(error),)
        )
    found = Counts(
        train=len(category.train),
        normal=sum(not sample.label for sample in category.test),
        defective=sum(sample.label for sample in category.test),
        masks=sum(sample.mask is not None for sample in category.test),
    )
    problems = _differences(dataset, name, found)
    checked = CategoryCheck(
        category=name,
        present=True,
        found=found,
        published=published,
        problems=tuple(problems),
        remarks=(ONE_IMAGE.format(name),) if found.train == 1 else (),
    )
    return _decoded(checked, dataset, category, tell, accept_large) if deep else checked


def _compared(found: Sequence[CategoryCheck]) -> list[CategoryCheck]:
    """The categories with the problems between two of them: a multiclass detector trains on all."""
    compared = list[CategoryCheck]()
    for one in found:
        others = [other for other in found if other is not one and other.contents]
        problems, remarks = list[str](), list[str]()
        if one.contents:
            try:
                trained = [other.contents.train for other in others if other.contents]
                check_apart(dict(ChainMap(*trained)), one.contents.test)
            except DataError as error:
                problems.append(str(error))
            for before in compared:
                if before.contents:
                    tested = {before.category: before.contents.test, one.category: one.contents.test}
                    remarks += shared_images(tested)
        compared.append(replace(one, problems=(*one.problems, *problems), remarks=(*one.remarks, *remarks)))
    return compared


def _differences(dataset: Dataset, name: str, found: Counts) -> list[str]:
    if name in dataset.counts:
        return _different(name, found, dataset.counts[name])
    return _different(name, found, dataset.totals.get(name, ()))


def _different(name: str, found: Counts, published_counts: Sequence[int]) -> list[str]:
    """The differences from three published counts, from two (published without a split), or from none."""
    there = dict(zip(PARTS, (found.train, found.normal, found.defective), strict=True))
    if len(published_counts) < len(PARTS):
        there = {"normal": found.train + found.normal, "defective": found.defective}
    problems = []
    for (part, have), published in zip(there.items(), published_counts, strict=False):
        if have != published:
            differ = f"{published - have} missing" if have < published else f"{have - published} too many"
            images = number_of(have, f"{part} image")
            problems.append(f"{name}: {images}, published are {published}: {differ}")
    return problems


@dataclass(frozen=True, kw_only=True)
class _Look:
    """The facts of one image and its mask; `problem` is "" if both are readable and fit."""

    problem: str = ""
    seen: Seen | None = None
    empty: bool = False  # a mask that marks nothing, as some published ones do
    remarks: Remarks = NOTHING
    mask: Mapping[str, str] = field(default_factory=dict)  # its name -> a hash of what it marks


def _decoded(
    checked: CategoryCheck, dataset: Dataset, category: Category, tell: Progress, accept_large: bool
) -> CategoryCheck:
    """The category with the problems and remarks that the content of its files gives."""
    samples = [Sample(path=path, label=False, defect="good") for path in category.train]
    samples += category.test
    looks: list[_Look] = []
    with ThreadPoolExecutor(machine.cores()) as pool:
        for look in pool.map(lambda sample: _look(dataset, category, sample), samples):
            looks.append(look)
            tell(category.name, len(looks), len(samples))
        blank = list(pool.map(lambda mask: _wrong_blank(dataset, mask), category.blank))
    problems = [text for text in (*(look.problem for look in looks), *blank) if text]
    remarks = sum((look.remarks for look in looks), NOTHING).texts(category.name, accept_large=accept_large)
    remarks += copies(category, {path: digest for look in looks for path, digest in look.mask.items()})
    content = None
    try:
        dataset.saturations(category)
    except (DataError, OSError) as error:
        problems.append(_text(error))
    try:
        content = contents(dataset, category)  # DataError for a test image that is also in train
        seen = [look.seen for look in looks if look.seen]
        if len(seen) == len(looks):
            parted = seen[: len(category.train)], seen[len(category.train) :]
            remarks += notes(category, *parted)
            check_together(category, *parted)
    except (DataError, OSError) as error:
        problems += [_text(error)] if _text(error) not in problems else []
    return replace(
        checked,
        problems=(*checked.problems, *problems),
        remarks=(*checked.remarks, *remarks),
        num_empty_masks=sum(look.empty for look in looks),
        contents=content,
    )


def _look(dataset: Dataset, category: Category, sample: Sample) -> _Look:
    try:
        seen = look(sample.path, 8)[1]
        if sample.mask is None:
            return _Look(seen=seen)
        mask = read_mask(dataset, sample)
    except (DataError, OSError) as error:
        return _Look(problem=_text(error))
    if not mask.share:
        return _Look(seen=seen, empty=True)
    name = category.relative(sample.mask)
    return _Look(seen=seen, remarks=remarks_of(category, sample, mask), mask={name: mask.digest})


def _wrong_blank(dataset: Dataset, mask: Path) -> str:
    """What is wrong with the mask of a normal image; "" if nothing."""
    try:
        check_blank(dataset, mask)
    except (DataError, OSError) as error:
        return _text(error)
    return ""


def _text(error: DataError | OSError) -> str:
    return f"{error.filename}: {reason(error)}" if isinstance(error, OSError) else str(error)
