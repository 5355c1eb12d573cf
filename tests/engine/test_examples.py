"""The examples of this project: LeNet, the digits, MNIST. Goes with them."""

import gzip
import hashlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import main
import numpy as np
import pytest
import torch
import torchvision
from data.digits import Digits
from data.mnist import MNIST

FLAGS = """
accelerator accumulate_grad_batches activation_checkpointing all_folds amsgrad bad_steps balanced batch_size benchmark
betas channels_last check_val_every_n_epoch ckpt_path class_dim class_weights compile compile_mode cutmix data_dir
dataset decoupled_weight_decay default_root_dir detect_anomaly deterministic devices dropout ema_decay
enable_autolog_hparams enable_progress_bar eps every_n_minutes every_n_train_steps fast_dev_run fold freeze
gradient_clip_algorithm gradient_clip_val hang_minutes head_losses histograms ignore_index img_size in_channels
inference_mode init init_args init_from init_partial keep_memory l1 label_smoothing limit_predict_batches
limit_test_batches limit_train_batches limit_val_batches log_every_n_steps log_grad_norm logger loss lr lr_end lr_every
lr_gamma lr_interval lr_milestones lr_power lr_restart_factor lr_scale lr_scheduler matmul_precision max_epochs
max_steps max_time maximize metric_thresholds metrics min_epochs min_steps mirror mixup model_name model_registry
monitor monitor_device monitor_mode new_data no_decay_norm_bias notes num_classes num_folds num_nodes
num_sanity_val_steps num_threads num_workers optimizer overfit_batches patience pictures precision profiler
reload_dataloaders_every_n_epochs run_name save_top_k seed seed_index strategy stratify summary_depth swa_epoch
sync_batchnorm tags task tensor_parallel_size test_fraction throughput trust unfreeze_epoch val_check_interval
val_fraction warmup_epochs warmup_steps weight_decay x_axis
""".split()


def test_lenet_reads_the_digits() -> None:
    metrics = main.main(["--model_name", "lenet", "--dataset", "digits", "--max_epochs", "15", "--num_threads", "1"])
    assert metrics["test_acc"] >= 0.97


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits, pixels = load_digits(), (Digits().images * 6.02 + 4.88).squeeze(1)
    assert (pixels - torch.from_numpy(digits.images)).abs().max() < 1e-5
    assert Digits().targets.tolist() == digits.target.tolist()


def test_the_command_line_grows_only_on_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["--model_name", "lenet", "--dataset", "digits", "--help_all"])
    shown = {line.split()[0][2:] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    assert sorted(shown) == FLAGS


def write_mnist(folder: Path, train: int = 40, test: int = 20) -> Path:
    """Small files in MNIST's own format, with nothing but noise in them."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, number in (("train", train), ("t10k", test)):
        images = np.random.default_rng(0).integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = (np.arange(number) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / name).write_bytes(head + array.tobytes())
    return raw


def test_mnist_trains_from_the_raw_files(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    pixels = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(40, 28, 28)
    image, target = MNIST(train=True, data_dir=str(tmp_path))[7]
    assert target == 7
    assert torch.equal(image[0], (torch.from_numpy(pixels[7].copy()).float() - 33.3) / 78.6)
    argv = ["--model_name", "lenet", "--dataset", "mnist", "--data_dir", str(tmp_path), "--max_epochs", "1"]
    assert "test_acc" in main.main([*argv, "--accelerator", "cpu"])


BROKEN = {
    "is missing": lambda path: path.unlink(),
    "is empty": lambda path: path.write_bytes(b""),
    "is cut short": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "is too long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "is no IDX file": lambda path: path.write_bytes(b"<html>" * 1000),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_broken_mnist_says_what_is_wrong_and_the_ways_out(tmp_path: Path, wrong: str) -> None:
    raw = write_mnist(tmp_path)
    BROKEN[wrong](raw / "t10k-images-idx3-ubyte")
    left = {path.name: path.read_bytes() for path in raw.iterdir()}
    with pytest.raises(RuntimeError, match=f"t10k-images-idx3-ubyte {wrong}") as caught:
        MNIST.prepare_data(str(tmp_path))
    assert str(raw) in str(caught.value)
    assert "delete that folder" in str(caught.value)
    assert "--dataset digits" in str(caught.value)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == left  # what was there is still there


def test_with_a_connection_a_broken_file_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = write_mnist(tmp_path / "served")
    resources = []
    for path in sorted(served.iterdir()):
        packed = gzip.compress(path.read_bytes())
        path.with_name(f"{path.name}.gz").write_bytes(packed)
        resources.append((f"{path.name}.gz", hashlib.md5(packed).hexdigest()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(served)))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    raw = write_mnist(tmp_path / "here")
    (raw / "train-images-idx3-ubyte").write_bytes(b"cut short")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        MNIST.prepare_data(str(tmp_path / "here"))
    finally:
        server.shutdown()
        server.server_close()
    for name, _ in resources:
        name = name.removesuffix(".gz")
        assert (raw / name).read_bytes() == (served / name).read_bytes()
    assert not list(raw.glob("*.broken"))


def test_labels_that_are_no_digits(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    path = raw / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([200]))
    with pytest.raises(RuntimeError, match="labels up to 200"):
        MNIST(train=True, data_dir=str(tmp_path))
