"""The systems that draw: a variational autoencoder and an adversarial pair."""

import math

import main
import matplotlib.image
import pytest
import torch
from gallery import QUICK, RUN, exports, goes_on, predicts
from torch import Tensor
from torch.utils.data import Dataset

HERE = "test_gallery_generative"
VAE = ["--model_name", "vae", "--width", "8", "--latent_dim", "4"]
GAN = ["--model_name", "gan", "--width", "8", "--latent_dim", "8"]


class Grain(Dataset):
    """Images without a form: each pixel is about 0.7, with a deviation of 0.4."""

    in_channels, img_size = 1, 8

    def __init__(self, num_items: int = 640) -> None:
        self.images = 0.7 + 0.4 * torch.randn(num_items, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], 0


class Ink(Dataset):
    """The digits with pixels in 0..1."""

    in_channels, img_size = 1, 8

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        self.images = torch.from_numpy(load_digits().images).float()[:, None] / 16

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], torch.zeros(len(indices))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], 0


class Few(Grain):
    """A few of them."""

    def __init__(self, num_items: int = 60) -> None:
        super().__init__(num_items)


WAYS = {
    "plain": [],
    "averaged weights": ["--ema_decay", "0.9"],
    "half precision": ["--precision", "bf16-mixed"],
    "validation within the epoch": ["--val_check_interval", "0.5"],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("system", [VAE, GAN], ids=["vae", "gan"])
def test_it_goes_on(system: list[str], way: str) -> None:
    pytest.importorskip(f"model.{system[1]}")
    goes_on(*system, "--dataset", f"{HERE}.Few", "--batch_size", "8", *WAYS[way], batch=8)
    images = predicts()
    assert images.shape == ((6, 4) if system is VAE else (6, 1, 8, 8))
    network = exports()
    inputs = torch.zeros(3, 1, 8, 8) if system is VAE else torch.zeros(3, 8)
    assert network(inputs).shape == (3, 1, 8, 8)


def bernoulli(images: Tensor, p: Tensor) -> float:
    p = p.clamp(1e-3, 1 - 1e-3)
    return -(images * p.log() + (1 - images) * (1 - p).log()).flatten(1).sum(1).mean().item()


def test_a_vae_knows_more_of_digits_than_each_pixel_by_itself() -> None:
    pytest.importorskip("model.vae")
    images = Ink().images
    p = images.mean(0).clamp(1e-3, 1 - 1e-3)
    alone = -(images * p.log() + (1 - images) * (1 - p).log()).flatten(1).sum(1).mean().item()  # 27.1 nats an image
    argv = ["--model_name", "vae", "--dataset", f"{HERE}.Ink", "--likelihood", "bernoulli", "--width", "16"]
    metrics = main.main([*QUICK, *argv, "--max_epochs", "30", "--lr", "5e-3"])
    assert metrics["test_loss"] < alone - 1
    assert metrics["test_loss"] == pytest.approx(metrics["test_recon"] + metrics["test_kl"], rel=1e-5)
    assert metrics["test_kl"] > 2  # the code says something


def test_a_gaussian_vae_learns_how_far_it_is_off() -> None:
    pytest.importorskip("model.vae")
    variance = Ink().images.var(0).mean().item()
    alone = 32 * (math.log(2 * math.pi * variance) + 1)  # nats of 64 pixels about their means, of one variance: 7.2
    argv = ["--model_name", "vae", "--dataset", f"{HERE}.Ink", "--width", "16", "--max_epochs", "20", "--lr", "5e-3"]
    assert main.main([*QUICK, *argv])["test_loss"] < alone - 20


def test_a_bernoulli_vae_wants_pixels_from_0_to_1(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("model.vae")
    argv = [*QUICK, *VAE, "--dataset", f"{HERE}.Few", "--likelihood", "bernoulli", "--max_epochs", "1"]
    with pytest.raises(SystemExit, match="2"):
        main.main(argv)
    said = capsys.readouterr().err
    assert "--likelihood bernoulli needs pixels in 0..1, and these are in -" in said
    assert "take --likelihood gaussian" in said


def test_a_gan_draws_the_mean_and_the_spread_of_its_data() -> None:
    pytest.importorskip("model.gan")
    argv = ["--model_name", "gan", "--dataset", f"{HERE}.Grain", "--width", "8", "--lr", "1e-3"]
    before = main.main([*QUICK, *argv, "--max_epochs", "1", "--default_root_dir", "before"])["test_loss"]
    metrics = main.main([*QUICK, *argv, "--max_epochs", "40"])
    samples = predicts()
    assert samples.mean() == pytest.approx(0.7, abs=0.1)
    assert samples.std() == pytest.approx(0.4, abs=0.15)
    assert metrics["test_loss"] < before / 4  # the distance to the data


REFUSED = {
    "--gradient_clip_val 1": "--gradient_clip_val 1",
    "--accumulate_grad_batches 2": "--accumulate_grad_batches 2",
    "--lr_scheduler plateau": "--lr_scheduler plateau",
    "--max_steps 10": "--max_steps with --lr_scheduler cosine",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_a_gan_refuses_by_name(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("model.gan")
    with pytest.raises(SystemExit, match="2"):
        main.main([*QUICK, *GAN, "--dataset", f"{HERE}.Few", *flags.split()])
    assert f"{REFUSED[flags]} does not work with the two optimizers of a GAN" in capsys.readouterr().err


@pytest.mark.parametrize("system", [VAE, GAN], ids=["vae", "gan"])
def test_what_needs_classes_is_refused(system: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(f"model.{system[1]}")
    with pytest.raises(SystemExit, match="2"):
        main.main([*QUICK, *system, "--dataset", f"{HERE}.Few", "--class_weights", "balanced"])
    said = f"--class_weights would have no effect: {system[1].upper()} trains by methods of its own"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("system", [VAE, GAN], ids=["vae", "gan"])
def test_what_it_draws_is_in_the_run_folder(system: list[str]) -> None:
    pytest.importorskip(f"model.{system[1]}")
    main.main([*QUICK[:4], *system, "--dataset", "digits", "--max_epochs", "1", "--limit_train_batches", "3"])
    for name in ("samples", "reconstructions") if system is VAE else ("samples",):
        pixels = matplotlib.image.imread(RUN / f"{name}.png")
        assert pixels.std() > 0.1  # something is on it
