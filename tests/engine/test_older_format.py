"""Files in the format of miracleyoo's pytorch-lightning-template, which move as the recipe says."""

import pickle
import shutil
from pathlib import Path

import main
import numpy as np
import pytest
import torch
from paths import PROJECT, TOYS
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits
from torch.utils import data

NETWORK = '''
import torch
from torch import nn


class StandardNet(nn.Module):
    """ A network with its arguments as they stand there: no type, and attributes by locals(). """
    def __init__(self, in_channel=3, out_channel=4, hid=8, freeze=False, mean_sen=[0.4, 0.5, 0.6]):
        super().__init__()
        self.__dict__.update(locals())
        self.body = nn.Sequential(nn.Conv2d(in_channel, hid, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(hid, out_channel)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        x = self.head(self.body(x))
        x = self.sigmoid(x)
        return x
'''
DATASET = """
import os.path as op
import pickle as pkl

import numpy as np
import torch
import torch.utils.data as data


class StandardData(data.Dataset):
    def __init__(self, data_dir=r'data/ref',
                 class_num=4,
                 train=True,
                 no_augment=True,
                 aug_prob=0.5,
                 img_mean=(0.5, 0.5, 0.5),
                 img_std=(0.2, 0.2, 0.2)):
        # every argument is an attribute
        self.__dict__.update(locals())
        self.aug = train and not no_augment
        self.check_files()

    def check_files(self):
        with open(op.join(self.data_dir, 'file_list.pkl'), 'rb') as f:
            names = pkl.load(f)
        self.path_list = names[10:] if self.train else names[:10]
        with open(op.join(self.data_dir, 'label_dict.pkl'), 'rb') as f:
            self.label_dict = pkl.load(f)

    def __len__(self):
        return len(self.path_list)

    def to_one_hot(self, idx):
        out = np.zeros(self.class_num, dtype=float)
        out[idx] = 1
        return out

    def __getitem__(self, idx):
        path = self.path_list[idx]
        filename = op.splitext(op.basename(path))[0]
        img = torch.from_numpy(np.load(path))
        mean, std = torch.tensor(self.img_mean), torch.tensor(self.img_std)
        img = (img - mean[:, None, None]) / std[:, None, None]
        labels = torch.from_numpy(self.to_one_hot(self.label_dict[filename.split('_')[0]])).float()
        return img, labels, filename
"""
NAMES = ("cat", "cow", "dog", "owl")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with such files, and 50 images as arrays."""
    project = tmp_path_factory.mktemp("older") / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("lightning_logs", "__pycache__", "datasets"))
    (project / "model/standard_net.py").write_text(NETWORK)
    (project / "data/standard_data.py").write_text(DATASET)
    (project / "data/ref").mkdir()
    draw, paths = np.random.default_rng(0), []
    for index in range(50):
        path = project / f"data/ref/{NAMES[index % 4]}_{index}.npy"
        np.save(path, draw.uniform(0, 0.5, (3, 8, 8)).astype(np.float32) + np.float32(index % 4) / 8)
        paths.append(str(path))
    (project / "data/ref/file_list.pkl").write_bytes(pickle.dumps(paths))
    (project / "data/ref/label_dict.pkl").write_bytes(pickle.dumps({name: at for at, name in enumerate(NAMES)}))
    return project


def test_the_standard_files_move(project: Path, shell, warm_python: str, tmp_path: Path) -> None:
    flags = "--model_name=standard_net --dataset=standard_data --loss=binary_cross_entropy --task=multiclass".split()
    cheap = ["--no-pictures", "--accelerator=cpu", "--num_workers=0", "--max_epochs=2", "--lr=0.01", "--aug_prob=0.1"]
    refused = shell(*flags, project=project)
    assert "--freeze: the argument freeze of StandardNet has the name of a flag" in refused.stderr
    network_file = project / "model/standard_net.py"
    network_file.write_text(NETWORK.replace("freeze", "frozen"))  # the only edit
    ran = shell(*flags, *cheap, "--data_dir", str(project / "data/ref"), project=project, python=warm_python)
    assert ran.returncode == 0, ran.stderr
    space: dict = {}
    exec(NETWORK, space)
    exec(DATASET, space)
    items = [space["StandardData"](str(project / "data/ref"), train=False)[index] for index in range(10)]
    images, labels = torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items])
    run = tmp_path / "lightning_logs/version_0"
    weights = torch.load(next(run.glob("checkpoints/best-*.ckpt")), weights_only=True)["state_dict"]
    network = space["StandardNet"]()
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
    with torch.no_grad():
        output = network(images)
    told = dict(line.split()[:2] for line in ran.stdout.splitlines() if line.startswith("test_"))
    assert float(told["test_loss"]) == pytest.approx(float(binary_cross_entropy(output, labels)), abs=1e-4)
    right = (output.argmax(1) == labels.argmax(1)).float().mean()  # as it is measured there
    assert float(told["test_acc"]) == pytest.approx(float(right), abs=1e-4)


class Shares(data.Dataset):
    """Points with the answers to three questions, as numbers, and the name of each."""

    def __init__(self, train=True):
        self.points = torch.randn(60, 2, generator=torch.Generator().manual_seed(int(train)))
        self.answers = torch.stack([self.points[:, 0] > 0, self.points[:, 1] > 0, self.points.sum(1) > 0], 1).float()

    def __len__(self):
        return len(self.points)

    def __getitem__(self, idx):
        return self.points[idx], self.answers[idx], f"point{idx}"


class Squashed(nn.Module):
    """A layer, and behind it a sigmoid if that is asked for."""

    def __init__(self, sigmoid=True):
        super().__init__()
        self.layer, self.sigmoid = nn.Linear(2, 3), sigmoid

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sigmoid() if self.sigmoid else self.layer(x)


@pytest.mark.parametrize(
    ("flags", "loss"),
    [
        (["--loss", "binary_cross_entropy", "--sigmoid"], binary_cross_entropy),
        (["--loss", "binary_cross_entropy_with_logits", "--no-sigmoid"], binary_cross_entropy_with_logits),
    ],
)
def test_bce_is_what_the_page_says(flags: list[str], loss) -> None:
    own = ["--model_name", f"{__name__}.Squashed", "--dataset", f"{__name__}.Shares", "--max_epochs", "3"]
    told = main.main([*TOYS, *own, *flags, "--lr", "0.1"])
    weights = torch.load(next(Path().rglob("best-*.ckpt")), weights_only=True)["state_dict"]
    network = Squashed(sigmoid="--sigmoid" in flags)
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
    test = Shares(train=False)
    with torch.no_grad():
        output = network(test.points)
    assert told["test_loss"] == pytest.approx(float(loss(output, test.answers)))
    yes = output > (0.5 if network.sigmoid else 0)
    assert told["test_acc"] == pytest.approx(float((yes == test.answers).float().mean()))


def test_bce_without_a_sigmoid_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    own = [
        "--model_name",
        f"{__name__}.Squashed",
        "--dataset",
        f"{__name__}.Shares",
        "--no-sigmoid",
        "--max_epochs",
        "3",
    ]
    with pytest.raises(SystemExit, match="2"):
        main.main([*TOYS, *own, "--loss", "binary_cross_entropy"])
    assert "binary_cross_entropy_with_logits" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main.main([*TOYS, *own, "--loss", "bce"])
    assert "binary_cross_entropy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("binary_cross_entropy_with_logits", "the network ends in a sigmoid, which does not go with --loss binary_c"),
        ("binary_cross_entropy", ""),
        ("mse_loss", ""),
    ],
)
def test_a_sigmoid_too_many_is_said(capsys: pytest.CaptureFixture[str], loss: str, said: str) -> None:
    own = ["--model_name", f"{__name__}.Squashed", "--dataset", f"{__name__}.Shares", "--sigmoid", "--max_epochs", "1"]
    main.main([*TOYS, *own, "--loss", loss])
    told = capsys.readouterr().out
    assert said in told if said else "the network ends" not in told


class Softmaxed(nn.Module):
    """A softmax, seen through a view."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).softmax(1)[:, None].squeeze(1)


@pytest.mark.parametrize(("loss", "do"), [("cross_entropy", "leave it out"), ("nll_loss", "those of a log_softmax")])
def test_a_softmax_too_many_is_said(train, capsys: pytest.CaptureFixture[str], loss: str, do: str) -> None:
    train("--model_name", f"{__name__}.Softmaxed", "--loss", loss, "--max_epochs", 1)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("the network ends in a softmax")]
    assert len(told) == 1
    assert do in told[0]
