"""`export`: a network in a file that runs without this project."""

import csv
import importlib
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
import toys
from engine.checkpointing.checkpoint_io import load
from paths import PROJECT
from PIL import Image, ImageOps
from test_examples import write_mnist
from torch.utils.data import Dataset

RUN = Path("lightning_logs/version_0")


def test_pt2_takes_batches_of_any_size(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1, "--dataset", "toys.Named")
    capsys.readouterr()
    main.main(["export", "--ckpt_path", "last"])
    assert capsys.readouterr().out.splitlines()[1:] == [f"{RUN}/network.pt2", f"{RUN}/labels.json"]
    program = torch.export.load(RUN / "network.pt2").module()
    assert program(torch.zeros(5, 2)).shape == (5, 3)
    assert json.loads((RUN / "labels.json").read_text()) == {"classes": ["a", "b", "c"], "num_classes": 3}


def test_a_network_that_asks_for_the_length_of_a_batch(train) -> None:
    train("--max_epochs", 1, "--model_name", "toys.ConvNet", "--dataset", "toys.ImageBlobs")
    main.main(["export", "--ckpt_path", "last"])
    assert torch.export.load(RUN / "network.pt2").module()(torch.zeros(7, 2, 4, 4)).shape == (7, 3)


class Signals(Dataset[Any]):
    """Signals of 5 to 12 steps, padded with zeros to the longest of a batch; whether most of a signal is above 0."""

    num_classes = 2

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        signal = torch.randn(5 + index % 8, generator=torch.Generator().manual_seed(index))
        return signal, int(signal.sum() > 0)

    @staticmethod
    def collate_fn(items: list[Any]) -> tuple[torch.Tensor, ...]:
        signals, targets = zip(*items, strict=True)
        lengths = torch.tensor([len(signal) for signal in signals])
        return torch.nn.utils.rnn.pad_sequence(signals, batch_first=True), lengths, torch.tensor(targets)


class MeanOfSignal(torch.nn.Module):
    """The mean over the steps that a signal has, and a straight line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 2)

    def forward(self, signals: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.line(signals.sum(1, keepdim=True) / lengths[:, None])


class MeanStepByStep(MeanOfSignal):
    """Splits a signal, step by step, so that the exporter takes the number of steps for fixed."""

    def forward(self, signals: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.stack(signals.unbind(1), 1), lengths)


@pytest.mark.filterwarnings("default")  # the exporter's own
def test_items_of_different_length_are_exported_for_any_length(train) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    train("--max_epochs", 1, "--model_name", "test_export.MeanOfSignal", "--dataset", "test_export.Signals")
    main.main(["export", "--ckpt_path", "last", "--format", "pt2", "onnx"])
    weights = load(next(RUN.glob("checkpoints/best*")))["state_dict"]
    program = torch.export.load(RUN / "network.pt2").module()
    session = onnxruntime.InferenceSession(RUN / "network.onnx", providers=["CPUExecutionProvider"])
    for items, length in ((1, 5), (3, 9), (2, 31)):
        signals, lengths = torch.randn(items, length), torch.full((items,), length)
        right = signals.numpy().mean(1, keepdims=True) * weights["network.line.weight"].numpy().T
        right += weights["network.line.bias"].numpy()
        assert program(signals, lengths).detach().numpy() == pytest.approx(right, abs=1e-5)
        (output,) = session.run(["output"], {"signals": signals.numpy(), "lengths": lengths.numpy()})
        assert output == pytest.approx(right, abs=1e-5)


def test_a_network_that_fixes_the_length_says_so(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1, "--model_name", "test_export.MeanStepByStep", "--dataset", "test_export.Signals")
    main.main(["export", "--ckpt_path", "last"])
    said = "MeanStepByStep is exported for inputs of (7,) alone, and items differ in it: pad what you give it to that"
    assert said in capsys.readouterr().err
    assert torch.export.load(RUN / "network.pt2").module()(torch.zeros(3, 7), torch.ones(3)).shape == (3, 2)


class Crops(Dataset[Any]):
    """Crops of one size to learn from, by name; wholes of several sizes for the rest."""

    num_classes = 3

    def __init__(self, split: str) -> None:
        self.is_train = split == "train"

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        size = (8, 8) if self.is_train else (9 + index % 2, 12)
        return {"image": torch.zeros(1, *size), "target": torch.zeros(size, dtype=torch.long)}


class OfPixels(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image)


def test_what_is_learnt_on_crops_is_exported_for_the_sizes_of_the_validation() -> None:
    torch.save((net := OfPixels()).state_dict(), "weights.pt")
    flags = ["--model_name", "test_export.OfPixels", "--dataset", "test_export.Crops", "--accelerator", "cpu"]
    main.main(["export", "--init_from", "weights.pt", *flags])
    image = torch.randn(3, 1, 21, 13)
    found = torch.export.load(RUN / "network.pt2").module()(image=image)
    torch.testing.assert_close(found, net(image))


class Roots(torch.nn.Module):
    """Numbers of points; NaN where one is below 0."""

    def __init__(self, num_features: int = 2, num_classes: int = 3) -> None:
        super().__init__()
        self.line = torch.nn.Linear(num_features, num_classes)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.line(points.sqrt())


def test_an_answer_may_be_nan() -> None:
    torch.save(Roots().state_dict(), "weights.pt")
    flags = ["--model_name", "test_export.Roots", "--dataset", "toys.Blobs", "--accelerator", "cpu"]
    main.main(["export", "--init_from", "weights.pt", *flags])
    assert torch.export.load(RUN / "network.pt2").module()(-torch.ones(3, 2)).isnan().all()


class Branches(Roots):
    """Goes on one way or the other."""

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        if points.sum() > 1e9:
            return self.line(-points)
        return self.line(points)


class Picks(Roots):
    """Works on numbers of Python."""

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.line(points) * float(points.numpy().max() > 1e9)


class Masked(Roots):
    """Tokens (B, 2, 1) that look back alone."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(2, 1, 2, batch_first=True)
        self.encoder, self.given = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), given
        self.register_buffer("mask", torch.nn.Transformer.generate_square_subsequent_mask(3), persistent=False)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        tokens = torch.stack([points, points + 1, points - 1], 1)  # (B, 2) -> (B, 3, 2)
        return self.line(self.encoder(tokens, mask=self.mask, **self.given)[:, -1])


