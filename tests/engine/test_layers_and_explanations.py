"""`predict --layer` and `predict --explain`: against the network called by hand."""

import importlib.util
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from data import DInterface
from PIL import Image
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

HERE = "test_layers_and_explanations."
RUN = Path("lightning_logs/version_0")
FLAGS = ["--accelerator", "cpu", "--num_workers", "0", "--batch_size", "16", "--max_epochs", "1", "--no-pictures"]


class Noise(Dataset):
    """Images of noise whose class nothing tells."""

    classes = ("no", "yes")
    num_classes = 2

    def __init__(self) -> None:
        self.images = torch.randn(50, 2, 6, 6, generator=torch.Generator().manual_seed(0))
        self.targets = [index % 2 for index in range(50)]

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]

    @staticmethod
    def open_image(path: str) -> Tensor:
        return torch.tensor(np.asarray(Image.open(path))).float().expand(2, 6, 6) / 255


class Convolutional(nn.Module):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.act, self.unused = nn.ReLU(), nn.ReLU()
        self.convs = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3))
        self.head = nn.Linear(5, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.act(self.act(self.convs(images)).mean((2, 3))))


class Plane(nn.Module):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(72, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Late(LightningModule):
    """Builds its layers in `configure_model`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.body = num_classes, None

    def configure_model(self) -> None:
        if self.body is None:
            self.body, self.head = nn.Linear(72, 4), nn.Linear(4, self.num_classes)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.head(self.body(batch[0].flatten(1)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.predict_step(batch, 0), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Sized(Plane):
    """Has a length, of 0."""

    def __len__(self) -> int:
        return 0


def trained(network: type[nn.Module]) -> tuple[Any, Tensor, Tensor]:
    """The trained network, and the images and classes of the test split."""
    main.main(["--model_name", HERE + network.__name__, "--dataset", f"{HERE}Noise", *FLAGS])
    best = next(RUN.glob("checkpoints/best*.ckpt"))
    state = torch.load(best, weights_only=True)["state_dict"]
    net = network()
    net.load_state_dict({name.removeprefix("network."): one for name, one in state.items()})
    places = DInterface(Noise).split("test").indices
    return net.eval(), Noise().images[places], torch.tensor(Noise().targets)[places]


def mistakes(net: Any, images: Tensor, targets: Tensor) -> list[int]:
    """The numbers of the items that are taken for another class, the worst first."""
    with torch.no_grad():
        logits = net(images)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    wrong = [at for at in range(len(targets)) if logits[at].argmax() != targets[at]]
    return sorted(wrong, key=lambda at: -losses[at].item())


def width(name: str) -> int:
    with Image.open(RUN / name) as image:
        return image.size[0]


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", "--ckpt_path", "best", *argv])
    text = capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1, text
    return text


@pytest.mark.slow
def test_two_processes_write_each_row_once_and_in_order(ranks) -> None:
    net, images, targets = trained(Convolutional)
    ranks("predict", "--ckpt_path", "best", "--layer", "convs.1", "--batch_size", "1", "--format", "npy")
    ranks("predict", "--ckpt_path", "best", "--layer", "head", "--batch_size", "2", "--format", "csv")
    with torch.no_grad():
        inner, logits = net.convs[1](net.convs[0](images)), net(images)
    np.testing.assert_allclose(np.load(RUN / "layer_convs.1.npy"), inner.numpy(), atol=1e-6)  # 5 items
    table = np.loadtxt(RUN / "layer_head.csv", delimiter=",", skiprows=1)
    assert table[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert table[:, 1].tolist() == targets.tolist()
    np.testing.assert_allclose(table[:, 2:], logits.numpy(), rtol=1e-4, atol=1e-6)
    assert width("layer_convs.1.png") > 300
    assert not list(RUN.glob("*.part"))


def test_a_layers_output_in_the_order_of_the_items_and_its_components(capsys: pytest.CaptureFixture[str]) -> None:
    net, images, _ = trained(Convolutional)
    layer = ["--layer", "convs.1", "--head_name", "logits"]  # --head_name is of the network's output
    main.main(["predict", "--ckpt_path", "best", *layer, "--batch_size", "2"])
    with torch.no_grad():
        right = net.convs[1](net.convs[0](images))
    written = np.load(RUN / "layer_convs.1.npy")
    assert written.shape == (5, 4, 4, 4)
    np.testing.assert_allclose(written, right.numpy(), atol=1e-6)
    assert width("layer_convs.1.png") > 300
    main.main(["predict", "--ckpt_path", "best", "--layer", "head", "--format", "csv"])
    assert (RUN / "layer_head.csv").read_text().splitlines()[0] == "index,true,y0,y1"
    assert "--layer conv; did you mean 'convs'?; there are: act, unused, convs, convs.0" in error(
        capsys, "--layer", "conv"
    )
    assert "--layer act: it runs 2 times a batch" in error(capsys, "--layer", "act")
    assert "--layer unused: it runs 0 times a batch" in error(capsys, "--layer", "unused")
    assert "an output of shape (4, 4, 4) is no table" in error(capsys, "--layer", "convs.1", "--format", "csv")


def test_a_layer_that_is_built_when_the_run_starts() -> None:
    main.main(["--model_name", f"{HERE}Late", "--dataset", f"{HERE}Noise", *FLAGS])
    main.main(["predict", "--ckpt_path", "last", "--layer", "body"])
    state = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    images = Noise().images[DInterface(Noise).split("test").indices].flatten(1)
    right = images @ state["body.weight"].T + state["body.bias"]
    np.testing.assert_allclose(np.load(RUN / "layer_body.npy"), right.numpy(), atol=1e-5)


def test_a_layer_of_a_network_that_has_a_length() -> None:
    net, images, _ = trained(Sized)
    main.main(["predict", "--ckpt_path", "best", "--layer", "layers.1"])
    np.testing.assert_allclose(np.load(RUN / "layer_layers.1.npy"), net(images).detach().numpy(), atol=1e-5)


def test_integrated_gradients_of_the_worst_mistakes() -> None:
    pytest.importorskip("captum")
    net, images, targets = trained(Plane)
    main.main(["predict", "--ckpt_path", "best", "--explain", "integrated_gradients", "--batch_size", "2"])
    worst = mistakes(net, images, targets)
    assert worst
    weight = net.layers[1].weight.detach().view(2, 2, 6, 6)  # of a linear network the integral is weight * input
    right = [[(weight[one] * images[at]).sum(0) for one in (1 - targets[at], targets[at])] for at in worst]
    written = np.load(RUN / "explained_integrated_gradients.npy")
    np.testing.assert_allclose(written, np.stack([torch.stack(one).numpy() for one in right]), atol=1e-5)
    assert width("explained_integrated_gradients.png") > 300
    assert (RUN / "predictions.csv").exists()


def test_grad_cam_of_given_images(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("captum")
    net, images, _ = trained(Convolutional)
    Path("shots").mkdir()
    for at in range(3):
        pixels = (images[at, 0].sigmoid() * 255).byte().numpy()
        Image.fromarray(pixels).save(f"shots/{at}.png")
    main.main(["predict", "--ckpt_path", "best", "--explain", "grad_cam", "--images", "shots", "--batch_size", "2"])
    inputs = torch.stack([Noise.open_image(f"shots/{at}.png") for at in range(3)])
    maps = net.convs(inputs)
    maps.retain_grad()
    logits = net.head(net.act(net.act(maps).mean((2, 3))))
    logits.amax(1).sum().backward()
    right = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    right = functional.interpolate(right.detach(), (6, 6), mode="bilinear")
    np.testing.assert_allclose(np.load(RUN / "explained_grad_cam.npy"), right.numpy(), atol=1e-6)
    assert "--layer goes with --explain grad_cam only" in error(capsys, "--explain", "saliency", "--layer", "convs.1")


def test_explanations_without_captum_say_which_extra_has_it(train, capsys, monkeypatch) -> None:
    train("--max_epochs", 1)
    if importlib.util.find_spec("captum"):
        assert "--explain takes networks with one input, an image" in error(capsys, "--explain", "saliency")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "captum" else find(name, *more)
    )
    assert 'pip install -e ".[explain]"' in error(capsys, "--explain", "saliency")


class Attends(nn.Module):
    """A layer that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(12, 1, batch_first=True), nn.Linear(12, 2)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.movedim(1, 2).flatten(2)  # (N, 6, 12)
        return self.head(self.attention(rows, rows, rows)[0].mean(1))


def test_each_output_of_a_layer_in_a_tuple_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    net, images, _ = trained(Attends)
    rows = images.movedim(1, 2).flatten(2)
    for right, more in zip(net.attention(rows, rows, rows), ([], ["--head_name", "1"]), strict=True):
        capsys.readouterr()
        main.main(["predict", "--ckpt_path", "best", "--layer", "attention", *more])
        assert ("--head_name writes another one" in capsys.readouterr().out) is (not more)
        np.testing.assert_allclose(np.load(RUN / "layer_attention.npy"), right.detach(), atol=1e-5)
