"""When losses are compiled, what a failure does, and that the numbers stay."""

import pytest
import torch
from engine.test_checkpoint import execute_cell, job, stop
from engine.test_train import build, fit

from kdbench.engine.compiled import WORTH, Compiler, can_compile, choose_compiler
from kdbench.method import compilable, compiled_by, cosine_distance
from kdbench.results.store import CELLS, Results, read

CPU = torch.device("cpu")


def test_only_a_long_training_is_compiled_unless_it_is_asked_for(monkeypatch, tmp_path):
    (tmp_path / "g++").write_text("")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert choose_compiler("auto", CPU, WORTH - 1) is None
    assert choose_compiler("auto", CPU, WORTH) is not None
    assert choose_compiler("off", CPU, WORTH) is None
    assert choose_compiler("on", CPU, 1) is not None


def test_without_a_compiler_nothing_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not can_compile(CPU)
    assert choose_compiler("auto", CPU, WORTH) is None


def test_a_function_that_cannot_be_compiled_runs_as_it_is():
    @compilable
    def odd(x: torch.Tensor) -> torch.Tensor:
        return x * len(input.__doc__ or "") if x.sum().item() > 0 else x  # a value decides: no single graph

    compiler = Compiler()
    assert compiler.outcome == "no: no function was compilable, or no batch full"
    with compiled_by(compiler):
        assert torch.equal(odd(-torch.ones(2)), -torch.ones(2))
    assert compiler.outcome.startswith("no: ")
    assert len(compiler.outcome.splitlines()) == 1


def test_only_full_batches_are_compiled():
    seen: list[str] = []

    def compile_(function):
        seen.append(function.__name__)
        return function

    fit(build(epochs=1), compiler=compile_)  # 10 images and 4 held out, in batches of 4, three levels
    assert seen == ["squared_distance"] * 3 * (2 + 1)
    seen.clear()
    cosine_distance(torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1))
    assert seen == []


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler")
def test_a_compiled_training_gives_the_losses_of_a_plain_one_and_resumes_bit_equal(mvtec, tmp_path):
    def row(folder):
        return read(Results(tmp_path / folder).storage, CELLS).to_pylist()[0]

    for folder, asked in (("plain", "off"), ("compiled", "on"), ("resumed", "on")):
        planned = job(mvtec, tmp_path / folder, compile=asked)
        if folder == "resumed":
            assert stop(planned, epoch=3).status == "stopped"
        execute_cell(planned.cell, planned.place, "run-2", lambda progress: None)
    plain, compiled, resumed = row("plain"), row("compiled"), row("resumed")
    assert (plain["compiled"], compiled["compiled"]) == ("no", "yes")
    assert compiled["epoch_loss"] == pytest.approx(plain["epoch_loss"], rel=1e-4)
    assert resumed["epoch_loss"] == compiled["epoch_loss"]
    assert resumed["resumed_at_epoch"] == 3


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler")
def test_terms_of_a_compiled_loss_are_differentiated_and_the_training_stays(monkeypatch):
    weights = []
    for steps in (lambda steps, terms: (0, 1), lambda steps, terms: ()):
        monkeypatch.setattr("kdbench.engine.train.differentiated_steps", steps)
        compiler, method = Compiler(), build(epochs=1)
        history = fit(method, compiler=compiler)
        assert compiler.outcome == "yes"
        weights.append(method.state_dict())
        assert [term.gradient is not None for term in history.terms[:1]] == [not weights[1:]]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
