"""`export`: a checkpoint's network as network.pt2 (torch.export), which runs without this project."""

from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from engine.checkpoints import load


def run(trainer: Trainer, model: LightningModule, data: LightningDataModule, ckpt_path: str, folder: Path) -> None:
    """Writes the network for batches of any size and checks it against the one in memory.

    Raises:
        RuntimeError: the exported network answers differently.
    """
    model.load_state_dict(load(Path(ckpt_path))["state_dict"])
    inputs, _ = model.split(next(iter(data.test_dataloader())))  # type: ignore[operator]
    inputs = tuple(inputs.values() if isinstance(inputs, dict) else inputs)
    inputs = tuple(torch.cat([one, one])[: max(2, len(one))] for one in inputs)  # a batch of 1 would be taken for fixed
    model.eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model.network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))  # type: ignore[arg-type]
    path = folder / "network.pt2"
    torch.export.save(program, path)
    with torch.no_grad():
        for some in (inputs, tuple(one[:1] for one in inputs)):
            if not torch.allclose(torch.export.load(path).module()(*some), model(*some), atol=1e-5):
                raise RuntimeError(f"{path} answers differently from the network in memory")
    print(path)
