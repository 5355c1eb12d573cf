"""Networks of other packages: each trains, is stopped and goes on exactly, is tested, predicted and exported."""

import os
import signal
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset

HERE = "test_packages."
FLAGS = ["--accelerator", "cpu", "--num_workers", "0", "--batch_size", "4", "--max_epochs", "2", "--no-pictures"]
FLAGS += ["--val_fraction", "0.2", "--test_fraction", "0.2"]


class Pictures(Dataset):
    """20 images; `masks` has a class for each pixel."""

    num_classes, masks = 3, False

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return image, (image[0] > 0).long() + (image[1] > 1).long() if self.masks else index % 3


class Masks(Pictures):
    masks = True


class Sentences(Dataset):
    """20 items of the names that transformers' networks have for their arguments."""

    num_classes = 2

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = torch.randint(1, 20, (6,), generator=torch.Generator().manual_seed(index))
        tokens[6 - index % 3 :] = 0
        return {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "labels": index % 2}


class TinyBert(nn.Module):
    """BERT from a config; gives an output object with `logits` and, of labels, `loss`."""

    def __init__(self, num_classes: int, hidden_size: int = 8) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"vocab_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = BertConfig(hidden_size=hidden_size, num_labels=num_classes, max_position_embeddings=8, **sizes)
        self.bert = BertForSequenceClassification(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        return self.bert(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


class Stop(Callback):
    """Sends SIGTERM in the fifth step."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == 4:
            os.kill(os.getpid(), signal.SIGTERM)


# package, model and its flags, dataset, and the shape of an item's prediction.
SMP = "segmentation_models_pytorch.Unet --encoder_name tu-test_resnet --encoder_weights none --encoder_depth 3"
PACKAGES: dict[str, tuple[str, list[str], str, tuple[int, ...]]] = {
    "timm": ("timm", ["timm.models.test_resnet", "--num_classes", "3"], "Pictures", (3,)),
    "smp": (
        "segmentation_models_pytorch",
        [*SMP.split(), "--decoder_channels", "8", "8", "8", "--classes", "3"],
        "Masks",
        (3, 32, 32),
    ),
    "transformers": ("transformers", [f"{HERE}TinyBert"], "Sentences", (2,)),
}


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_network_of_a_package(kind: str) -> None:
    package, model, dataset, shape = PACKAGES[kind]
    pytest.importorskip(package)
    flags = ["--model_name", *model, "--dataset", HERE + dataset, *FLAGS]
    whole = main.main(flags)
    with pytest.raises(SystemExit):
        main.main(flags, callbacks=[Stop()])
    assert main.main([*flags, "--ckpt_path", "last"]) == whole
    runs = [Path(f"lightning_logs/version_{number}") for number in (0, 1)]
    once, twice = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in runs)
    assert all(torch.equal(one, twice["state_dict"][name]) for name, one in once["state_dict"].items())
    assert main.main(["test", "--ckpt_path", "version_0"])["test_loss"] == whole["test_loss"]
    main.main(["predict", "--ckpt_path", "version_1", "--format", "npy"])
    shares = np.load(runs[1] / "predictions.npy")
    assert shares.shape == (4, *shape)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    main.main(["export", "--ckpt_path", "version_1"])
    assert (runs[1] / "network.pt2").exists()
