"""Muon for the matrices of hidden layers, AdamW for all other parameters: `--optimizer Muon`."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from torch.optim import Optimizer

from engine.errors import UsageError
from engine.training.name_patterns import matching_parameters


class Muon(Optimizer):
    """One optimizer of two: torch.optim.Muon for matrices (A, B) but embeddings, torch.optim.AdamW for the rest.

    Sources: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the scaling of the rate:
    J. Liu et al., "Muon is scalable for LLM training", 2025.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        module: nn.Module,
        lr: float,
        *,
        weight_decay: float | None = None,
        fused: bool = False,
        momentum: Annotated[float, ">= 0", "< 1"] = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, ">= 1"] = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original", "spectral_unclamped"] = "match_rms_adamw",
        adamw_lr: Annotated[float, ">= 0"] | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_layers: tuple[str, ...] = (),
    ) -> None:
        """Parts the groups of parameters in two, and prints which they are.

        params: groups of parameters of the module, each with its `lr`.
        module: tells which parameters are embeddings.
        lr: what the rates of the groups are multiples of.
        weight_decay: of both; None for the default of each.
        fused: use AdamW's fused kernel.
        momentum: of Muon.
        nesterov: Nesterov momentum in Muon.
        ns_steps: iterations of Newton and Schulz that make an update of Muon orthogonal.
        adjust_lr_fn: how the rate of a matrix follows from its shape; with match_rms_adamw one lr suits Muon and AdamW,
            original wants a greater one for Muon.
        adamw_lr: learning rate of AdamW; none takes lr.
        adamw_betas: betas of AdamW.
        adamw_layers: submodules (head) or patterns of parameter names whose matrices AdamW takes too.

        Raises: UsageError: no parameter is left for Muon, or its rate is 0.
        """
        embeddings = [one for one in module.modules() if isinstance(one, (nn.Embedding, nn.EmbeddingBag))]
        names = [name for pattern in adamw_layers for name in matching_parameters(module, pattern, "adamw_layers")]
        not_hidden = {id(one.weight) for one in embeddings} | {id(module.get_parameter(name)) for name in names}
        if adamw_lr is not None and not lr:
            raise UsageError("--adamw_lr with --lr 0 trains no matrix: --freeze does that with any optimizer")
        matrices, others = list[dict[str, Any]](), list[dict[str, Any]]()
        for group in params:
            hidden = [one for one in group["params"] if one.dim() == 2 and id(one) not in not_hidden]
            rest = [one for one in group["params"] if one.dim() != 2 or id(one) in not_hidden]
            name = ",".join(filter(None, ("adamw", group["name"])))
            matrices += [group | {"params": hidden, "use_muon": True}] if hidden else []
            rate = group["lr"] * (1.0 if adamw_lr is None else adamw_lr / lr)
            others += [group | {"params": rest, "use_muon": False, "lr": rate, "name": name}] if rest else []
        if not matrices:
            raise UsageError("--optimizer Muon: no matrix is trained but those of embeddings and --adamw_layers")
        decay: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
        options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps} | decay
        self.parts: list[Optimizer] = [torch.optim.Muon(matrices, lr, adjust_lr_fn=adjust_lr_fn, **options)]
        if others:
            self.parts.append(torch.optim.AdamW(others, lr, betas=adamw_betas, fused=fused, **decay))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        names_by_id = {id(one): name.removeprefix("network.") for name, one in module.named_parameters()}
        rank_zero_only(print)("; ".join(_describe(group, names_by_id) for group in self.param_groups), flush=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Takes a step with both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:  # a loaded checkpoint makes new groups and a new state
            use_muon = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if group["use_muon"] is use_muon]
            part.state = self.state
            part.step()
        return loss


def _describe(group: dict[str, Any], names: dict[int, str]) -> str:
    """A group's optimizer, rate and first parameters, such as `Muon lr 0.02: layers.1.weight`."""
    own = [names[id(one)] for one in group["params"]]
    more = f" and {len(own) - 4} more" if len(own) > 5 else ""
    return f"{'Muon' if group['use_muon'] else 'AdamW'} lr {group['lr']:g}: {', '.join(own[: 4 if more else 5])}{more}"
