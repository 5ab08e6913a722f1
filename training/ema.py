"""An exponential moving average of a network's weights: what is evaluated and exported."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retinastream.errors import UsageError


class MovingAverage:
    """The average of every floating tensor of a network's state; counters are copied.

    After update n (from 1) the average moves by 1 - min(``decay``, (1 + n) / (10 + n)) towards the weights, so that a
    young average forgets the random start. ``decay`` 0 follows the weights exactly. The tensors are float32 on the
    device of the network. Raises UsageError unless 0 <= decay < 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"the decay of the moving average is {decay}; expected at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the weights that ``network`` has now."""
        self.updates += 1
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged, current = [], []
        for name, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                averaged.append(self.state[name])
                current.append(value.detach())
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averaged, current, 1.0 - kept)

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Take over a saved average; names and shapes are those of the network."""
        for name, value in self.state.items():
            value.copy_(state[name])
        self.updates = updates
