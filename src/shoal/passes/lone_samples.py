"""Whether a batch of one sample can be trained on: a batch norm needs several values a channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shoal.data.batch import Batch
from shoal.modes import eval_mode


def sees_one_value(network: nn.Module, batch: Batch) -> bool:
    """Return whether some batch norm that trains gets one value per channel of a batch.

    One that has no part in a pass in eval mode is taken to. The random state may change.
    """
    norms = [each for each in network.modules() if isinstance(each, _BatchNorm)]
    norms = [each for each in norms if each.training or each.running_mean is None]
    found: dict[nn.Module, bool] = {}

    def look(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())[0]
        found[norm] = found.get(norm, False) or given.numel() == given.shape[1]

    handles = [norm.register_forward_pre_hook(look, with_kwargs=True) for norm in norms]
    try:
        if norms:
            with eval_mode(network), torch.no_grad():
                network(*batch.args, **batch.kwargs)
    except ValueError:  # a norm without running statistics, or a model that takes no lone sample
        return True
    finally:
        for handle in handles:
            handle.remove()
    return any(found.get(norm, True) for norm in norms)
