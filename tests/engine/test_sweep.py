"""sweep.py: a space and fixed flags in, trials in a database and the best flags out."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import main
import pytest
import toys
from paths import TOYS

optuna = pytest.importorskip("optuna")
sweep = pytest.importorskip("sweep")

SPACE = "lr: {low: 1e-3, high: 1e-1, log: true}\nhidden_dim: [4, 8]\nbatch_size: {low: 8, high: 32, step: 8}\n"
FIXED = ["--", *TOYS, "--max_epochs", "2"]


_opened: list["optuna.storages.RDBStorage"] = []


@pytest.fixture(autouse=True)
def _space(_own_folder: None) -> Iterator[None]:
    Path("space.yaml").write_text(SPACE)
    yield
    while _opened:  # from Python 3.13 on, a database that is left open warns
        storage = _opened.pop()
        storage.remove_session()
        storage.engine.dispose()


def database(**options: int) -> "optuna.storages.RDBStorage":
    _opened.append(optuna.storages.RDBStorage("sqlite:///sweep.db", **options))
    return _opened[-1]


def study(name: str = "space") -> "optuna.Study":
    return optuna.load_study(study_name=name, storage=database())


def test_it_finds_the_best_of_its_trials_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    value, best = sweep.main(["space.yaml", "--trials", "3", "--seed", "1", *FIXED])
    trials = study().trials
    assert len(trials) == 3
    assert value == min(trial.value for trial in trials)
    assert best == next(trial.params for trial in trials if trial.value == value)
    for trial in trials:
        assert trial.params.keys() == {"lr", "hidden_dim", "batch_size"}
        assert 1e-3 <= trial.params["lr"] <= 1e-1
        assert trial.params["hidden_dim"] in (4, 8)
        assert trial.params["batch_size"] in (8, 16, 24, 32)
        assert len(trial.intermediate_values) == 2
    pasted = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert pasted[:2] == ["python", "main.py"]
    assert main.main(pasted[2:])["val_loss"] == value
    assert Path("space.png").read_bytes().startswith(b"\x89PNG")
    assert sweep.main(["space.yaml", "--trials", "4", "--seed", "1", *FIXED])[0] <= value
    assert len(study().trials) == 4
    assert len({trial.params["lr"] for trial in study().trials}) == 4
    assert len(list(Path("lightning_logs").iterdir())) == 5


def test_more_is_better_of_an_accuracy() -> None:
    value, _ = sweep.main(["space.yaml", "--trials", "2", "--metric", "val_acc", *FIXED])
    assert value == max(trial.value for trial in study().trials)


def test_a_metric_of_ones_own_says_what_is_better() -> None:
    asked = ["--metric", "val_defect_recall", *FIXED, "--metrics", "toys.DefectRecall", "acc"]
    value, _ = sweep.main(["space.yaml", "--trials", "2", *asked])
    assert study().direction.name == "MAXIMIZE"
    assert value == max(trial.value for trial in study().trials)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_that_was_killed_is_failed_and_its_values_are_tried_again() -> None:
    sweep.main(["space.yaml", "--trials", "1", *FIXED])
    cut = study().ask()  # as a killed process leaves it behind
    cut.suggest_float("lr", 1e-3, 1e-1, log=True)
    cut.suggest_categorical("hidden_dim", [4, 8])
    cut.suggest_int("batch_size", 8, 32, step=8)
    database(heartbeat_interval=1).record_heartbeat(cut._trial_id)
    values = dict(cut.params)
    time.sleep(2.5)
    sweep.main(["space.yaml", "--trials", "2", "--heartbeat", "1", *FIXED])
    assert [trial.state.name for trial in study().trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study().trials[2].params == values


def test_a_trial_that_a_signal_ended_is_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path.cwd()

    def stop(self) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(toys.Net, "each_forward", stop)
    with pytest.raises(SystemExit, match="143"):
        sweep.main(["space.yaml", "--trials", "1", *FIXED])
    monkeypatch.undo()
    monkeypatch.chdir(here)
    sweep.main(["space.yaml", "--trials", "1", *FIXED])
    assert [trial.state.name for trial in study().trials] == ["FAIL", "COMPLETE"]
    assert study().trials[0].params == study().trials[1].params


def test_a_trial_that_another_process_took_for_dead_is_left_to_it(monkeypatch, capsys) -> None:
    failed = []

    def fail(self: toys.Net) -> None:
        running = [trial for trial in study().trials if trial.state.name == "RUNNING"]
        if not failed and running:  # as another process does after two heartbeats without a sign of life
            failed.extend(running)
            database().set_trial_state_values(running[0]._trial_id, optuna.trial.TrialState.FAIL)

    monkeypatch.setattr(toys.Net, "each_forward", fail)
    sweep.main(["space.yaml", "--trials", "1", *FIXED])
    assert [trial.state.name for trial in study().trials] == ["FAIL", "COMPLETE"]
    assert "stood still for so long that its trial is repeated" in capsys.readouterr().out


def test_a_signal_says_how_the_sweep_goes_on(monkeypatch, capsys) -> None:
    def stop(self: toys.Net) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(toys.Net, "each_forward", stop)
    argv = ["space.yaml", "--trials", "1", "--study", "a study", *FIXED]
    with pytest.raises(SystemExit, match="143"):
        sweep.main(argv)
    assert shlex.split(capsys.readouterr().out.splitlines()[-1]) == ["python", "sweep.py", *argv]


def test_hopeless_trials_end_early() -> None:
    Path("space.yaml").write_text("seed: [0]\nlr: [0.05, 0.0]\n")
    begun = optuna.create_study(study_name="space", storage=database())
    for lr in (0.05, 0.05, 0.05, 0.05, 0.05, 0.0):
        begun.enqueue_trial({"seed": 0, "lr": lr})
    sweep.main(["space.yaml", "--trials", "6", *FIXED])
    assert [trial.state.name for trial in study().trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    begun.enqueue_trial({"seed": 0, "lr": 0.0})
    sweep.main(["space.yaml", "--trials", "7", "--no-prune", *FIXED])
    assert study().trials[6].state.name == "COMPLETE"


def test_a_trial_that_blows_up_counts_and_the_others_go_on() -> None:
    Path("space.yaml").write_text("noise: [nan, 0.1]\n")
    begun = optuna.create_study(study_name="space", storage=database())
    begun.enqueue_trial({"noise": "nan"})
    begun.enqueue_trial({"noise": 0.1})
    value, best = sweep.main(["space.yaml", "--trials", "2", *FIXED])
    assert [trial.state.name for trial in study().trials] == ["FAIL", "COMPLETE"]
    assert best == {"noise": 0.1}
    assert value == study().trials[1].value


@pytest.mark.parametrize(
    ("space", "more", "said"),
    [
        ("hiden_dim: [1]\n", [], "main.py: error: unknown flag --hiden_dim; did you mean 'hidden_dim'?"),
        ("lr: {low: 1, high: 0}\n", [], "is no range (low <= high"),
        ("lr: {low: 0, high: 1, log: true}\n", [], "is no range"),
        ("lr: {lo: 0, high: 1}\n", [], "lr should be a list of choices or {low, high}"),
        ("lr: 3\n", [], "lr should be a list of choices"),
        ("- lr\n", [], "should hold lines like"),
        (None, [], "space.yaml: [Errno 2] No such file"),
        (SPACE, ["--storage", "nowhere"], "--storage nowhere"),
        (SPACE, ["--metric", "val_los", "--trials", "1"], "if it is spelt right, give --monitor val_los"),
        (SPACE, ["--metric", "val_f1", "--trials", "1"], "--metric val_f1: a run has"),
    ],
)
def test_a_mistake_is_one_line(space: str | None, more: list[str], said: str, capsys) -> None:
    Path("space.yaml").write_text(space) if space else Path("space.yaml").unlink()
    with pytest.raises(SystemExit, match="2"):
        sweep.main(["space.yaml", *more, *FIXED])
    error = capsys.readouterr().err
    assert said in error
    assert len([line for line in error.splitlines() if "events.out" not in line]) == 1  # a test before may still write


def test_a_study_keeps_its_metric_and_its_choices(capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main(["space.yaml", "--trials", "1", *FIXED])
    for change, said in (("--metric val_acc", "optimizes val_loss"), ("", "has another space")):
        Path("space.yaml").write_text("hidden_dim: [2, 4]\n")
        with pytest.raises(SystemExit, match="2"):
            sweep.main(["space.yaml", "--trials", "2", *change.split(), *FIXED])
        assert said in capsys.readouterr().err


class Of宽度(toys.Net):
    def __init__(self, num_features: int, num_classes: int, 宽度: int = 4) -> None:
        super().__init__(num_features, num_classes, hidden_dim=宽度)


def test_a_flag_in_chinese_is_drawn_without_a_warning_a_letter(recwarn: pytest.WarningsRecorder) -> None:
    Path("space.yaml").write_text("宽度: [4, 8]\nlr: {low: 1e-3, high: 1e-1}\n")
    sweep.main(["space.yaml", "--trials", "2", *FIXED, "--model_name", "test_sweep.Of宽度"])
    assert Path("space.png").read_bytes().startswith(b"\x89PNG")
    assert not [one for one in recwarn if "Glyph" in str(one.message)]
