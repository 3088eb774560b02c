"""From options and files to jobs: everything is checked first, and every complaint comes at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_category

from kdbench.errors import RequestError
from kdbench.grid.plan import Plan, plan
from kdbench.grid.prepare import enough_disk
from kdbench.grid.request import Request, parse_sets, read_request
from kdbench.method import DEMO
from kdbench.registry import get_dataset, method_names
from kdbench.weights import EMBEDDED


@pytest.fixture
def planned(mvtec: Path) -> Callable[..., Plan]:
    """The plan of a request for STFPM on the tiny tree."""

    def call(**values: Any) -> Plan:
        usual = {"methods": ("stfpm",), "dataset": ("mvtec_ad",), "root": mvtec, "backbone": "tiny"}
        return plan(read_request(None, usual | values))

    return call


def complaints_of(call: Callable[..., Any], *args: Any, **values: Any) -> list[str]:
    with pytest.raises(RequestError) as raised:
        call(*args, **values)
    return list(raised.value.complaints)


def configs(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(job.cell.config) for job in plan.jobs]


# --- METHOD.KEY=VALUE -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stfpm.lr=0.1", {"stfpm.lr": [0.1]}),
        ("stfpm.lr=0.1,0.2", {"stfpm.lr": [0.1, 0.2]}),
        ("all.epochs=3", {"all.epochs": [3]}),
        ("stfpm.fusion=sum", {"stfpm.fusion": ["sum"]}),
        ("stfpm.fusion=sum,product", {"stfpm.fusion": ["sum", "product"]}),
        ('stfpm.fusion="sum"', {"stfpm.fusion": ["sum"]}),
        ("stfpm.levels=[1,2]", {"stfpm.levels": [[1, 2]]}),
        ("stfpm.levels=[1,2],[2,3]", {"stfpm.levels": [[1, 2], [2, 3]]}),
        ("a.flag=true", {"a.flag": [True]}),
        ("a.flag=true,false", {"a.flag": [True, False]}),
        ("a.key=null", {"a.key": [None]}),
        ('a.key={"b": [1, 2]}', {"a.key": [{"b": [1, 2]}]}),
        ("a.key=b=c", {"a.key": ["b=c"]}),
        ("a.key=", {"a.key": [""]}),
        ("a.b.c=1", {"a.b.c": [1]}),
        ("a.key=1e-4,none", {"a.key": [1e-4, "none"]}),
        ("a.name=ünïcödé", {"a.name": ["ünïcödé"]}),
    ],
)
def test_a_setting_is_json_where_it_can_be_and_a_comma_list_is_values_to_try(
    text: str, expected: dict[str, Any]
) -> None:
    assert parse_sets([text]) == expected


def test_every_text_that_is_no_setting_is_a_complaint() -> None:
    assert complaints_of(parse_sets, ["lr=3", "stfpm.lr", "stfpm.lr=1", ""]) == [
        "--set 'lr=3' is not METHOD.KEY=VALUE",
        "--set 'stfpm.lr' is not METHOD.KEY=VALUE",
        "--set '' is not METHOD.KEY=VALUE",
    ]


def test_a_key_that_is_set_twice_is_a_complaint_and_not_the_last_one() -> None:
    assert complaints_of(parse_sets, ["stfpm.lr=0.1", "all.lr=1", "stfpm.lr=0.2"]) == [
        "--set stfpm.lr is given twice. To try several values, write stfpm.lr=A,B"
    ]


def test_true_is_no_number(planned: Callable[..., Plan]) -> None:
    assert complaints_of(planned, seeds=(0, True), epochs=True) == [
        "seeds=(0, True): true and false are no numbers",
        "epochs=True: true and false are no numbers",
    ]
    assert complaints_of(planned, set={"all.batch_size": True, "stfpm.levels": [[True, 2]]}) == [
        "stfpm.batch_size=True: true and false are no numbers",
        "stfpm.levels=[True, 2]: true and false are no numbers",
    ]


# --- files ------------------------------------------------------------------------------------------------


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "grid.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_has_the_keys_of_the_options(toml: Callable[[str], Path]) -> None:
    file = toml(
        """
        methods = ["stfpm", "dcam"]
        dataset = "mvtec_ad"
        root = "somewhere"
        setting = ["oneclass", "multiclass"]
        seeds = [0, 1, 2]
        epochs = 7
        timeout = 60
        redo = "failed"
        [set.stfpm]
        lr = [0.1, 0.4]
        fusion = "sum"
        [set]
        "all.batch_size" = 8
        """
    )
    assert read_request(file, {}) == Request(
        methods=("stfpm", "dcam"),
        dataset=("mvtec_ad",),
        root=Path("somewhere"),
        setting=("oneclass", "multiclass"),
        seeds=(0, 1, 2),
        epochs=7,
        timeout=60.0,
        redo="failed",
        set={"stfpm.lr": [0.1, 0.4], "stfpm.fusion": "sum", "all.batch_size": 8},
    )


def test_an_option_wins_over_the_file_and_what_is_not_given_does_not(toml: Callable[[str], Path]) -> None:
    file = toml('seeds = [1, 2]\nepochs = 7\ndevice = "cpu"\n[set.stfpm]\nlr = 0.1\nsigma = 2.0\n')
    options = {"seeds": (5,), "epochs": None, "methods": (), "set": {"stfpm.lr": [0.3]}, "device": None}
    request = read_request(file, options)
    assert (request.seeds, request.epochs, request.device) == ((5,), 7, "cpu")
    assert request.set == {"stfpm.lr": [0.3], "stfpm.sigma": 2.0}


def test_an_option_wins_over_what_a_file_sets_for_one_method(toml):
    file = toml("epochs = 7\n[set.stfpm]\nepochs = 9\nlr = 0.1\n[set.all]\nbackbone = 'x'\n")
    assert read_request(file, {}).set == {"stfpm.epochs": 9, "stfpm.lr": 0.1, "all.backbone": "x"}
    asked = read_request(file, {"epochs": 3, "set": {"dcam.epochs": 5}})
    assert asked.epochs == 3
    assert asked.set == {"stfpm.lr": 0.1, "all.backbone": "x", "dcam.epochs": 5}


def test_a_key_of_all_methods_wins_over_the_methods_own_of_a_file(toml):
    file = toml("[set.stfpm]\nlr = 0.1\nsigma = 2.0\n[set.dcam]\nlr = 0.2\n")
    asked = read_request(file, {"set": {"all.lr": [0.3], "dcam.lr": [0.4]}})
    assert asked.set == {"stfpm.sigma": 2.0, "all.lr": [0.3], "dcam.lr": [0.4]}
    assert read_request(file, {"set": {"stfpm.sigma": [1.0]}}).set["dcam.lr"] == 0.2


def test_of_a_file_only_the_methods_asked_for_are_run_and_set(toml):
    file = toml(
        "methods = ['stfpm', 'dcam']\n[set.dcam]\nlr = 0.2\n[set.stfpm]\nlr = 0.1\n[set.all]\nsigma = 1\n"
    )
    request = read_request(file, {"methods": ("stfpm",)})
    assert request.methods == ("stfpm",)
    assert request.set == {"stfpm.lr": 0.1, "all.sigma": 1}
    # What the command itself sets, and no method of this name would ever read, still is a complaint.
    for options in (
        {"methods": ("stfpm",), "set": {"dcam.lr": 0.3}},
        {"methods": ("dcam",), "set": {"snt.lr": 1}},
    ):
        with pytest.raises(RequestError, match="no method"):
            plan(read_request(file, options))


@pytest.mark.parametrize("value", [("both",), ("oneclass", "both"), "both"])
def test_both_means_both_settings(value: Any) -> None:
    assert read_request(None, {"setting": value}).setting == ("oneclass", "multiclass")


def test_both_does_not_hide_a_wrong_setting(planned: Callable[..., Plan]) -> None:
    request = read_request(None, {"setting": ("both", "twoclass"), "methods": ("stfpm",)})
    texts = complaints_of(planned, setting=request.setting)
    assert texts == ["no setting 'twoclass'. Did you mean 'oneclass'? Settings: oneclass, multiclass, both"]


def test_nothing_asked_for_is_every_method_on_the_embedded_dataset() -> None:
    request = read_request(None, {})
    assert (request.methods, request.dataset, request.setting) == ((), ("synthetic",), ("oneclass",))
    assert (request.seeds, request.profile, request.preset, request.redo) == ((0,), None, "exact", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "epohcs = 3",
            ["epohcs: no key 'epohcs'. Did you mean 'epochs'? Keys: address, backbone, categories, "],
        ),
        ('epochs = "many"', ["epochs='many': input should be a valid integer"]),
        ("seeds = [0, 1.5]", ["seeds.1=1.5: input should be a valid integer"]),
        ('seeds = "x"', ["seeds.0='x': input should be a valid integer"]),
        ("timeout = 0", ["timeout=0: input should be greater than 0"]),
        ("timeout = nan", ["timeout=nan: input should be greater than 0"]),
        ('executor = "slurm"', ["executor='slurm': input should be 'local' or 'ray'"]),
        ('redo = "some"', ["redo='some': input should be 'failed' or 'all'"]),
        ("setting = true", ["setting.0=True: input should be a valid string"]),
        ("setting = 1.5", ["setting"]),
        ("set = 5", ["set"]),
        ('set = ["stfpm.lr=1"]', ["set"]),
        ("methods = 3", ["methods.0=3: input should be a valid string"]),
        ("results = 3", ["results=3: "]),
        ('epochs = "x"\nepohcs = 1\nredo = "y"', ["epochs='x'", "redo='y'", "epohcs: no key"]),
        ("epochs == 3", ["grid.toml: "]),
    ],
)
def test_what_is_wrong_in_a_file_is_a_complaint_each(
    toml: Callable[[str], Path], text: str, expected: list[str]
) -> None:
    found = complaints_of(read_request, toml(text), {})
    assert len(found) == len(expected)
    for complaint, beginning in zip(found, expected, strict=True):
        assert beginning in complaint


def test_a_key_that_a_file_sets_in_two_ways_is_a_complaint(toml: Callable[[str], Path]) -> None:
    file = toml('[set]\n"stfpm.lr" = 0.1\n[set.stfpm]\nlr = 0.2\n')
    assert complaints_of(read_request, file, {}) == [f"{file}: set stfpm.lr is given twice"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'methods = "\xff"')
    assert "No such file" in complaints_of(read_request, tmp_path / "gone.toml", {})[0]
    assert "Is a directory" in complaints_of(read_request, tmp_path, {})[0]
    assert "latin.toml: " in complaints_of(read_request, tmp_path / "latin.toml", {})[0]


# --- cells ------------------------------------------------------------------------------------------------


def test_oneclass_has_a_cell_per_category_and_multiclass_one(planned: Callable[..., Plan]) -> None:
    jobs = planned(setting=("oneclass", "multiclass")).jobs
    assert [(j.cell.setting, j.cell.category, j.cell.categories) for j in jobs] == [
        ("oneclass", "bottle", ("bottle",)),
        ("oneclass", "screw", ("screw",)),
        ("multiclass", "all", ("bottle", "screw")),
    ]
    assert len({j.cell.fingerprint for j in jobs}) == 3
    assert len({j.cell.id for j in jobs}) == 3


def test_a_job_knows_where_it_runs(planned: Callable[..., Plan], mvtec: Path, tmp_path: Path) -> None:
    job = planned(results=tmp_path / "r", device="cpu").jobs[0]
    assert (job.place.root, job.place.results, job.place.device) == (str(mvtec), str(tmp_path / "r"), "cpu")
    assert job.place.weights.sha256 == job.cell.teacher_sha256 == "tiny-v1"


def test_where_results_go_and_on_what_it_runs_is_not_in_the_id(
    planned: Callable[..., Plan], mvtec: Path, tmp_path: Path
) -> None:
    first = [job.cell.id for job in planned().jobs]
    moved = mvtec.rename(tmp_path / "moved")
    assert [job.cell.id for job in planned(root=moved, results=tmp_path / "r", device="cpu").jobs] == first


def test_only_the_categories_asked_for_are_planned(planned: Callable[..., Plan]) -> None:
    assert [j.cell.category for j in planned(categories=("screw",)).jobs] == ["screw"]
    assert planned(categories=("screw",), setting=("multiclass",)).jobs[0].cell.categories == ("screw",)


def test_the_order_in_which_categories_are_named_makes_no_other_cell(planned: Callable[..., Plan]) -> None:
    first, second = (
        planned(categories=names, setting=("multiclass",)).jobs[0].cell
        for names in (("bottle", "screw"), ("screw", "bottle", "screw"))
    )
    assert first.id == second.id


def test_missing_categories_are_a_notice(planned: Callable[..., Plan]) -> None:
    (notice,) = planned().notices
    assert notice.startswith("mvtec_ad: 2 of 15 categories; without carpet, grid, leather")


def test_a_grid_is_the_product_of_its_values(planned: Callable[..., Plan]) -> None:
    jobs = planned(
        set={"stfpm.lr": [0.1, 0.2], "stfpm.fusion": ["sum", "product"], "all.batch_size": 8}, seeds=(0, 1, 2)
    )
    assert len(jobs.jobs) == 2 * 2 * 3 * 2
    assert {(c["lr"], c["fusion"], c["batch_size"]) for c in configs(jobs)} == {
        (lr, fusion, 8) for lr in (0.1, 0.2) for fusion in ("sum", "product")
    }


def test_values_that_mean_the_same_are_one_cell(planned: Callable[..., Plan]) -> None:
    assert len(planned(set={"stfpm.lr": [1, 1.0, 0.4]}, categories=("screw",)).jobs) == 2
    assert len(planned(methods=("stfpm", "stfpm"), seeds=(0, 0), setting=("oneclass", "oneclass")).jobs) == 2


def test_a_key_of_the_method_wins_over_that_of_all(planned: Callable[..., Plan]) -> None:
    for sets in ({"all.lr": 0.1, "stfpm.lr": 0.2}, {"stfpm.lr": 0.2, "all.lr": 0.1}):
        assert [c["lr"] for c in configs(planned(set=sets, categories=("screw",)))] == [0.2]


def test_a_key_that_is_set_wins_over_the_option(planned: Callable[..., Plan]) -> None:
    (config,) = configs(planned(epochs=3, set={"stfpm.epochs": 5}, categories=("screw",)))
    assert config["epochs"] == 5


def test_options_change_every_method(planned: Callable[..., Plan]) -> None:
    (config,) = configs(planned(epochs=3, precision="fp32", categories=("screw",)))
    assert (config["epochs"], config["precision"], config["backbone"]) == (3, "fp32", "tiny")


def test_the_recipe_depends_on_profile_and_setting(planned: Callable[..., Plan]) -> None:
    def recipe(**values: Any) -> tuple[int, int]:
        config = configs(planned(**values))[0]
        return config["epochs"], config["image_size"]

    assert recipe() == (200, 256)
    assert recipe(setting=("multiclass",)) == (400, 256)
    assert recipe(profile="demo") == (DEMO["epochs"], 128)
    assert recipe(profile="demo", setting=("multiclass",)) == (DEMO["epochs"], 128)
    assert recipe(profile="demo", epochs=3) == (3, 128)


def test_the_demo_profile_has_the_embedded_teacher(planned: Callable[..., Plan]) -> None:
    made = planned(profile="demo", backbone=None, categories=("screw",))
    assert configs(made)[0]["backbone"] == EMBEDDED
    assert made.jobs[0].cell.profile == "demo"
    assert len(made.jobs[0].cell.teacher_sha256) == 64


def test_the_profile_is_by_default_that_of_the_dataset(planned: Callable[..., Plan], tmp_path: Path) -> None:
    name = get_dataset("synthetic").categories[0]
    write_category(tmp_path / "drawn", name, train=3, good=1, bad=1)
    assert {job.cell.profile for job in planned().jobs} == {"paper"}
    synthetic = {"dataset": ("synthetic",), "root": tmp_path / "drawn"}
    assert [(j.cell.profile, j.cell.category) for j in planned(**synthetic).jobs] == [("demo", name)]
    assert [j.cell.profile for j in planned(**synthetic, profile="paper").jobs] == ["paper"]


def test_where_none_is_named_all_methods_run_that_need_no_special_teacher(
    planned: Callable[..., Plan],
) -> None:
    plan = planned(methods=(), categories=("screw",))
    left_out = {"dinomaly", "efficientad"}
    assert {job.cell.method for job in plan.jobs} == set(method_names()) - left_out
    assert [notice.partition(" ")[0] for notice in plan.notices if "is left out" in notice] == sorted(
        left_out
    )
    assert not any("is left out" in notice for notice in planned().notices)


# --- complaints -------------------------------------------------------------------------------------------


def test_all_complaints_come_together(planned: Callable[..., Plan], tmp_path: Path) -> None:
    texts = complaints_of(
        planned,
        methods=("stfmp", "stfpm"),
        dataset=("mvtec",),
        setting=("oneclas",),
        preset="precise",
        profile="papre",
        device="abacus",
        set={"dcma.lr": 3},
        weights=tmp_path / "gone.pth",
    )
    assert [text.partition(".")[0] for text in texts] == [
        "no method 'stfmp'",
        "no dataset 'mvtec'",
        "no setting 'oneclas'",
        "no preset 'precise'",
        "no profile 'papre'",
        "no device 'abacus'",
        "--set dcma",
        f"no weights file '{tmp_path / 'gone'}",
    ]
    assert "Did you mean 'mvtec_ad'?" in texts[1]
    assert "Did you mean 'paper'?" in texts[4]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"categories": ("botle",)},
            "no mvtec_ad category 'botle'. Did you mean 'bottle'? Categories: carpet,",
        ),
        ({"categories": ("pill",)}, "mvtec_ad: no folder "),
        ({"set": {"stfpm.lrr": 1}}, "stfpm.lrr: no key 'lrr'. Did you mean 'lr'? Keys: backbone, batch_size"),
        ({"set": {"stfpm.lr": "fast"}}, "stfpm.lr='fast': input should be a valid number"),
        ({"set": {"stfpm.lr": None}}, "stfpm.lr=None: input should be a valid number"),
        ({"set": {"stfpm.lr": float("nan")}}, "stfpm.lr=nan: input should be a finite number"),
        ({"set": {"stfpm.lr": -1}}, "stfpm.lr=-1: input should be greater than 0"),
        ({"set": {"stfpm.lr": {"a": 1}}}, "stfpm.lr={'a': 1}: input should be a valid number"),
        ({"set": {"stfpm.lr": []}}, "stfpm.lr"),
        ({"set": {"stfpm.levels": [[]]}}, "stfpm.levels=[]: tuple should have at least 1 item"),
        ({"set": {"stfpm.fusion": "max"}}, "stfpm.fusion='max': input should be 'product' or 'sum'"),
        ({"set": {"lr": 1}}, "--set lr: no method 'lr'"),
        ({"set": {"all.lrr": 1}}, "stfpm.lrr: no key 'lrr'"),
        ({"epochs": 0}, "stfpm.epochs=0: input should be greater than or equal to 1"),
        ({"epochs": -3}, "stfpm.epochs=-3: input should be greater than or equal to 1"),
        (
            {"precision": "fp16", "device": "cpu"},
            "precision fp16 of stfpm: a CPU is slow in fp16. Choose auto, bf16, fp32",
        ),
        ({"precision": "fp64"}, "stfpm.precision='fp64': input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ({"device": "xpu"}, "device 'xpu' is not supported. Devices: auto, cpu, cuda, cuda:N"),
        ({"device": ""}, "no device ''"),
        ({"device": "cuda:99"}, "no device 'cuda:99': this machine has "),
        ({"backbone": "resnet18"}, "backbone 'resnet18' has no tag"),
        ({"backbone": "resnet19.tv_in1k"}, "timm has no backbone 'resnet19.tv_in1k'. Known to work: "),
        ({"backbone": "resnet18.nope"}, "resnet18.nope"),
        ({"seeds": (-1,)}, "seed"),
        ({"seeds": (2**63,)}, "seed"),
        ({"root": Path("/nowhere")}, "mvtec_ad: no folder '/nowhere'. Get it from www.mvtec.com"),
        ({"set": {"stfpm.levels": [[0, 1]]}}, "level"),
        ({"set": {"stfpm.levels": [[2, 1]]}}, "level"),
        ({"set": {"stfpm.levels": [[9]]}}, "level"),
    ],
)
def test_a_wrong_request_is_one_complaint(
    planned: Callable[..., Plan], values: dict[str, Any], expected: str
) -> None:
    (text, *more) = complaints_of(planned, **values)
    assert expected in text
    assert "\n" not in text
    assert more == []


@pytest.mark.parametrize("key", ["methods", "dataset", "setting", "seeds", "categories"])
def test_an_empty_list_in_a_file_is_a_complaint_and_not_a_run_of_nothing(
    toml: Callable[[str], Path], mvtec: Path, key: str
) -> None:
    lists = {"methods": '["stfpm"]', "dataset": '["mvtec_ad"]', "categories": '["screw"]', key: "[]"}
    text = "\n".join(f"{name} = {value}" for name, value in lists.items())
    file = toml(f'{text}\nroot = "{mvtec}"\nbackbone = "tiny"\n')
    if key in ("methods", "categories"):  # none named: all
        assert plan(read_request(file, {})).jobs
    else:
        assert key.rstrip("s") in complaints_of(lambda: plan(read_request(file, {})))[0]


def test_a_root_is_for_one_dataset_only(planned: Callable[..., Plan]) -> None:
    texts = complaints_of(planned, dataset=("mvtec_ad", "synthetic"))
    assert texts[0].startswith("--root is the folder of one dataset; for several set KDBENCH_DATA")


def test_a_root_without_any_category_asks_whether_it_is_the_right_folder(
    planned: Callable[..., Plan], mvtec: Path
) -> None:
    (text,) = complaints_of(planned, root=mvtec / "bottle")
    assert text.startswith(f"mvtec_ad: {mvtec / 'bottle'} has none of the categories carpet, grid")
    assert text.endswith(f"It is one category: --root {mvtec} --categories bottle")


def test_every_wrong_category_is_named(planned: Callable[..., Plan], mvtec: Path) -> None:
    (mvtec / "bottle/ground_truth/broken/001_mask.png").unlink()
    (mvtec / "screw/train/good/notes.txt").touch()
    texts = complaints_of(planned)
    assert len(texts) == 2
    assert "bottle/ground_truth/broken/001_mask.png" in texts[0]
    assert "screw/train/good/notes.txt" in texts[1]


def test_a_category_that_is_not_asked_for_may_be_broken(planned: Callable[..., Plan], mvtec: Path) -> None:
    (mvtec / "screw/train/good/notes.txt").touch()
    assert [job.cell.category for job in planned(categories=("bottle",)).jobs] == ["bottle"]


def test_space_on_disk_is_looked_at_where_the_folder_will_be(tmp_path: Path) -> None:
    assert enough_disk(tmp_path / "new" / "folder", needed=1) is None
    text = enough_disk(tmp_path / "new", needed=1 << 60)
    assert text is not None
    assert text.startswith(f"{tmp_path / 'new'}: ")
    assert text.endswith(f" MiB free, {1 << 40} MiB are needed")
