"""A cell's id: the same for the same work on every machine, another for all that moves a number."""

from dataclasses import replace

import pytest

from kdbench.cell import Cell, canonical_json, groups_of
from kdbench.metrics.presets import PRESETS

CELL = Cell(
    method="stfpm",
    config=canonical_json({"epochs": 200, "lr": 0.4, "levels": [1, 2, 3]}),
    dataset="mvtec_ad",
    setting="oneclass",
    category="bottle",
    categories=("bottle",),
    fingerprint="0123456789abcdef0123",
    teacher_sha256="f37072fd",
    seed=0,
    preset="exact",
    profile="paper",
)


def test_the_id_of_a_known_cell_never_changes() -> None:
    """A new value here makes everybody's finished cells run again: METRIC_VERSION is the only good reason."""
    assert CELL.id == "2ab94b0866e47bf70964"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "dcam"),
        ("config", canonical_json({"epochs": 201, "lr": 0.4, "levels": [1, 2, 3]})),
        ("dataset", "visa"),
        ("setting", "multiclass"),
        ("category", "all"),
        ("categories", ("bottle", "screw")),
        ("fingerprint", "0123456789abcdef0124"),
        ("teacher_sha256", "f37072fe"),
        ("seed", 1),
        ("preset", "ader"),
    ],
)
def test_every_field_that_can_move_a_number_changes_the_id(field: str, value: object) -> None:
    assert replace(CELL, **{field: value}).id != CELL.id


def test_a_new_metric_version_changes_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = CELL.id
    monkeypatch.setattr("kdbench.metrics.presets.METRIC_VERSION", 1_000_000)
    assert CELL.id != before


def test_a_new_revision_of_a_preset_changes_the_ids_of_its_own_cells_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {name: replace(CELL, preset=name).id for name in PRESETS}
    revised = replace(PRESETS["stfpm_legacy"], revision=PRESETS["stfpm_legacy"].revision + 1)
    monkeypatch.setitem(PRESETS, "stfpm_legacy", revised)
    after = {name: replace(CELL, preset=name).id for name in PRESETS}
    assert {name for name in PRESETS if before[name] != after[name]} == {"stfpm_legacy"}


def test_the_profile_is_a_label_and_does_not_change_the_id() -> None:
    assert replace(CELL, profile="demo").id == CELL.id


def test_the_order_of_keys_does_not_change_the_id() -> None:
    turned = canonical_json({"levels": [1, 2, 3], "lr": 0.4, "epochs": 200})
    assert replace(CELL, config=turned).id == CELL.id


def test_the_order_of_levels_changes_the_id() -> None:
    turned = canonical_json({"epochs": 200, "lr": 0.4, "levels": [3, 2, 1]})
    assert replace(CELL, config=turned).id != CELL.id


def test_an_id_is_a_name_for_a_file() -> None:
    assert len(CELL.id) == 20
    assert set(CELL.id) <= set("0123456789abcdef")


def test_a_label_says_what_runs() -> None:
    assert CELL.label == "stfpm mvtec_ad/bottle oneclass seed 0"


def test_canonical_json_is_one_ascii_text_for_equal_values() -> None:
    assert canonical_json({"b": "ü", "a": (1, None)}) == '{"a":[1,null],"b":"\\u00fc"}'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_what_json_does_not_have(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"lr": value})


def test_oneclass_has_a_model_per_category_and_multiclass_one_for_all() -> None:
    names = ("bottle", "screw")
    assert list(groups_of("oneclass", names)) == [("bottle", ("bottle",)), ("screw", ("screw",))]
    assert list(groups_of("multiclass", names)) == [("all", ("bottle", "screw"))]
