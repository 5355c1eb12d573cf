"""A metric and a schedule of one's own, by their dotted paths; and which way a metric is better."""

import csv
from pathlib import Path

import main
import numpy as np
import pytest
import torchmetrics
import toys

RUN = Path("lightning_logs/version_0")
HARD = ("--num_items", 900, "--noise", 2, "--lr", 0.01, "--logger", "csv")


def rows(path: Path = RUN / "metrics.csv") -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_metric_of_ones_own_is_that_of_the_whole_split(train) -> None:
    told = train("--metrics", "toys.DefectRecall", "acc", "--max_epochs", 2, "--batch_size", 7, "--noise", 1.5)
    assert {"train_defect_recall", "val_defect_recall", "test_acc"} <= told.keys()
    main.main(["predict", "--ckpt_path", "best", "--noise", "1.5", "--batch_size", "7"])
    answers = rows(RUN / "predictions.csv")
    true, said = (np.array([int(row[name]) for row in answers]) for name in ("true", "class"))
    assert (said != true).any()
    assert told["test_defect_recall"] == pytest.approx((said[true == 1] == 1).mean())
    assert main.main(["test", "--ckpt_path", "best"])["test_defect_recall"] == told["test_defect_recall"]


def test_a_metric_takes_arguments(train) -> None:
    named = ["acc(top_k=2)", "FBetaScore(beta=2.0, average='macro')", "toys.DefectRecall(wanted=2)"]
    told = train("--metrics", *named, "--max_epochs", 1, "--noise", 1.5, "--lr", 0.05)
    main.main(["predict", "--ckpt_path", "best", "--noise", "1.5", "--batch_size", "32"])
    answers = rows(RUN / "predictions.csv")
    true, said = (np.array([int(row[name]) for row in answers]) for name in ("true", "class"))
    shares = np.array([[float(row[f"p{at}"]) for at in range(3)] for row in answers])
    assert told["test_acc"] == pytest.approx((shares.argmin(1) != true).mean())  # among the two likeliest of three
    hits = [((said == at) & (true == at)).sum() for at in range(3)]
    fbeta = [5 * hit / (5 * hit + 4 * ((true == at) & (said != at)).sum() + ((true != at) & (said == at)).sum())
             for at, hit in enumerate(hits)]  # fmt: skip
    assert told["test_fbetascore"] == pytest.approx(np.mean(fbeta))
    assert told["test_defect_recall"] == pytest.approx((said[true == 2] == 2).mean())
    told_again = main.main(["test", "--ckpt_path", "best"])  # its metrics are from config.yaml and the checkpoint
    assert {name: told[name] for name in told_again} == told_again


def test_one_metric_with_several_arguments_has_these_in_its_names(train) -> None:
    both = [f"toys.DefectRecall(wanted={at})" for at in (0, 1)]
    flags = ["--max_epochs", 1, "--noise", 1.5, "--lr", 0.05, "--monitor", "val_acc_top_k_2"]
    told = train(*flags, "--metrics", *both, "acc", "acc(top_k=2)")
    apart = [train(*flags[:-2], "--metrics", one) for one in both]
    assert [told[f"test_defect_recall_wanted_{at}"] for at in (0, 1)] == [one["test_defect_recall"] for one in apart]
    assert told["test_defect_recall_wanted_0"] != told["test_defect_recall_wanted_1"]
    assert told["test_acc"] < told["test_acc_top_k_2"] < 1
    assert next(RUN.glob("checkpoints/best-*")).name.startswith("best-epoch1-val_acc_top_k_2=")


def test_a_metric_without_an_average_is_logged_for_each_class(train) -> None:
    asked = ["Recall(average='none')", "acc", "--monitor", "val_recall_b", "--logger", "csv"]
    flags = ["--dataset", "toys.Named", "--noise", 1.5, "--max_epochs", 2, "--batch_size", 7]
    told = train(*flags, "--metrics", *asked)
    main.main(["predict", "--ckpt_path", "best"])
    answers = rows(RUN / "predictions.csv")
    true, said = (np.array([row[name] for row in answers]) for name in ("true_name", "name"))
    recall = {name: (said[true == name] == name).mean() for name in "abc"}
    assert len({*recall.values()}) > 1
    assert {name: told[f"test_recall_{name}"] for name in recall} == pytest.approx(recall)
    assert told["test_recall"] == pytest.approx(np.mean([*recall.values()]))
    logged = [float(row["val_recall_b"]) for row in rows() if row["val_recall_b"]]
    assert told["best_val_recall_b"] == pytest.approx(max(logged))
    told = train("--metrics", "Recall(average='none')", "--max_epochs", 1)  # of classes without names
    assert {"val_recall_0", "val_recall_1", "val_recall_2"} < told.keys()


class NoOrYes(toys.YesNo):
    classes = ("no", "yes")


