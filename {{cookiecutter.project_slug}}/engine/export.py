"""`export`: a checkpoint's network as network.pt2 (torch.export), which runs without this project."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from engine.checkpoints import load
from engine.discovery import UsageError


def run(trainer: Trainer, model: Any, data: Any, ckpt_path: str, folder: Path) -> None:
    """Writes the network for batches of any size and checks it against the one in memory.

    Raises:
        RuntimeError: the exported network answers differently.
    """
    model.load_state_dict(load(Path(ckpt_path))["state_dict"])
    if getattr(model, "network", None) is None:
        raise UsageError(f"{type(model).__name__} is a system without one `network`; export its parts by hand")
    model.channels_last = False
    model.network.to(memory_format=torch.contiguous_format)
    data.num_workers = 0  # one batch is worth no workers
    inputs, _ = model.split(next(iter(data.test_dataloader())))  # type: ignore[operator]
    named: dict[Any, Any] = inputs if isinstance(inputs, dict) else dict(enumerate(inputs))
    named = {name: torch.cat([one, one])[:2] for name, one in named.items()}  # a batch of 1 would be taken for fixed
    args, kwargs = ((), named) if isinstance(inputs, dict) else (tuple(named.values()), {})
    shape = {0: torch.export.Dim("batch")}
    shapes = dict.fromkeys(named, shape) if kwargs else tuple(shape for _ in args)
    model.eval()
    program = torch.export.export(model.network, args, kwargs, dynamic_shapes=shapes)  # type: ignore[arg-type]
    path = folder / "network.pt2"
    torch.export.save(program, path)
    exported = torch.export.load(path).module()
    with torch.no_grad():
        for number in (2, 1):
            some, more = tuple(one[:number] for one in args), {name: one[:number] for name, one in kwargs.items()}
            if not torch.allclose(exported(*some, **more), model(*some, **more), atol=1e-5):
                raise RuntimeError(f"{path} answers differently from the network in memory")
    print(path)