class Causal(Masked):
    def __init__(self) -> None:
        super().__init__(is_causal=True)


class OwnError(Roots):
    def forward(self, points: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise ValueError("my own")
        return self.line(points)


class ReturnsLoss(Roots):
    def forward(self, points: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.line(points)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class OfSparse(Roots):
    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(points, self.line.weight.T)


class Sparse(toys.Blobs):
    @staticmethod
    def collate_fn(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        points, targets = zip(*items, strict=True)
        return torch.stack(points).to_sparse(), torch.tensor(targets)


def exported(network: str, dataset: str = "toys.Blobs", *argv: str) -> None:
    torch.save(Roots().state_dict(), "weights.pt")
    flags = ["--model_name", f"test_export.{network}", "--dataset", dataset, "--accelerator", "cpu", *argv]
    main.main(["export", "--init_from", "weights.pt", *flags])


def test_what_torch_export_cannot_follow_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    why = {
        "Branches": "at line N of test_export.py, `if points.sum() > 1e9:` (",
        "Picks": "at line N of test_export.py, `return self.line(points) * float(points.numpy().max() > 1e9)` (",
    }
    for network, said in why.items():
        with pytest.raises(SystemExit, match="2"):
            exported(network)
        err = re.sub(r"line \d+", "line N", capsys.readouterr().err)
        assert f"torch.export cannot follow {network} {said}" in err
        assert len(err.splitlines()) == 1
        assert len(err) < 500
    with pytest.raises(SystemExit, match="2"):
        exported("OfSparse", "test_export.Sparse")
    assert "whose inputs are tensors; OfSparse gets one of layout torch.sparse_coo" in capsys.readouterr().err
    with pytest.raises(ValueError, match="my own"):
        exported("OwnError")


def test_a_masked_transformer_is_exported_once_it_is_told_that_the_mask_is_causal(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        exported("Masked", "toys.Blobs", "--init_partial")
    assert "it also needs is_causal: True where the mask is the causal one, else False" in capsys.readouterr().err
    exported("Causal", "toys.Blobs", "--init_partial")  # which checks it against the network in memory
    assert capsys.readouterr().out.splitlines()[-1].endswith("labels.json")


class Bessel(Roots):
    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.line(torch.special.i1e(points))


@pytest.mark.filterwarnings("default")  # the exporter's own
def test_what_onnx_does_not_have_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(SystemExit, match="2"):
        exported("Bessel", "toys.Blobs", "--format", "onnx")
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch.onnx cannot write the network (DispatchError: No ONNX function found for" in line
    assert line.endswith("): --format pt2 can")


def test_a_network_that_returns_its_loss_is_exported_with_it() -> None:
    exported("ReturnsLoss")
    program = torch.export.load(RUN / "network.pt2").module()
    points, labels = torch.randn(7, 2), torch.randint(3, (7,))
    found = program(points, labels=labels)
    assert found["loss"].item() == pytest.approx(torch.nn.functional.cross_entropy(found["logits"], labels).item())


@pytest.fixture
def lenet() -> None:
    """A network that has learned the digits a little, as two files."""
    pytest.importorskip("model.lenet")  # the examples may have been deleted
    pytest.importorskip("data.digits")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main.main(
        ["--model_name", "lenet", "--dataset", "digits", "--max_epochs", "1", "--accelerator", "cpu", "--no-pictures"]
    )
    main.main(["export", "--ckpt_path", "version_0", "--format", "pt2", "onnx"])


@pytest.mark.filterwarnings("default")  # the exporter's own
def test_onnx_answers_as_the_checkpoint(lenet, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    names = ["labels.json", "network.onnx", "network.pt2"]
    assert sorted(path.name for path in RUN.iterdir() if path.name in names or "onnx" in path.name) == names
    labels = json.loads((RUN / "labels.json").read_text())
    said = {"channels": "grey", "size": 8, "resize": "box", "ink": "light", "white": 16, "mean": 4.88, "std": 6.02}
    assert labels["preprocessing"] == said
    network = importlib.import_module("model.lenet").LeNet(1, 10, 8)
    weights = load(next(RUN.glob("checkpoints/best*")))["state_dict"]
    network.load_state_dict({name[8:]: one for name, one in weights.items() if name.startswith("network.")})
    session = onnxruntime.InferenceSession(RUN / "network.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"]
    for items in (1, 2, 7):
        images = torch.randn(items, 1, 8, 8)
        (output,) = session.run(["output"], {"images": images.numpy()})
        assert output == pytest.approx(network.eval()(images).detach().numpy(), abs=1e-4)


def picture(name: str, size: tuple[int, int], mode: str = "L", **options: Any) -> None:
    """A dark disc on a light, noisy ground."""
    y, x = np.mgrid[: size[1], : size[0]]
    disc = np.hypot(x / size[0] - 0.5, y / size[1] - 0.4) < 0.3
    noise = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3))
    Image.fromarray((np.where(disc, 30, 210)[..., None] + noise).astype(np.uint8)).convert(mode).save(name, **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dataset", ["digits", "mnist", "image_folder"])
def test_the_script_of_the_readme_answers_as_predict_does(dataset: str, monkeypatch, capsys) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("model.lenet")
    pytest.importorskip(f"data.{dataset}")
    flags = []
    if dataset == "mnist":
        write_mnist(Path("datasets"))
    if dataset == "image_folder":
        for number in range(40):
            folder = Path("datasets", "ab"[number % 2])
            folder.mkdir(parents=True, exist_ok=True)
            picture(f"{folder}/{number}.png", (20 + number, 24), "RGB")
        flags = ["--img_size", "16"]
    quick = ["--max_epochs", "1", "--accelerator", "cpu", "--num_workers", "0", "--pictures", "false"]
    main.main(["--model_name", "lenet", "--dataset", dataset, *quick, *flags])
    main.main(["export", "--ckpt_path", "version_0", "--format", "onnx"])
    scripts = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (script,) = [one for one in scripts if "onnxruntime" in one]
    Path("serve.py").write_text(script, encoding="utf-8")
    Path("new").mkdir()
    rotated = Image.Exif()
    rotated[0x0112] = 6
    picture("new/wide.png", (63, 40), "RGB")
    picture("new/photo.jpg", (31, 50), "RGB", exif=rotated)
    picture("new/grey.png", (28, 28))
    ImageOps.invert(Image.open("new/grey.png")).save("new/inverted.png")
    main.main(["predict", "--ckpt_path", "version_0", "--images", "new"])
    with (RUN / "predictions_new.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 4
    for name, row in rows.items():
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["serve.py", str(RUN), name])
        runpy.run_path("serve.py")
        best, share = capsys.readouterr().out.split()
        assert best == row["class"]
        assert float(share) == pytest.approx(float(row[f"p{best}"]), abs=1e-5)
    if dataset != "image_folder":  # ink on paper is read as its negative is
        shares = [[float(rows[f"new/{name}.png"][f"p{at}"]) for at in range(10)] for name in ("grey", "inverted")]
        assert shares[0] == pytest.approx(shares[1], abs=1e-3)  # means of bytes are rounded


def test_without_its_packages_the_message_names_the_extra(train, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    train("--max_epochs", 1)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else found(name, *rest))
    with pytest.raises(SystemExit, match="2"):
        main.main(["export", "--ckpt_path", "last", "--format", "onnx"])
    assert '--format onnx needs onnx, onnxscript, onnxruntime: pip install -e ".[onnx]"' in capsys.readouterr().err
    assert not (RUN / "labels.json").exists()
