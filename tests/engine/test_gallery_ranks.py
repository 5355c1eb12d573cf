"""Every network of the gallery by two processes, which are started once for all of them."""

import json
import os
import random
from importlib.util import find_spec
from pathlib import Path

import hosts
import main
import numpy as np
import pytest
import torch
from PIL import Image

FLAGS = ["--accelerator", "cpu", "--num_workers", "0", "--num_threads", "1", "--pictures", "false", "--max_epochs", "2"]
DIGITS = ["--dataset", "digits", "--limit_train_batches", "8", "--limit_val_batches", "3", "--limit_test_batches", "3"]
TEXTS = ["--dataset", "text_lines", "--data_dir", "..", "--max_length", "6", "--hidden_dim", "8", "--optimizer", "SGD"]
PAIRS = ["--dataset", "paired_images", "--pictures", "--data_dir", "..", "--img_size", "16", "--flip", "false"]
# They learn the same from both halves of a batch as from the whole of it: nothing is drawn, no norm is over the batch.
SAME = {
    "mlp": [*DIGITS, "--optimizer", "SGD"],
    "vit_small": [*DIGITS, "--optimizer", "SGD", "--patch_size", "4", "--dim", "16", "--depth", "1"],
    "lstm": [*TEXTS, "--lr", "0.1"],
    "encoder_decoder": [*TEXTS, "--pairs", "--target_column", "back", "--teacher_forcing", "1", "--lr", "0.1"],
    "super_resolution": [*PAIRS, "--optimizer", "SGD", "--scale", "2", "--loss", "mse_loss", "--width", "8"],
}
OTHERS = {
    "resnet": DIGITS,
    "unet": [
        *PAIRS,
        "--target_folder",
        "masks",
        "--classes",
        "dark",
        "light",
        "--width",
        "4",
        "--depth",
        "1",
        "--pictures",
    ],
    "vae": [*DIGITS, "--width", "8"],
    "gan": [*DIGITS, "--width", "8"],
}


def write() -> None:
    """Texts of four letters and the same from behind; images and the masks of what is light in them."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdef", k=4)) for _ in range(100)]
    rows = [f"{one}\t{one[::-1]}\t{'early' if one < 'c' else 'late'}" for one in texts]
    Path("texts.tsv").write_text("\n".join(["text\tback\tlabel", *rows]) + "\n")
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)):
        for folder, one in (("images", pixels), ("masks", (pixels.mean(2) > 127).astype(np.uint8))):
            Path(folder).mkdir(exist_ok=True)
            Image.fromarray(one).save(Path(folder, f"{number}.png"))


@pytest.mark.slow
def test_two_processes_learn_what_one_does() -> None:
    there = {}
    for name, flags in (SAME | OTHERS).items():
        if find_spec(f"model.{name}") and find_spec(f"data.{flags[1]}"):
            there[name] = [*FLAGS, "--model_name", name, *flags]
    if not there:
        pytest.skip("no network of the gallery is there")
    write()
    Path("two").mkdir()
    status, said = hosts.ranks(2, lambda: train_all(there))
    assert status == 0, said
    ranks = [json.loads(Path("two", f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert list(ranks[0]) == list(there)
    runs = {name: Path("two", "lightning_logs", f"version_{number}") for number, name in enumerate(there)}
    if "unet" in there:
        assert (runs["unet"] / "masks.png").exists()
    if "gan" in there:  # a step of each network a batch
        assert torch.load(runs["gan"] / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 32
    Path("one").mkdir()
    os.chdir("one")
    for name in SAME.keys() & there.keys():
        assert ranks[0][name] == pytest.approx(main.main([*there[name], "--batch_size", "8"]), rel=1e-3), name


def train_all(commands: dict[str, list[str]]) -> None:
    """What one of the two processes does."""
    os.chdir("two")
    found = {}
    for name, argv in commands.items():
        found[name] = main.main([*argv, "--batch_size", "4", "--devices", "2", "--strategy", "ddp"])
    Path(f"{os.environ['RANK']}.json").write_text(json.dumps(found))
