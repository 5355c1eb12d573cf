"""MNIST by hand: what the project does in an epoch, in one plain script.

python benchmarks/plain.py PROJECT DATA_DIR [THREADS]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

project, data_dir = map(Path, sys.argv[1:3])
sys.path.insert(0, str(project))
from model.lenet import LeNet  # noqa: E402


def read(name: str) -> torch.Tensor:
    """The bytes of one of MNIST's files."""
    raw = np.fromfile(data_dir / "MNIST" / "raw" / name, np.uint8)
    shape = raw[4 : 4 + 4 * raw[3]].view(">i4")
    return torch.from_numpy(raw[4 + 4 * raw[3] :].reshape(shape))


def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 28, 28) and targets (N,)."""
    images = read(f"{part}-images-idx3-ubyte").unsqueeze(1).float().sub(33.3).div(78.6)
    return images, read(f"{part}-labels-idx1-ubyte").long()


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of right answers."""
    model.eval()
    right = 0
    for start in range(0, len(images), 64):
        right += (model(images[start : start + 64]).argmax(1) == targets[start : start + 64]).sum().item()
    model.train()
    return right / len(images)


torch.manual_seed(0)
if len(sys.argv) > 3:
    torch.set_num_threads(int(sys.argv[3]))
images, targets = load("train")
order = torch.randperm(len(images))
val, train = order[:6000], order[6000:]
model = LeNet(1, 10, 28)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _epoch in range(1):
    for part in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        loss = cross_entropy(model(images[part]), targets[part])
        loss.backward()
        optimizer.step()
    print("val_acc", accuracy(model, images[val], targets[val]))
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.ckpt")
print("test_acc", accuracy(model, *load("t10k")))