def test_values_that_are_not_one_of_each_class_get_no_class_names(train) -> None:
    flags = ["--max_epochs", 1, "--batch_size", 7]
    binary = ["--model_name", "toys.Line", "--dataset", f"{__name__}.NoOrYes"]
    binary += ["--loss", "binary_cross_entropy_with_logits", "--metrics", "F1Score(average='none')"]
    told = train(*binary, *flags)
    assert [name for name in told if name.startswith("val_f1")] == ["val_f1score"]  # that of yes
    told = train("--dataset", "toys.Named", "--metrics", "StatScores(average='none')", *flags)  # 5 counts of each
    assert [name for name in told if name.startswith("val_stat")] == ["val_statscores"]


class CalledFirst(toys.DefectRecall):
    """The same of the class with the first name."""

    def __init__(self, classes: list[str]) -> None:
        super().__init__(len(classes), wanted=classes.index("a"))


def test_the_names_of_the_classes_are_filled_in(train) -> None:
    flags = ["--dataset", "toys.Named", "--noise", 1.5, "--max_epochs", 1]
    told = train(*flags, "--metrics", "Recall(average='none')", f"{__name__}.CalledFirst")
    assert told["test_called_first"] == pytest.approx(told["test_recall_a"])


def test_it_chooses_the_checkpoint_by_its_name(train) -> None:
    train("--metrics", "toys.DefectRecall", "--monitor", "val_defect_recall", "--max_epochs", 4, *HARD)
    values = [float(row["val_defect_recall"]) for row in rows() if row["val_defect_recall"]]
    assert min(values) < max(values)
    [best] = (RUN / "checkpoints").glob("best-*")
    assert float(best.stem.rpartition("=")[2]) == pytest.approx(max(values), abs=1e-6)


def test_the_schedule_follows_the_share_of_training_done(train) -> None:
    steady = ("--lr", 0.1, "--batch_size", 24, "--log_every_n_steps", 1, "--logger", "csv")
    train("--lr_scheduler", "toys.trapezoid", "--max_epochs", 4, *steady)
    wanted = [0.1 * min(1, 4 * step / 12, 4 * (1 - step / 12)) for step in range(12)]
    assert [float(row["lr"]) for row in rows() if row["lr"]] == pytest.approx(wanted)
    train("--lr_scheduler", "toys.trapezoid", "--max_epochs", 4, "--warmup_epochs", 1, *steady)
    rates = [float(row["lr"]) for row in rows(Path("lightning_logs/version_1/metrics.csv")) if row["lr"]]
    done = [step / 9 for step in range(9)]  # of what the warm-up leaves
    assert rates == pytest.approx([0.025, 0.05, 0.075, *(0.1 * min(1, 4 * one, 4 * (1 - one)) for one in done)])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--metrics FBetaScore(beta=2", "--metrics 'FBetaScore(beta=2': write a name, or one with arguments: FBeta"),
        (
            "--metrics FBetaScore(2)",
            "--metrics 'FBetaScore(2)': write a name, or one with arguments: FBetaScore(beta=2.0)",
        ),
        ("--metrics Recall(average=none)", "or one with arguments: FBetaScore(beta=2.0), Recall(average='none')"),
        ("--metrics FBetaScore(betta=2.0)", "--metrics FBetaScore has no argument 'betta', but "),
        (
            "--metrics FBetaScore(beta=-2.0)",
            "--metrics FBetaScore(beta=-2.0): Expected argument `beta` to be a float lar",
        ),
        (
            "--metrics toys.DefectRecall(want=2)",
            "has no argument 'want', but num_classes, wanted; did you mean 'wanted'?",
        ),
        ("--metrics toys.twice", "--metrics toys.twice is no subclass of torchmetrics.Metric"),
        ("--metrics toys.DefectRecal", "module toys has no 'DefectRecal'; did you mean 'DefectRecall'?"),
        ("--metrics Ndcg", "--metrics Ndcg: torchmetrics has none of that name\n"),
        ("--metrics acc toys.Acc", "--metrics acc toys.Acc: another one would be logged as loss, acc"),
        ("--metrics toys.Yield --monitor val_yield", "--monitor val_yield --monitor_mode min, or max"),
        ("--lr_scheduler cosin", "--lr_scheduler 'cosin' is not one of cosine, "),
        ("--lr_scheduler cosin", "plateau or package.name; did you mean 'cosine'?"),
        ("--lr_scheduler toys.nothing", "module toys has no 'nothing'"),
        ("--lr_scheduler toys.trapezoid --max_epochs -1", "--lr_scheduler toys.trapezoid needs an end to plan for"),
    ],
)
def test_what_does_not_go_is_said_in_a_line(train, capsys, argv: str, said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(*argv.split())
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_better_value_is_what_torchmetrics_says(train) -> None:
    for name in ("JaccardIndex", "CohenKappa", "MatthewsCorrCoef"):
        found = getattr(torchmetrics.classification, f"Multiclass{name}").higher_is_better
        train("--metrics", name, "--monitor", f"val_{name.lower()}", "--max_epochs", 3, *HARD)
        run = sorted(Path("lightning_logs").glob("version_*"), key=lambda path: path.stat().st_mtime)[-1]
        values = [float(row[f"val_{name.lower()}"]) for row in rows(run / "metrics.csv") if row[f"val_{name.lower()}"]]
        [best] = (run / "checkpoints").glob("best-*")
        assert float(best.stem.rpartition("=")[2]) == pytest.approx((max if found else min)(values), abs=1e-6)
