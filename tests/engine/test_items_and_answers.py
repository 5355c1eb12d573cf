"""What an item and an output mean: names and positions, losses of one's own, classes along any dimension."""

import copy
import csv
import json
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import main
import numpy as np
import pytest
import torch
import toys
from data import DInterface
from model import MInterface
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchmetrics import MeanMetric
from toys import Blobs, twice

HERE = "test_items_and_answers."
RUN = Path("lightning_logs/version_0")
WHOLE = [
    "--lr_scheduler",
    "constant",
    "--val_fraction",
    "0",
    "--test_fraction",
    "0",
    "--accelerator",
    "cpu",
    "--num_workers",
    "0",
]


class FirstWeights(Callback):
    """Keeps the state_dict with which training begins."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.weights = copy.deepcopy(module.state_dict())


def words(model: str, dataset: str, *argv: str | int | float) -> list[str]:
    """A command line; without --test_fraction, all items train."""
    whole = WHOLE if "--test_fraction" not in argv else WHOLE[:-2]
    model, dataset = (one if "." in one else HERE + one for one in (model, dataset))
    return ["--model_name", model, "--dataset", dataset, *whole, *map(str, argv)]


def fit(model: str, dataset: str, *argv: str | int | float) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Trains and returns the metrics and the first weights."""
    first = FirstWeights()
    return main.main(words(model, dataset, *argv), callbacks=[first]), first.weights


class Stop(Callback):
    """Sends SIGTERM in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_and_resume(model: str, dataset: str, step: int, *argv: str | int | float) -> dict[str, float]:
    """Trains as `fit`, stopped in a step and gone on with; returns the metrics."""
    flags = words(model, dataset, *argv)
    with pytest.raises(SystemExit) as stop:
        main.main(flags, callbacks=[Stop(step)])
    assert stop.value.code == 128 + signal.SIGTERM
    return main.main([*flags, "--ckpt_path", "last"])


def last_weights(run: Path = RUN) -> dict[str, Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str | int) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        main.main([*map(str, argv)])
    assert stop.value.code == 2
    text = capsys.readouterr().err.strip()
    assert "\n" not in text, text
    return text


def refused_later(capsys: pytest.CaptureFixture[str], *argv: str | int) -> str:
    """The last line with which a command line is refused once a step was tried."""
    with pytest.raises(SystemExit) as stop:
        main.main([*map(str, argv)])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# Items.


class Still(Blobs):
    """Points without noise, 30 of them."""

    def __init__(self, num_items: int = 30) -> None:
        super().__init__(num_items, noise=0.0)
        self.points = torch.randn(num_items, 2, generator=torch.Generator().manual_seed(0))
        self.masses = torch.rand(num_items, generator=torch.Generator().manual_seed(1))

    def __getitem__(self, index: int) -> Any:
        return self.points[index], self.targets[index]


class Described(Still):
    def __getitem__(self, index: int) -> Any:
        return *super().__getitem__(index), self.masses[index], f"{index}.png"


class Named(Still):
    def __getitem__(self, index: int) -> Any:
        point, target = super().__getitem__(index)
        return {"file": f"{index}.png", "mass": self.masses[index], "label": target, "points": point}


class OtherName(Still):
    def __getitem__(self, index: int) -> Any:
        point, target = super().__getitem__(index)
        return {"path": f"{index}.png", "image": point, "labels": target}


class NoTarget(Still):
    def __getitem__(self, index: int) -> Any:
        return self.points[index], f"{index}.png"


class Graph:
    """A batch of one's own, which moves by `.to`."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.num_graphs = x, y, len(y)

    def to(self, device: Any) -> "Graph":
        return Graph(self.x.to(device), self.y.to(device))


class Graphs(Still):
    @staticmethod
    def collate_fn(items: list[Any]) -> Graph:
        points, targets = zip(*items, strict=True)
        return Graph(torch.stack(points), torch.tensor(targets))


class Net(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)


class GraphNet(Net):
    def forward(self, graph: Graph) -> Tensor:
        return self.layers(graph.x)


