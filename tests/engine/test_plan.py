"""`plan`: its account against tensors that were really made, numbers written by hand, and published ones."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import main
import pytest
import torch
from engine.cli import discovery
from engine.commands.plan.step_costs import bytes_of
from model import MInterface
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from toys import ConvNet, Labels, Net

STATES = ("weights", "gradients", "optimizer_state")
TOYS = {"toys.Net": "toys.Blobs"} | dict.fromkeys(("toys.ConvNet", "toys.ViewNet"), "toys.ImageBlobs")
LENET = {"lenet": "digits"} if {"lenet", "digits"} <= {*discovery.names("model"), *discovery.names("data")} else {}


class Words(Dataset):
    """Sentences of one word said `length` times, whose first word is asked."""

    num_classes = 10

    def __init__(self, length: int = 32) -> None:
        self.length = length

    def __len__(self) -> int:
        return 640

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((self.length,), index % 10), index % 10


class Photos(Words):
    """Pictures as large as those of ImageNet."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 224, 224), 0


class Rows(Words):
    """Long rows of numbers, read as whole batches."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(4096), 0

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(indices), 4096), torch.zeros(len(indices), dtype=torch.long)


class Layer(nn.Linear):
    """A network whose batch is most of what a step holds."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(4096, num_classes)


class Block(nn.Module):
    """Attention and a layer of its own for each word, after norms."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm, self.asks, self.gives = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.num_heads = num_heads

    def forward(self, words: Tensor) -> Tensor:
        heads = self.asks(self.norm(words)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(heads[0], heads[1], heads[2])
        words = words + self.gives(seen.transpose(1, 2).flatten(2))
        return words + self.wide(words)


class Transformer(nn.Module):
    """GPT-2's shape; the last layer has the weights of the first."""

    def __init__(self, dim: int = 64, depth: int = 2, num_words: int = 100, places: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(num_words, dim), nn.Parameter(torch.zeros(places, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        tokens = self.words(words) + self.places[: words.shape[1]]
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class Reads(Net):
    """A network that looks into a tensor while it is built."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes, int(torch.full((1,), 8).item()))


class Asks(Net):
    """One that looks into a tensor in each pass."""

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points) if points.sum() > 0 else self.layers(-points)


class Full(ConvNet):
    """One that computes in 32 bits alone."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.float())


class Spy(Callback):
    """Sums what a real step holds, each storage once."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        self.found: dict[str, int] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.held = list(batch)
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda one: self.held.append(one) or one, lambda one: one)
        self.hooks.__enter__()

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        self.hooks.__exit__()
        own = {one.untyped_storage().data_ptr() for one in module.parameters()}
        self.found["activations"] = bytes_of(x for x in self.held if x.untyped_storage().data_ptr() not in own)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        states = [one for state in trainer.optimizers[0].state.values() for one in state.values()]
        self.found["weights"] = bytes_of([*module.parameters(), *module.buffers()])
        self.found["gradients"] = bytes_of(one.grad for one in module.parameters())
        self.found["optimizer_state"] = bytes_of(states)


class Profile(Callback):
    """What the allocator has given out at the fullest moment of two steps, beside weights and optimiser's state."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            module.zero_grad()  # what was made before is not seen to be given back
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            self.profile.__exit__(None, None, None)
            events = self.profile.profiler.kineto_results.events()  # type: ignore[union-attr]
            found = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
            self.most = max(accumulate(size for _, size in found))


def plan(model: str, dataset: str, *argv: str | int, measure: int = 0) -> dict[str, float]:
    """What `plan` says of a network on the CPU."""
    words = ["plan", "--model_name", model, "--dataset", dataset, "--accelerator", "cpu", "--num_workers", "0"]
    return main.main([*words, "--measure_steps", str(measure), *map(str, argv)])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize(
    ("model", "dataset"),
    [*TOYS.items(), *LENET.items(), ("test_plan.Transformer", "test_plan.Words")],
)
def test_it_foretells_what_a_step_holds(model: str, dataset: str, precision: str) -> None:
    told, spy = plan(model, dataset, "--precision", precision, "--batch_size", 32), Spy()
    words = ["--model_name", model, "--dataset", dataset, "--accelerator", "cpu", "--num_workers", "0"]
    limits = ["--max_epochs", "1", "--limit_train_batches", "1", "--limit_val_batches", "0"]
    limits += ["--limit_test_batches", "0", "--batch_size", "32"]
    main.main([*words, *limits, "--precision", precision, "--logger", "[]"], [spy])
    assert set(spy.found) == {*STATES, "activations"}
    for name, measured in spy.found.items():
        assert told[name] == pytest.approx(measured, rel=0.1), name
    assert told["memory"] - told["workspace"] == pytest.approx(sum(spy.found.values()), rel=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("model", "dataset"), [("test_plan.Transformer", "test_plan.Words"), ("test_plan.Layer", "test_plan.Rows")]
)
def test_it_foretells_the_fullest_moment_of_a_step(model: str, dataset: str, precision: str) -> None:
    words = ["--model_name", model, "--dataset", dataset, "--logger", "[]"]
    limits = ["--max_steps", "5", "--limit_val_batches", "0", "--limit_test_batches", "0"]
    told, seen = plan(model, dataset, "--precision", precision), Profile()
    main.main([*words, *limits, "--accelerator", "cpu", "--num_workers", "0", "--precision", precision], [seen])
    assert told["memory"] == pytest.approx(told["weights"] + told["optimizer_state"] + seen.most, rel=0.1)


def test_communication_is_that_of_a_ring(capsys: pytest.CaptureFixture[str]) -> None:
    net = ("toys.Net", "toys.Blobs")  # 2 * 8 + 8 + 8 * 3 + 3 = 51 parameters, 204 bytes
    assert plan(*net)["communication"] == 0
    assert plan(*net, "--devices", 4)["communication"] == 2 * 3 / 4 * 204
    assert plan(*net, "--devices", 4, "--strategy", "fsdp")["communication"] == 3 * 3 / 4 * 204
    assert plan(*net, "--devices", 4, "--num_nodes", 2, "--strategy", "ddp")["communication"] == 2 * 7 / 8 * 204
    half = plan(*net, "--devices", 4, "--strategy", "fsdp", "--precision", "bf16-mixed")
    assert half["communication"] == 3 * 3 / 4 * 102
    assert half["weights"] == 204 / 4
    assert half["gathered_layer"] == 2 * 27  # the larger linear layer, in 16 bits
    frozen = plan(*net, "--freeze", "layers.0")  # 24 parameters
    assert (frozen["parameters"], frozen["trainable"], frozen["gradients"]) == (51, 27, 108)
    assert "51 parameters, 27 of them trained" in capsys.readouterr().out


def test_resnet_18_has_the_parameters_that_torchvision_lists() -> None:
    told = plan("torchvision.models.resnet18", "test_plan.Photos", "--optimizer", "SGD", "--momentum", "0.9")
    assert told["parameters"] == 11_689_512  # its documentation
    assert told["optimizer_state"] == 4 * 11_689_512


@pytest.mark.slow  # it follows 21 layers, six times
def test_gpt_2_and_a_network_for_many_machines_are_as_large_as_the_zero_paper_says() -> None:
    """S. Rajbhandari et al., 2020: 16 bytes a parameter; 7.5 G take 120 GB, or 1.9 GB on each of 64."""
    shape = (
        "test_plan.Transformer",
        "test_plan.Words",
        "--places",
        1024,
        "--precision",
        "bf16-mixed",
    )
    told = plan(*shape, "--num_words", 50257, "--dim", 768, "--depth", 12, "--heads", 12)
    assert told["parameters"] == 124_439_808  # of GPT-2, as published
    assert sum(told[name] for name in STATES) == pytest.approx(16 * told["parameters"], rel=1e-4)
    large = (*shape, "--num_words", 25000, "--dim", 8192, "--depth", 9, "--heads", 64)
    spread = ("--devices", 8, "--num_nodes", 8, "--strategy", "fsdp")
    shared = plan(*large, *spread, measure=2)  # and nothing is timed, since nothing has room
    assert 16 * shared["parameters"] == pytest.approx(120e9, rel=0.01)
    assert sum(shared[name] for name in STATES) == pytest.approx(1.9e9, rel=0.02)


def test_a_transformer_keeps_what_is_published_of_its_layers() -> None:
    """V. Korthikanti et al., 2022, eq. 1 without dropout and attention matrices: 32 s b h bytes a layer in 16 bits."""
    net = (
        "test_plan.Transformer",
        "test_plan.Words",
        "--precision",
        "bf16-true",
        "--batch_size",
        8,
    )
    more, less = (plan(*net, "--depth", depth)["activations"] for depth in (3, 1))
    assert (more - less) / 2 == pytest.approx(32 * 32 * 8 * 64, rel=0.05)


def test_the_largest_batch_is_the_last_that_fits() -> None:
    net = ("test_plan.Transformer", "test_plan.Words", "--device_memory", "64MiB")
    most = int(plan(*net)["largest_batch"])
    assert plan(*net, "--batch_size", most)["memory"] <= 0.9 * 2**26 < plan(*net, "--batch_size", most + 1)["memory"]


def test_times_come_from_a_real_batch_and_the_link(capsys: pytest.CaptureFixture[str]) -> None:
    net = (
        "toys.Net",
        "toys.Blobs",
        "--devices",
        3,
        "--batch_size",
        8,
        "--accumulate_grad_batches",
        2,
    )
    told = plan(*net, "--link_gbps", 0.001, measure=3)
    assert told["steps"] == 2  # 72 items are 3 batches on each device
    network = 2 * 2 / 3 * 204 * 8 / 1e6
    assert told["step_seconds_no_overlap"] == pytest.approx(2 * told["batch_seconds"] + network)
    hidden = min(network, 2 / 3 * told["batch_seconds"])
    assert told["step_seconds"] == pytest.approx(2 * told["batch_seconds"] + network - hidden)
    assert told["epoch_seconds"] == 2 * told["step_seconds"]
    assert "step_seconds" not in plan(*net, measure=1)
    assert "--link_gbps" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


def test_times_of_another_device_come_from_its_operations(capsys: pytest.CaptureFixture[str]) -> None:
    told = plan(
        "toys.Net",
        "toys.Blobs",
        "--device_tflops",
        0.001,
        "--batch_size",
        8,
        "--max_epochs",
        3,
    )
    assert (
        told["batch_seconds"] == 3 * 8 * 2 * (2 * 8 + 8 * 3) / 1e9
    )  # backward is twice forward; times and plus are two
    assert told["epoch_seconds"] == 9 * told["batch_seconds"]
    assert "3 epochs: 0.0518 ms" in capsys.readouterr().out


def test_a_stream_is_planned_too() -> None:
    told = plan("toys.Net", "toys.Stream", "--batch_size", 8, measure=1)
    assert (told["parameters"], told["steps"]) == (51, 4)
    assert "steps" not in plan("toys.Net", "toys.Endless", measure=1)


class Texts(Words):
    """Items of text alone."""

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return "word"


class Reader(MInterface):
    """Reads texts, and is its own loss."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nn.Linear(1, 1), **kwargs)

    def step(self, batch: list[str], stage: str) -> Tensor:
        return self.network(torch.tensor([[float(len(text))] for text in batch])).mean()


def test_of_a_batch_without_tensors_the_rest_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("test_plan.Reader", "test_plan.Texts")["parameters"] == 2
    assert "Reader: a batch without tensors is not traced" in capsys.readouterr().out


class Heated(Words):
    """Batches whose first entry is one number for all items."""

    @staticmethod
    def collate_fn(items: list[Any]) -> tuple[Tensor, ...]:
        return torch.tensor(2.0), torch.ones(len(items), 8), torch.tensor([target for _, target in items])


class Heat(Layer):
    def __init__(self, num_classes: int) -> None:
        nn.Linear.__init__(self, 8, num_classes)

    def forward(self, heat: Tensor, points: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(points) / heat


def test_a_batch_may_begin_with_a_number_for_all_of_its_items() -> None:
    told = plan("test_plan.Heat", "test_plan.Heated", "--batch_size", 100)
    inputs, target, logits = 100 * 8 * 4, 100 * 8, 100 * 10 * 4
    assert told["activations"] == pytest.approx(inputs + target + logits, rel=0.01)


class Shares(Labels):
    """A share of each of three classes."""

    def target(self, point: Tensor) -> Tensor:
        return torch.full((3,), 1 / 3)


def of_answers(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output, target)


@pytest.mark.parametrize(
    ("dataset", "loss"),
    [
        ("toys.Labels", "--loss binary_cross_entropy_with_logits"),
        ("toys.Labels", "--loss test_plan.of_answers --task multilabel"),
        ("test_plan.Shares", ""),
    ],
)
def test_losses_whose_targets_are_checked_are_planned(dataset: str, loss: str) -> None:
    assert plan("toys.Tags", dataset, *loss.split())["activations"] > 0


def of_known_answers(output: Tensor, target: Tensor) -> Tensor:
    return of_answers(output[target >= 0], target[target >= 0])


def test_a_loss_that_leaves_answers_out_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    plan("toys.Tags", "toys.Labels", "--loss", "test_plan.of_known_answers", "--task", "multilabel")
    told = "but the activations are not in it: MInterface: a step that reads values (masks) is not traced"
    assert told in capsys.readouterr().out.splitlines()


def test_its_table_has_room_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    plan(
        "toys.Net",
        "toys.Blobs",
        "--devices",
        8,
        "--strategy",
        "fsdp",
        "--link_gbps",
        100,
        measure=1,
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    precisions = next(line for line in lines if line.startswith("each of 8 devices"))
    assert precisions.split()[4:] == ["32-true", "bf16-mixed", "bf16-true"]  # once for both strategies
    heads = next(line for line in lines if line.startswith("--batch_size 64"))
    assert heads.split()[2:] == ["ddp", "fsdp"] * 3
    assert next(line for line in lines if line.startswith("sends a step")).split()[3:7] == ["357", "B", "536", "B"]


def test_it_says_what_it_cannot_tell(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "--fast_dev_run": "takes no --fast_dev_run",
        "--strategy=deepspeed": "--strategy deepspeed: plan knows ddp and fsdp",
        "--precision=transformer-engine": "plan knows 32-true",
        "--device_memory=much": "write it as 80GB",
        "--ckpt_path=last": "plan begins with fresh weights",
        "--model_name=test_plan.Reads": "Reads reads some",
    }
    for flag, why in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            plan("toys.Net", "toys.Blobs", flag)
        assert why in capsys.readouterr().err
    assert "activations" not in plan("test_plan.Asks", "toys.Blobs")
    assert "but the activations are not in it: MInterface" in capsys.readouterr().out
    plan("test_plan.Full", "toys.ImageBlobs")
    assert "bf16-true is left out: " in capsys.readouterr().out


def test_where_the_system_does_not_say_how_much_memory_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("os.sysconf")  # as on Windows
    net = ("toys.Net", "toys.Blobs")
    with pytest.raises(SystemExit, match="2"):
        plan(*net)
    assert "--device_memory, such as 16GB" in capsys.readouterr().err
    assert plan(*net, "--device_memory", "16GB", measure=1)["batch_seconds"] > 0
