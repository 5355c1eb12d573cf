"""Seconds from the start of the process to 99 % of MNIST's test images right (and to 97 % of scikit-learn's digits).

python benchmarks/time_to_99.py PROJECT [ROUNDS] [--only mnist digits] [--data_dir DIR] [--ways tutorial keras ...]

DIR holds MNIST's four files in MNIST/raw. Everything counts: imports, reading, training, validation, checkpoints, test.
The others look at the test images after every epoch and stop as soon as they are there, which favours them; the
project trains a fixed number of epochs, validates on a tenth of the training images, and looks at the test images once,
in the end. Each round has a seed of its own. Keras: `pip install keras`, which then runs on torch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from turns import arguments_of

GOAL = {"mnist": 0.99, "digits": 0.97}
EPOCHS = 40  # for the others; nobody got there later
FLAGS = {
    "mnist": "--lr_scheduler one_cycle --lr 5e-3 --max_epochs 2 --optimizer AdamW --weight_decay 0.05",
    "digits": "--lr_scheduler one_cycle --lr 1e-2 --max_epochs 4",
}
NAMES = {
    "tutorial": "a plain PyTorch tutorial's script",
    "keras": "Keras 3 on torch, its example for MNIST",
    "lightning": "the tutorial's network in Lightning with its defaults",
    "project": "this project",
}


def datasets(name: str, data_dir: str, seed: int):
    """The training and the test items as tutorials have them: torchvision's MNIST, or four fifths of the digits."""
    import torch

    if name == "mnist":
        from torchvision import datasets, transforms

        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        return [datasets.MNIST(data_dir, train=train, transform=transform) for train in (True, False)]
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    targets = torch.from_numpy(digits.target).long()
    index = train_test_split(range(len(targets)), test_size=0.2, stratify=digits.target, random_state=seed)
    return [torch.utils.data.TensorDataset(images[some], targets[some]) for some in index]


def convnet(side: int):
    """Convolutions of 32 and 64 channels, pooling, dropout, and 128 hidden units, for square images."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * ((side - 4) // 2) ** 2, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
        nn.LogSoftmax(dim=1),
    )


def tutorial(name: str, data_dir: str, seed: int) -> float:
    """Adadelta, a learning rate that falls by 0.7 an epoch, batches of 64, a test after each epoch."""
    import torch
    from torch.nn.functional import nll_loss
    from torch.utils.data import DataLoader

    torch.manual_seed(seed)
    train, test = datasets(name, data_dir, seed)
    model = convnet(28 if name == "mnist" else 8)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1 if name == "mnist" else 10, gamma=0.7)
    accuracy = 0.0
    for epoch in range(EPOCHS):
        model.train()
        for step, (images, targets) in enumerate(DataLoader(train, batch_size=64, shuffle=True)):
            optimizer.zero_grad()
            loss = nll_loss(model(images), targets)
            loss.backward()
            optimizer.step()
            if step % 10 == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.4f}")
        model.eval()
        loss, right = 0.0, 0
        with torch.no_grad():
            for images, targets in DataLoader(test, batch_size=1000):
                output = model(images)
                loss += nll_loss(output, targets, reduction="sum").item()
                right += (output.argmax(dim=1) == targets).sum().item()
        accuracy = right / len(test)
        if accuracy >= GOAL[name]:
            break
        scheduler.step()
    torch.save(model.state_dict(), "network.pt")
    return accuracy


def lightning(name: str, data_dir: str, seed: int) -> float:
    """The same network, optimiser and schedule as a LightningModule, with all that a Trainer does by default."""
    import pytorch_lightning as pl
    import torch
    from torch.nn.functional import nll_loss
    from torch.utils.data import DataLoader
    from torchmetrics.functional.classification import multiclass_accuracy

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = convnet(28 if name == "mnist" else 8)

        def training_step(self, batch, index):
            images, targets = batch
            loss = nll_loss(self.network(images), targets)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, index):
            images, targets = batch
            accuracy = multiclass_accuracy(self.network(images), targets, num_classes=10, average="micro")
            self.log("acc", accuracy, prog_bar=True)

        def configure_optimizers(self):
            optimizer = torch.optim.Adadelta(self.parameters(), lr=1.0)
            return [optimizer], [
                torch.optim.lr_scheduler.StepLR(optimizer, step_size=1 if name == "mnist" else 10, gamma=0.7)
            ]

    pl.seed_everything(seed)
    train, test = datasets(name, data_dir, seed)
    there = pl.callbacks.EarlyStopping("acc", mode="max", patience=EPOCHS, stopping_threshold=GOAL[name] - 1e-6)
    trainer = pl.Trainer(max_epochs=EPOCHS, callbacks=[there], accelerator="cpu")
    trainer.fit(Module(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=1000))
    return trainer.callback_metrics["acc"].item()


def keras(name: str, data_dir: str, seed: int) -> float:
    """Convolutions of 32 and 64 channels with pooling, dropout, Adam, batches of 128, a tenth for validation."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import numpy as np
    from keras import layers

    keras.utils.set_random_seed(seed)
    parts = datasets(name, data_dir, seed)
    if name == "mnist":
        arrays = [(one.data.numpy()[..., None].astype("float32") / 255, one.targets.numpy()) for one in parts]
    else:
        arrays = [(one.tensors[0].numpy().transpose(0, 2, 3, 1), one.tensors[1].numpy()) for one in parts]
    (images, targets), test = arrays
    pools = [layers.MaxPooling2D((2, 2))] if name == "mnist" else []
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            layers.Conv2D(32, (3, 3), activation="relu"),
            *pools,
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )

    class Test(keras.callbacks.Callback):
        accuracy = 0.0

        def on_epoch_end(self, epoch, logs=None):
            answers = self.model.predict(test[0], batch_size=128, verbose=0).argmax(1)
            self.accuracy = float(np.mean(answers == test[1]))
            self.model.stop_training = self.accuracy >= GOAL[name]

    last = Test()
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    model.fit(images, targets, batch_size=128, epochs=EPOCHS, validation_split=0.1, callbacks=[last])
    model.save("network.keras")
    return last.accuracy