@pytest.mark.parametrize(
    ("network", "dataset", "note"),
    [
        ("Net", "Described", "1 input, then the target, 2 more unused"),
        ("Net", "Named", "file and mass unused"),
        ("Net", "OtherName", "points is image, path unused"),
        ("GraphNet", "Graphs", "cpu"),
    ],
)
def test_items_of_any_kind_train_as_plain_pairs_do(network: str, dataset: str, note: str, capsys) -> None:
    plain, _ = fit("Net", "Still", "--max_epochs", 2)
    assert fit(network, dataset, "--max_epochs", 2)[0] == plain
    assert note in capsys.readouterr().out
    plain, other = (last_weights(Path(f"lightning_logs/version_{number}")) for number in (0, 1))
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_items_without_a_target_are_predicted_and_not_trained_on(capsys) -> None:
    fit("Net", "Still", "--max_epochs", 1, "--test_fraction", 0.5)
    main.main(["predict", "--ckpt_path", "last", "--dataset", f"{HERE}NoTarget"])
    with (RUN / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 15
    capsys.readouterr()
    text = refused(capsys, "--model_name", f"{HERE}Net", "--dataset", f"{HERE}NoTarget", *WHOLE)
    assert "--loss cross_entropy needs a target, and an item has none" in text


def test_what_forward_needs_and_no_item_has_is_said_in_one_line(capsys) -> None:
    text = refused(capsys, "--model_name", f"{HERE}Wide", "--dataset", f"{HERE}Named", *WHOLE)
    assert "forward needs left, right, and an item has file, mass, label, points" in text


class Wide(Net):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layers(left + right)


# Losses.


class Arc(nn.Module):
    """A loss with weights of its own: a centre for each class."""

    def __init__(self, num_classes: int, dim: int = 3, scale: float = 4.0) -> None:
        super().__init__()
        self.scale, self.centres = scale, nn.Parameter(torch.eye(num_classes, dim))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        cosine = functional.normalize(output) @ functional.normalize(self.centres).T
        return functional.cross_entropy(self.scale * cosine, target)


def weighed(output: Tensor, label: Tensor, mass: Tensor, power: float = 1.0) -> dict[str, Tensor]:
    each = functional.cross_entropy(output, label, reduction="none")
    return {"fit": (each * mass**power).mean(), "size": 0.01 * output.square().mean()}


def plain_loop(weights: dict[str, Tensor], loss: Any, steps: int, more: Any = ()) -> tuple[list[float], nn.Module]:
    """Full-batch steps of Adam on the items of Still, from the weights given."""
    data, net = Still(), Net()
    net.load_state_dict({k.removeprefix("network."): v for k, v in weights.items() if k.startswith("network.")})
    adam = torch.optim.Adam([*net.parameters(), *more], lr=2e-3)
    values = []
    for _ in range(steps):
        value = loss(net(data.points), torch.tensor(data.targets), data)
        values.append(value.item())
        adam.zero_grad()
        value.backward()
        adam.step()
    return values, net


def same(net: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, value in net.state_dict().items():
        torch.testing.assert_close(weights[f"network.{name}"], value, rtol=1e-4, atol=1e-6)


def test_a_loss_of_torch_may_be_a_class_with_its_arguments_as_flags() -> None:
    flags = ["--max_epochs", 3, "--label_smoothing", 0.2]
    metrics, first = fit("Net", "Still", "--loss", "torch.nn.CrossEntropyLoss", *flags)
    values, net = plain_loop(first, lambda o, t, _: functional.cross_entropy(o, t, label_smoothing=0.2), 3)
    assert metrics["train_loss"] == pytest.approx(values[-1], rel=1e-5)
    assert "train_acc" in metrics
    same(net, last_weights())


def test_a_loss_with_weights_trains_saves_and_resumes_them() -> None:
    flags = ["--loss", f"{HERE}Arc", "--scale", 2]
    metrics, first = fit("Net", "Still", *flags, "--max_epochs", 4)
    arc = Arc(3, scale=2)
    arc.load_state_dict({"centres": first["loss.centres"]})
    values, net = plain_loop(first, lambda o, t, _: arc(o, t), 4, arc.parameters())
    assert metrics["train_loss"] == pytest.approx(values[-1], rel=1e-5)
    same(net, last_weights())
    torch.testing.assert_close(last_weights()["loss.centres"], arc.centres.data, rtol=1e-4, atol=1e-6)
    assert not torch.equal(arc.centres, first["loss.centres"])
    stop_and_resume("Net", "Still", 2, *flags, "--max_epochs", 4)
    once, twice = last_weights(), last_weights(Path("lightning_logs/version_1"))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_a_loss_takes_further_entries_of_the_batch_and_its_parts_are_logged(capsys) -> None:
    flags = ["--loss", f"{HERE}weighed", "--power", 2]
    metrics, first = fit("Net", "Named", *flags, "--max_epochs", 3)
    values, net = plain_loop(first, lambda o, t, data: sum(weighed(o, t, data.masses, 2.0).values()), 3)
    assert metrics["train_loss"] == pytest.approx(values[-1], rel=1e-5)
    assert metrics["train_fit"] + metrics["train_size"] == pytest.approx(values[-1], rel=1e-5)
    assert ", file unused)" in capsys.readouterr().out  # the loss takes the mass
    same(net, last_weights())
    text = refused(capsys, "--model_name", f"{HERE}Net", "--dataset", f"{HERE}Still", *flags, *WHOLE)
    assert "needs mass of the batch" in text


class Answered(Still):
    """Three questions of each point, of which some were not answered: NaN, or -1."""

    def __init__(self, num_items: int = 60, no_answer: float = -1.0) -> None:
        super().__init__(num_items)
        self.answers = torch.stack([self.points[:, 0] > 0, self.points[:, 1] > 0, self.points.sum(1) > 0], 1).float()
        self.answers[torch.rand(num_items, 3, generator=torch.Generator().manual_seed(2)) < 0.4] = no_answer

    def __getitem__(self, index: int) -> Any:
        return self.points[index], self.answers[index]


def of_answers(output: Tensor, target: Tensor) -> Tensor:
    known = target >= 0
    return functional.binary_cross_entropy_with_logits(output[known], target[known])


class Rounded(Answered):
    """Shares that a sum of 32 bits has made larger than 1."""

    def __getitem__(self, index: int) -> Any:
        return self.points[index], torch.full((3,), 1 + 1e-6)


def test_answers_may_lie_outside_0_to_1_by_rounding() -> None:
    metrics, _ = fit("toys.Tags", "Rounded", "--loss", "binary_cross_entropy_with_logits", "--max_epochs", 1)
    assert metrics["train_loss"] > 0


@pytest.mark.parametrize("no_answer", [-1.0, float("nan")])
def test_answers_that_are_missing_count_neither_in_metrics_nor_in_the_mean_loss(no_answer: float, capsys) -> None:
    flags = ["--no_answer", no_answer, "--max_epochs", 1, "--test_fraction", 0.5, "--batch_size", 7]
    own = ["--loss", f"{HERE}of_answers", "--task", "multilabel", "--metrics", "acc", "auroc"]
    metrics, _ = fit("toys.Tags", "Answered", *flags, *own)
    weights, part = last_weights(), DInterface(Answered, test_fraction=0.5).split("test").indices
    points, answers = Answered().points[part], Answered().answers[part]
    logits = functional.linear(points, weights["network.layer.weight"], weights["network.layer.bias"])
    assert metrics["test_loss"] == pytest.approx(of_answers(logits, answers).item(), rel=1e-5)
    right, ranked = [], []
    for logit, answer in zip(logits.T, answers.T, strict=True):
        yes, no = logit[answer == 1], logit[answer == 0]
        right.append(torch.cat([yes > 0, no <= 0]).float().mean().item())
        ranked.append((yes[:, None] > no).float().mean().item())
    assert metrics["test_acc"] == pytest.approx(np.mean(right), rel=1e-5)
    assert metrics["test_auroc"] == pytest.approx(np.mean(ranked), rel=1e-5)
    part = DInterface(Answered, val_fraction=0, test_fraction=0.5).split("train").indices
    missing = int((~(Answered().answers[part] >= 0)).sum())
    assert f"\n{missing} answers are below 0 or NaN: metrics leave those out, as the loss" in capsys.readouterr().out
    plain = words("toys.Tags", "Answered", *flags, "--loss", "binary_cross_entropy_with_logits")
    assert "binary_cross_entropy_with_logits takes targets in 0..1, and here is one of" in refused_later(capsys, *plain)


class AnsweredLater(Answered):
    """One answer is missing, in one of its last batches; or the answers are a head's."""

    def __init__(self, head: bool = False, no_answer: float = -1.0) -> None:
        super().__init__(no_answer=0.0)
        self.answers[55 if head else 7, 1] = no_answer
        self.head = head

    def __getitem__(self, index: int) -> Any:
        answers = self.answers[index]
        return (
            {"points": self.points[index], "target": {"tags": answers}} if self.head else (self.points[index], answers)
        )


class TagHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, points: Tensor) -> Any:
        return {"tags": self.layer(points)}


@pytest.mark.parametrize("no_answer", [-1.0, float("nan")])
@pytest.mark.parametrize("head", [False, True])
def test_a_missing_answer_in_any_batch_is_refused_by_a_loss_that_would_learn_it(
    head: bool, no_answer: float, capsys
) -> None:
    name = "binary_cross_entropy_with_logits"
    loss = ["--head_losses", f"tags={name}"] if head else ["--loss", "torch.nn.BCEWithLogitsLoss"]
    flags = ["--head" if head else "--no-head", "--no_answer", no_answer, "--batch_size", 2, "--max_epochs", 1, *loss]
    text = refused_later(capsys, *words("TagHead" if head else "toys.Tags", "AnsweredLater", *flags))
    assert "takes targets in 0..1, and here is one of" in text


class Squeezed(toys.Line):
    def forward(self, points: Tensor) -> Tensor:
        return super().forward(points).squeeze(1)


class Flat(toys.Sums):
    """One number an item, without a dimension."""

    def __getitem__(self, index: int) -> Any:
        inputs, target = super().__getitem__(index)
        return inputs, target[0]


class Traced(MInterface):
    """Trains by a step of its own; the loss of its validation is the default."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nn.Linear(2, 1), task="regression", **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize(
    ("model", "data", "task", "said"),
    [
        ("toys.Line", "toys.Sums", "", "the targets are numbers (torch.float32), not classes: give --loss mse_loss"),
        ("Squeezed", "Flat", "", "the targets are numbers (torch.float32), not classes: give --loss mse_loss"),
        ("toys.Line", "toys.Sums", "regression", "--task regression does not go with --loss cross_entropy"),
        ("Traced", "toys.Sums", "", "--task regression does not go with --loss cross_entropy"),
        ("toys.Tags", "toys.Labels", "", "or shares of them, and these do not sum to 1; --loss mse_loss is of numbers"),
    ],
)
def test_numbers_and_yes_or_no_are_not_trained_on_as_classes(
    model: str, data: str, task: str, said: str, capsys
) -> None:
    argv = words(model, data, *(["--task", task] if task else []), "--test_fraction", 0.1, "--val_fraction", 0.1)
    assert said in refused_later(capsys, *argv, "--max_epochs", 1)


def test_parts_of_a_loss_go_on_exactly_after_a_stop_within_an_epoch() -> None:
    flags = ["--loss", f"{HERE}weighed", "--batch_size", 7, "--max_epochs", 2]
    fit("Net", "Named", *flags)
    stop_and_resume("Net", "Named", 7, *flags)
    files = [Path(f"lightning_logs/version_{number}/metrics.csv").read_text() for number in (0, 1)]
    rows = [list(csv.DictReader(text.splitlines())) for text in files]
    parts = [[row["train_fit"] for row in one if row["train_fit"]] for one in rows]
    assert len(parts[0]) == 2
    assert parts[0] == parts[1]


# Answers.


class Bigrams(Dataset):
    """Rows of whole numbers below V, of length T; the target is the next number, modulo V."""

    num_classes = 5

    def __init__(self, length: int = 4) -> None:
        self.rows = torch.randint(5, (40, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index], (self.rows[index] + 1) % 5


class Speaker(nn.Module):
    """Logits (B, T, V) of the next token."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


class Stacked(Speaker):
    """Logits (B, V, T)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).transpose(1, 2)


@pytest.mark.parametrize(("model", "dim"), [("Speaker", -1), ("Stacked", 1)])
@pytest.mark.parametrize("length", [4, 5])
def test_classes_are_found_along_the_dimension_that_they_are_in(model: str, dim: int, length: int, capsys) -> None:
    flags = ["--length", length, "--max_epochs", 20, "--lr", 0.05, "--test_fraction", 0.5]
    if length == 5:  # as many tokens as classes
        line = ["--model_name", HERE + model, "--dataset", f"{HERE}Bigrams", *WHOLE, "--length", 5]
        assert "--class_dim 1, or -1" in refused(capsys, *line)
        flags += ["--class_dim", dim]
    fit(model, "Bigrams", *flags)
    data = Bigrams(length)
    table = last_weights(sorted(Path("lightning_logs").iterdir())[-1])["network.table.weight"]
    logits, target = table[data.rows], (data.rows + 1) % 5
    main.main(["test", "--ckpt_path", "last"])
    main.main(["predict", "--ckpt_path", "last", "--format", "npy"])
    run = sorted(Path("lightning_logs").iterdir())[-1]
    tested = json.loads((run / "metrics.json").read_text())
    part = DInterface(Bigrams, {"length": length}, test_fraction=0.5).split("test").indices
    loss = functional.cross_entropy(logits[part].transpose(1, 2), target[part])
    assert tested["test_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert tested["test_acc"] == pytest.approx((logits[part].argmax(2) == target[part]).double().mean().item())
    shares = torch.from_numpy(np.load(run / "predictions.npy"))
    expected = logits[part].softmax(2)
    torch.testing.assert_close(shares, expected if dim == -1 else expected.transpose(1, 2))
    if length == 4:  # the weights of a run mean what its training has found
        weights = ["--init_from", str(run), "--model_name", HERE + model, "--dataset", f"{HERE}Bigrams"]
        main.main(["predict", *weights, "--val_fraction", "0", "--test_fraction", "0.5", "--format", "npy"])
        again = sorted(Path("lightning_logs").iterdir())[-1]
        assert np.load(again / "predictions.npy").tolist() == shares.tolist()


class Views(Still):
    """Two noisy views of a point."""

    def __getitem__(self, index: int) -> Any:
        return self.points[index] + 0.1 * torch.randn(2), self.points[index] + 0.1 * torch.randn(2)


class Embedder(MInterface):
    """Near views near, others apart (SimCLR)."""

    def __init__(self, dim: int = 4, **kwargs: Any) -> None:
        super().__init__(nn.Linear(2, dim), **kwargs)

    def step(self, batch: Any, stage: str) -> Tensor:
        left, right = (functional.normalize(self(view)) for view in batch)
        loss = functional.cross_entropy(left @ right.T / 0.2, torch.arange(len(left)))
        self.metrics[f"{stage}_loss"].update(loss.detach(), len(left))
        return loss


def spread(output: Tensor, target: Tensor) -> Tensor:
    """A loss over embeddings, with classes as targets."""
    return (output - target[:, None]).square().mean()


class Embedding(nn.Module):
    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(2, dim)

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points)


@pytest.mark.parametrize(
    ("model", "data", "flags"),
    [
        ("Embedder", "Views", []),
        ("Embedding", "Still", ["--loss", f"{HERE}spread"]),
    ],
)
def test_what_is_no_classifier_is_predicted_as_it_comes_out(model: str, data: str, flags: list[str], capsys) -> None:
    metrics, _ = fit(model, data, *flags, "--max_epochs", 1, "--dim", 4, "--test_fraction", 0.5)
    assert "train_acc" not in metrics
    main.main(["predict", "--ckpt_path", "last", "--dataset", f"{HERE}Still", *flags[:2]])
    weights = last_weights()
    part = DInterface(Still, test_fraction=0.5).split("test").indices
    expected = functional.linear(
        Still().points[part],
        weights["network.weight" if data == "Views" else "network.layer.weight"],
        weights["network.bias" if data == "Views" else "network.layer.bias"],
    )
    rows = list(csv.DictReader((RUN / "predictions.csv").read_text().splitlines()))
    values = torch.tensor([[float(row[f"y{number}"]) for number in range(4)] for row in rows])
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)


class Talkative(Net):
    """Gives more than its answer."""

    def forward(self, points: Tensor) -> Any:
        return {"hidden": points, "logits": super().forward(points)}


class Paired(Net):
    def forward(self, points: Tensor) -> Any:
        return super().forward(points), points


@pytest.mark.parametrize("model", ["Talkative", "Paired"])
def test_the_answer_in_a_dict_or_tuple_is_measured_and_predicted(model: str) -> None:
    flags = ["--max_epochs", 2, "--test_fraction", 0.5]
    plain, _ = fit("Net", "Still", *flags)
    assert fit(model, "Still", *flags)[0] == plain
    for number in (0, 1):
        main.main(["predict", "--ckpt_path", f"version_{number}"])
    left, right = (Path(f"lightning_logs/version_{number}/predictions.csv").read_text() for number in (0, 1))
    assert left == right


def twice_of_logits(output: dict[str, Tensor], label: Tensor) -> Tensor:
    return twice(output["logits"], label)


class Judge(Net):
    """Takes the targets, and returns its loss."""

    def forward(self, points: Tensor, label: Tensor | None = None) -> Any:
        logits = super().forward(points)
        return {"loss": functional.cross_entropy(logits, label), "logits": logits} if label is not None else logits


def test_a_network_that_takes_the_target_returns_its_own_loss() -> None:
    plain, _ = fit("Net", "Named", "--max_epochs", 2)
    assert fit("Judge", "Named", "--max_epochs", 2)[0] == plain
    plain, _ = fit("Net", "Named", "--max_epochs", 2, "--loss", "toys.twice")
    own, _ = fit("Judge", "Named", "--max_epochs", 2, "--loss", f"{HERE}twice_of_logits")  # which is meant then
    assert own["train_loss"] == plain["train_loss"]


class YesOrNo(Still):
    def __getitem__(self, index: int) -> Any:
        point, target = super().__getitem__(index)
        return {"points": point, "label": torch.tensor(float(target > 0))}


class Decider(toys.Line):
    """Returns the loss of a yes or no."""

    def forward(self, points: Tensor, label: Tensor | None = None) -> Any:
        logit = super().forward(points).squeeze(1)
        return logit if label is None else (functional.binary_cross_entropy_with_logits(logit, label), logit)


def test_task_says_what_comes_beside_a_networks_own_loss() -> None:
    flags = ["--task", "binary", "--max_epochs", 2, "--lr", 0.1, "--test_fraction", 0.5]
    metrics, _ = fit("Decider", "YesOrNo", *flags)
    weights, data = last_weights(), Still()
    part = DInterface(YesOrNo, test_fraction=0.5).split("test").indices
    logit = functional.linear(data.points, weights["network.layer.weight"], weights["network.layer.bias"])[:, 0]
    right = (logit > 0) == torch.tensor([target > 0 for target in data.targets])
    assert metrics["test_acc"] == pytest.approx(right[torch.as_tensor(part)].double().mean().item())


class Words(Bigrams):
    """Rows that are their own labels, which a language model shifts."""

    def __getitem__(self, index: int) -> Any:
        return {"tokens": self.rows[index], "labels": self.rows[index]}


class LanguageModel(Speaker):
    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(tokens)
        if labels is None:
            return logits
        return {"loss": functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:]), "logits": logits}


class NextToken(MeanMetric):
    higher_is_better = True

    def update(self, output: Tensor, target: Tensor) -> None:
        super().update((output[:, :-1].argmax(2) == target[:, 1:]).float())


def test_only_metrics_of_ones_own_see_what_a_network_may_have_shifted(capsys) -> None:
    flags = ["--max_epochs", 5, "--lr", 0.05, "--test_fraction", 0.5]
    line = words("LanguageModel", "Words", *flags)
    assert "--metrics acc: the network returns its own loss; one of your own" in refused_later(
        capsys, *line, "--metrics", "acc"
    )
    for given in ("--label_smoothing 0.1", "--class_weights balanced", "--loss mse_loss"):
        text = refused_later(capsys, *line, *given.split())
        assert f"{given.split()[0]}: the network returns its own loss" in text
    fit("LanguageModel", "Words", *flags)
    assert "no metric but the loss: the network returns its own loss" in capsys.readouterr().out
    metrics, _ = fit("LanguageModel", "Words", *flags, "--metrics", f"{HERE}NextToken")
    run = sorted(Path("lightning_logs").iterdir())[-1]
    rows = Bigrams().rows[DInterface(Words, test_fraction=0.5).split("test").indices]
    logits = last_weights(run)["network.table.weight"][rows]
    assert metrics["test_next_token"] == pytest.approx((logits[:, :-1].argmax(2) == rows[:, 1:]).double().mean().item())
    assert main.main(["test", "--ckpt_path", "last"])["test_loss"] == metrics["test_loss"]
    main.main(["predict", "--ckpt_path", "last", "--format", "npy"])
    torch.testing.assert_close(torch.from_numpy(np.load(run / "predictions.npy")), logits.softmax(2))


class Sums(Still):
    def __getitem__(self, index: int) -> Any:
        return {"points": self.points[index], "target": self.points[index].sum()}


class Summer(nn.Module):
    """Returns its own loss, of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, points: Tensor, target: Tensor | None = None) -> Any:
        number = self.layer(points)
        return number if target is None else {"loss": (number[:, 0] - target).square().mean(), "out": number}


