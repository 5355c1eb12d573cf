"""A Wasserstein GAN: two optimisers, several steps of the critic for one of the generator, clipped weights."""

from typing import Any

import main
import numpy as np
import torch
from gallery import QUICK, RUN, exports, goes_on, predicts
from model import MInterface
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset

HERE = f"{__name__}."


class Ring(Dataset):
    def __init__(self) -> None:
        angle = torch.rand(72, generator=torch.Generator().manual_seed(0)) * 6.283
        self.points = torch.stack([angle.cos(), angle.sin()], 1)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.points[index], 0


class WGAN(MInterface):
    """Arjovsky et al., 2017. The generator takes a step in every batch whose number is a multiple of n_critic."""

    def __init__(self, n_critic: int = 3, clip: float = 0.05, **kwargs: Any) -> None:
        super().__init__(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), metrics=(), **kwargs)
        self.automatic_optimization = False
        self.critic = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        self.n_critic, self.clip = n_critic, clip

    def arguments(self, batch: Any) -> tuple[list[Any], dict[str, Any]]:
        return [torch.randn(len(batch[0]), 3, device=self.device)], {}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for_generator, for_critic = self.optimizers()
        real, noise = batch[0], self.arguments(batch)[0][0]
        loss = self.critic(self(noise).detach()).mean() - self.critic(real).mean()
        for_critic.zero_grad()
        self.manual_backward(loss)
        for_critic.step()
        with torch.no_grad():
            for weight in self.critic.parameters():
                weight.clamp_(-self.clip, self.clip)
        if (batch_idx + 1) % self.n_critic == 0:
            for_generator.zero_grad()
            self.manual_backward(-self.critic(self(noise)).mean())
            for_generator.step()
        self.metrics["train_loss"].update(loss.detach(), len(real))

    def step(self, batch: Any, stage: str) -> None:
        off = (self(*self.arguments(batch)[0]).mean(0) - batch[0].mean(0)).abs().mean()
        self.metrics[f"{stage}_loss"].update(off, len(batch[0]))

    def configure_optimizers(self) -> Any:
        return [torch.optim.RMSprop(part.parameters(), 0.01) for part in (self.network, self.critic)]


FLAGS = ["--model_name", f"{HERE}WGAN", "--dataset", f"{HERE}Ring", "--batch_size", "8"]


class Keep(Callback):
    """Keeps the first weights, the batches, and the generator's noise in each."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.batches: list[Any] = []
        self.first = {name: one.clone() for name, one in module.state_dict().items()}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        with torch.random.fork_rng(devices=[]):
            self.batches.append((batch[0], torch.randn(len(batch[0]), 3)))


def test_it_goes_on_exactly_is_tested_predicted_and_exported() -> None:
    told = goes_on(*FLAGS, batch=10)  # the second batch of the second epoch
    assert main.main(["test", "--ckpt_path", "version_0"])["test_loss"] == told["test_loss"]
    assert predicts().shape == (7, 2)
    noise = torch.randn(5, 3)
    best = next(RUN.glob("checkpoints/best*.ckpt"))
    weights = torch.load(best, weights_only=True)["state_dict"]
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    net.load_state_dict({key: weights[f"network.{key}"] for key in net.state_dict()})
    np.testing.assert_allclose(exports()(noise).detach(), net(noise).detach(), rtol=1e-5)


def test_its_steps_are_those_of_a_plain_loop() -> None:
    keep = Keep()
    told = main.main([*QUICK, *FLAGS, "--max_epochs", "2"], [keep])
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    critic = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    parts = {"network.": generator, "critic.": critic}
    for prefix, part in parts.items():
        part.load_state_dict({name: keep.first[prefix + name] for name in part.state_dict()})
    optimizers = [torch.optim.RMSprop(part.parameters(), 0.01) for part in (generator, critic)]
    losses: list[list[float]] = [[], []]
    for number, (real, noise) in enumerate(keep.batches):
        of_epoch = number % (len(keep.batches) // 2)
        loss = critic(generator(noise).detach()).mean() - critic(real).mean()
        losses[number * 2 // len(keep.batches)] += [loss.item()] * len(real)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        for weight in critic.parameters():
            weight.data.clamp_(-0.05, 0.05)
        if of_epoch % 3 == 2:
            optimizers[0].zero_grad()
            (-critic(generator(noise)).mean()).backward()
            optimizers[0].step()
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == len(keep.batches) + 2 * (len(keep.batches) // 2 // 3)
    for prefix, part in parts.items():
        for name, one in part.state_dict().items():
            torch.testing.assert_close(last["state_dict"][prefix + name], one, rtol=1e-4, atol=1e-6)
    assert abs(told["train_loss"] - np.mean(losses[1])) < 1e-5