def run(way: str, project: Path, name: str, data_dir: str, seed: int) -> tuple[float, float, float]:
    """Seconds from the start of a process to its end, those of its CPU time, and the share of right test items."""
    if way == "project":
        flags = ["--model_name", "lenet", "--dataset", name, *FLAGS[name].split(), "--seed", str(seed)]
        command = [str(project / "main.py"), *flags, *(["--data_dir", data_dir] if name == "mnist" else [])]
    else:
        command = [str(Path(__file__).resolve()), str(project), "--once", way, name, data_dir, str(seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as empty:
        began, used = time.perf_counter(), os.times()
        done = subprocess.run(
            [sys.executable, *command], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        took = time.perf_counter() - began
        cpu = os.times().children_user - used.children_user + os.times().children_system - used.children_system
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr)
        if way == "project":
            metrics = json.loads(next(Path(empty).glob("lightning_logs/*/metrics.json")).read_text())
            return took, cpu, metrics["test_acc"]
    return took, cpu, float(done.stdout.rpartition("NUMBERS")[2])


def main() -> None:
    """The command line."""
    arguments, rest = arguments_of(__doc__)
    if arguments.once:
        way, name, data_dir, seed = arguments.once
        print("NUMBERS", globals()[way](name, data_dir, int(seed)))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", default="datasets")
    parser.add_argument("--ways", nargs="+", default=["tutorial", "keras", "lightning"])
    more = parser.parse_args(rest)
    for name in arguments.only or GOAL:
        found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ("project", *more.ways)}
        for seed in range(1, arguments.rounds + 1):
            for way, results in found.items():
                results.append(run(way, arguments.project.resolve(), name, str(Path(more.data_dir).resolve()), seed))
                seconds, cpu, accuracy = results[-1]
                print(f"{name}, seed {seed}: {way} {seconds:.1f} s, CPU {cpu:.1f} s, {accuracy:.4f}", file=sys.stderr)
        print(
            f"\n| {name} to {GOAL[name]:.0%} | seconds | range | CPU seconds | this project over it | test accuracy |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        for way, results in found.items():
            seconds, cpu, accuracy = (statistics.median(one) for one in zip(*results, strict=True))
            ratio = statistics.median(ours[0] / other[0] for ours, other in zip(found["project"], results, strict=True))
            shortest, longest = min(results)[0], max(results)[0]
            print(
                f"| {NAMES[way]} | {seconds:.1f} | {shortest:.1f} to {longest:.1f} | {cpu:.1f} | {ratio:.2f} "
                f"| {accuracy:.4f} |"
            )


if __name__ == "__main__":
    main()