@pytest.mark.parametrize("flags", [[], ["--task", "regression", "--loss", "mse_loss", "--metrics", "mae"]])
def test_numbers_of_a_network_with_its_own_loss_are_no_logits(flags: list[str]) -> None:
    metrics, _ = fit("Summer", "Sums", *flags, "--max_epochs", 2, "--test_fraction", 0.5)
    weights, part = last_weights(), DInterface(Sums, test_fraction=0.5).split("test").indices
    points = Still().points[part]
    wanted = (points @ weights["network.layer.weight"].T + weights["network.layer.bias"])[:, 0]
    main.main(["predict", "--ckpt_path", "last"])
    rows = list(csv.DictReader((RUN / "predictions.csv").read_text().splitlines()))
    assert [float(row["y0"]) for row in rows] == pytest.approx(wanted.tolist(), abs=1e-5)
    if flags:
        assert metrics["test_mae"] == pytest.approx((wanted - points.sum(1)).abs().mean().item(), rel=1e-5)


def test_predict_from_plain_weights_says_what_it_guesses(capsys) -> None:
    table = nn.Embedding(5, 5)
    torch.save({"table.weight": table.weight.detach()}, "weights.pt")
    line = ["predict", "--init_from", "weights.pt", *words("Speaker", "Bigrams", "--test_fraction", 0.5)]
    main.main([*line, "--format", "npy"])  # rows of 4, and 5 classes
    logits = table.weight.detach()[Bigrams().rows[DInterface(Bigrams, test_fraction=0.5).split("test").indices]]
    torch.testing.assert_close(torch.from_numpy(np.load(RUN / "predictions.npy")), logits.softmax(2))
    for model, loss, said, column in (
        ("Net", "toys.twice", "the outputs are taken for logits of classes: --task says what they are", "p0"),
        ("Embedding", f"{HERE}spread", "the outputs are written as they are: --task says what they are", "y0"),
    ):
        net = {"Net": Net, "Embedding": Embedding}[model]()
        torch.save(net.state_dict(), "weights.pt")
        line = ["predict", "--init_from", "weights.pt", *words(model, "Still", "--loss", loss, "--test_fraction", 0.5)]
        capsys.readouterr()
        main.main(line)
        run = sorted(Path("lightning_logs").iterdir())[-1]
        assert said in capsys.readouterr().out
        assert column in (run / "predictions.csv").read_text().splitlines()[0].split(",")
    main.main([*line, "--task", "multiclass"])
    assert "the outputs are" not in capsys.readouterr().out


