"""Stochastic gradient descent as both recipes use it, and which weights decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD

from retinastream.training.config import OptimiserConfig


def make_optimiser(network: nn.Module, config: OptimiserConfig) -> SGD:
    """Build the optimiser; its rate is set step by step.

    Without ``decay_norms`` the decay acts on convolution weights only: biases and normalisation are one-dimensional.
    """
    decaying: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for value in network.parameters():
        (decaying if config.decay_norms or value.ndim > 1 else free).append(value)
    groups: list[dict[str, Any]] = [{"params": decaying, "weight_decay": config.weight_decay}]
    if free:
        groups.append({"params": free, "weight_decay": 0.0})
    return SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov)


def set_rate(optimiser: SGD, rate: float) -> None:
    """Give every group the rate of this step."""
    for group in optimiser.param_groups:
        group["lr"] = rate
