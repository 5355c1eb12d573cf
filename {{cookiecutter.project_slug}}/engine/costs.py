"""Plain arithmetic: the memory, communication and time that `plan` prints, from what is counted of one device."""

import math

from engine.accounts import DTYPES, Account

_FREE = 0.1  # of the memory, left to the allocator, the kernels' workspaces and the driver


def memory(account: Account, precision: str, strategy: str, many: int, size: int) -> dict[str, float]:
    """Bytes that one of `many` devices holds at the end of a forward pass over `size` items, by what they are for.

    "ddp" holds everything on each device, and on several its buckets hold the gradients once more (PyTorch's DDP
    without gradient_as_bucket_view). "fsdp" shares weights, gradients and the optimiser's state out, and gathers one
    layer at a time, the largest at the most: stage 3 of S. Rajbhandari et al., "ZeRO", 2020; Y. Zhao et al., "PyTorch
    FSDP", 2023. Mixed precision keeps weights, gradients and state in 32 bits; autograd keeps its casts.
    """
    share = many if strategy == "fsdp" else 1
    parts = {
        "weights": account.weights / share + account.buffers,
        "gradients": account.gradients / share,
        "optimizer_state": account.optimizer / share,
    }
    if strategy == "fsdp" and many > 1:
        parts["gathered_layer"] = gathered(account.largest, precision)
    elif many > 1:
        parts["buckets"] = account.gradients
    if account.activations:
        fixed, each = account.activations
        parts["activations"] = fixed + each * size
    return parts


def gathered(parameters: int, precision: str) -> float:
    """Bytes of weights as they are computed with."""
    return parameters * DTYPES[precision.partition("-")[0]].itemsize


def largest(account: Account, precision: str, strategy: str, many: int, room: float) -> int:
    """The largest batch that a device with `room` bytes holds, 0 where not even one item fits or it is not known."""
    if not account.activations or not account.activations[1] > 0:
        return 0
    rest = (1 - _FREE) * room - sum(memory(account, precision, strategy, many, 0).values())
    return max(0, math.floor(rest / account.activations[1]))


def communication(account: Account, precision: str, strategy: str, many: int) -> float:
    """Bytes that each of N devices sends in an optimiser step.

    ddp: 2 (N - 1) / N of the gradients, a ring all-reduce (P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", 2009). fsdp: (N - 1) / N of the weights for the forward and again for
    the backward pass, and of the gradients that are reduced and scattered: 3 (N - 1) / N (ZeRO, section 7), in the
    precision computed with, as Lightning's FSDP sends them.
    """
    if strategy == "fsdp":
        return gathered(2 * account.parameters + account.trainable, precision) * (many - 1) / many
    return 2 * account.gradients * (many - 1) / many


def step_seconds(
    batch_seconds: float, batches: int, sent: float, strategy: str, link_gbps: float
) -> tuple[float, float]:
    """Seconds of an optimiser step of so many batches, where communication overlaps as it may, and where not at all.

    It overlaps with the last backward pass in ddp (S. Li et al., "PyTorch Distributed", 2020), which is two thirds of
    a batch (twice the products of a forward pass), and with both passes in fsdp.
    """
    network = sent * 8 / (link_gbps * 1e9)
    hides = batch_seconds * (1 if strategy == "fsdp" else 2 / 3)
    return batches * batch_seconds + max(0.0, network - hides), batches * batch_seconds + network


def short(number: float | None) -> str:
    """1.23e9 as "1.23 GB"; "?" for None."""
    if number is None:
        return "?"
    power = 0
    while number >= 999.5 and power < 4:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