class Twofold(Net):
    """Returns twice the loss where it gets the labels."""

    def forward(self, points: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(points)
        return logits if labels is None else (2 * functional.cross_entropy(logits, labels), logits)


def test_a_parameter_for_the_labels_gets_the_target_of_a_tuple(capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = fit("Net", "Still", "--max_epochs", 1, "--lr", 0)
    twofold, _ = fit("Twofold", "Still", "--max_epochs", 1, "--lr", 0)
    assert twofold == {key: value * 2 if key.endswith("loss") else value for key, value in plain.items()}
    assert "forward gets the target as labels" in capsys.readouterr().out


def test_a_checkpoint_that_calls_another_task_none_is_read_as_before() -> None:
    fit("Net", "Still", "--max_epochs", 1, "--task", "other", "--test_fraction", 0.5)
    main.main(["predict", "--ckpt_path", "last"])
    run = Path("lightning_logs/version_0")
    before = (run / "predictions.csv").read_text()
    assert before.startswith("index,true,y0,y1,y2")
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["task"] = checkpoint["answer"]["task"] = "none"
    torch.save(checkpoint, run / "checkpoints/last.ckpt")
    config = (run / "config.yaml").read_text()
    assert "task: other" in config
    (run / "config.yaml").write_text(config.replace("task: other", "task: 'none'"))
    main.main(["predict", "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    assert (run / "predictions.csv").read_text() == before


class TwoTargets(Still):
    """A class and a number of each point."""

    def __getitem__(self, index: int) -> Any:
        point, target = super().__getitem__(index)
        return {"points": point, "target": {"kind": target, "mass": self.masses[index]}}


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.mass = nn.Linear(2, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, points: Tensor) -> Any:
        hidden = self.body(points).relu()
        return {"kind": self.kind(hidden), "mass": self.mass(hidden)}


@pytest.mark.parametrize(
    ("flags", "weight"), [([], 1.0), (["--head_losses", "kind=cross_entropy", "mass=l1_loss*0.1"], 0.1)]
)
def test_each_head_has_a_loss_and_metrics_of_its_own(flags: list[str], weight: float, capsys) -> None:
    metrics, first = fit("TwoHeads", "TwoTargets", "--max_epochs", 3, "--test_fraction", 0.5, *flags)
    data = TwoTargets()
    part = DInterface(TwoTargets, val_fraction=0.0, test_fraction=0.5)
    points, kinds, masses = data.points, torch.tensor(data.targets), data.masses
    net = TwoHeads()
    net.load_state_dict({name.removeprefix("network."): value for name, value in first.items()})
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    regress = functional.l1_loss if flags else functional.mse_loss
    train, test = (part.split(name).indices for name in ("train", "test"))

    def losses(rows: Any) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(list(rows))
        out = net(points[rows])
        return functional.cross_entropy(out["kind"], kinds[rows]), regress(out["mass"].squeeze(1), masses[rows])

    for _ in range(3):
        left, right = losses(train)
        adam.zero_grad()
        (left + weight * right).backward()
        adam.step()
    assert metrics["train_loss"] == pytest.approx((left + weight * right).item(), rel=1e-5)
    assert metrics["train_mass_loss"] == pytest.approx(right.item(), rel=1e-5)
    left, right = losses(test)
    assert metrics["test_kind_loss"] == pytest.approx(left.item(), rel=1e-5)
    assert metrics["test_loss"] == pytest.approx((left + weight * right).item(), rel=1e-5)
    rows = torch.as_tensor(list(test))
    right_ones = net(points[rows])["kind"].argmax(1) == kinds[rows]
    assert metrics["test_kind_acc"] == pytest.approx(right_ones.double().mean().item())
    assert ("heads kind=cross_entropy mass=mse_loss" in capsys.readouterr().out) is (not flags)
    main.main(["predict", "--ckpt_path", "last", "--head_name", "kind"])
    table = list(csv.DictReader((RUN / "predictions.csv").read_text().splitlines()))
    assert [int(row["class"]) for row in table] == net(points[rows])["kind"].argmax(1).tolist()
    shares = torch.tensor([[float(row[f"p{at}"]) for at in range(3)] for row in table])
    torch.testing.assert_close(shares, net(points[rows])["kind"].softmax(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(main.load("last").predict(points[rows])["kind"], shares, rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    several = "the network returns several outputs: --head_name, one of kind, mass"
    assert several in refused(capsys, "predict", "--ckpt_path", "last")


class TwoNamed(Dataset):
    """The same, with names."""

    classes: ClassVar = {"kind": ["left", "middle", "right"]}

    def __init__(self) -> None:
        self.items = TwoTargets()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_metrics_of_each_class_of_a_head_are_logged_and_monitored() -> None:
    flags = ["--max_epochs", 2, "--test_fraction", 0.5, "--head_losses", "kind=cross_entropy"]
    flags += ["--metrics", "Recall(average='none')", "--monitor", "val_kind_recall_right"]
    metrics, _ = fit("TwoHeads", "TwoNamed", *flags)
    main.main(["predict", "--ckpt_path", "best", "--head_name", "kind"])
    table = list(csv.DictReader((RUN / "predictions.csv").read_text().splitlines()))
    names = {row["class"]: row["name"] for row in table}
    assert {*names.items()} <= {("0", "left"), ("1", "middle"), ("2", "right")}
    part = DInterface(TwoNamed, test_fraction=0.5).split("test")
    kinds = [TwoTargets().targets[index] for index in part.indices]
    for number, name in enumerate(("left", "middle", "right")):
        found = [row["class"] == str(number) for row, kind in zip(table, kinds, strict=True) if kind == number]
        assert metrics[f"test_kind_recall_{name}"] == pytest.approx(sum(found) / len(found))
    assert "best_train_kind_recall_right" in metrics  # there is no validation


def test_heads_go_on_exactly_after_a_stop_within_an_epoch() -> None:
    flags = ["--batch_size", 7, "--max_epochs", 2]
    whole, _ = fit("TwoHeads", "TwoTargets", *flags)
    assert stop_and_resume("TwoHeads", "TwoTargets", 6, *flags) == whole


def test_the_norm_of_the_gradient_is_logged_before_it_is_clipped() -> None:
    flags = ["--max_epochs", 1, "--log_grad_norm", "--gradient_clip_val", 0.01, "--log_every_n_steps", 1]
    _, first = fit("Net", "Still", *flags)
    data, net = Still(), Net()
    net.load_state_dict({name.removeprefix("network."): value for name, value in first.items()})
    functional.cross_entropy(net(data.points), torch.tensor(data.targets)).backward()
    expected = sum(float(one.grad.double().square().sum()) for one in net.parameters()) ** 0.5
    rows = csv.DictReader((RUN / "metrics.csv").read_text().splitlines())
    assert [float(row["grad_norm"]) for row in rows if row["grad_norm"]] == pytest.approx([expected], rel=1e-4)
