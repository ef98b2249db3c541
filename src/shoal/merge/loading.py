"""Load a network from a folder that `shoal.save` or a run wrote."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from shoal.errors import PlanError
from shoal.merge.format1 import PLAN_FILE, read_format1
from shoal.network import Network
from shoal.network.saving import NETWORK_FILE, read_network

__all__ = ["is_run", "load"]


def load(folder: str | Path, part: str | None = None, model: nn.Module | None = None) -> Network:
    """Load a network that `shoal.save` or a run wrote.

    It needs neither the model's source nor its library, and works wherever the folder lies.

    Args:
        folder: a saved folder, or a run's.
        part: what to take of a run: "merged" (the result to use, which None takes too), "best" (the
            result as it was trained, to train on), or a step such as "steps/003".
        model: the original model, for a folder of an early version of shoal whose model has no name
            such as "torchvision:resnet18"; its weights do not matter and it is left as it is.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        PlanError: shoal did not make the folder, it is damaged, or it holds an operator that is
            not registered here.
        CheckpointError: the weights are damaged or do not fit.

    Example:
        >>> import shoal, tempfile, torch
        >>> inputs = torch.randn(8, 4)
        >>> from torch import nn
        >>> net = shoal.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval(), inputs)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = shoal.load(shoal.save(net, folder))
        >>> torch.equal(again(inputs), net(inputs))
        True
    """
    path = Path(folder).expanduser()
    if part is None and is_run(path):
        if not (path / "result.json").exists():
            raise PlanError(
                f"the run in '{path}' has no result yet: give its command again to finish it, or "
                f"take one of its steps, such as '{path / 'steps' / '000'}'"
            )
        part = "merged"
    path = path / (part or "")
    if not path.is_dir():
        raise PlanError(f"there is no folder '{path}': give one that shoal.save or a run made")
    if (path / NETWORK_FILE).exists():
        return read_network(path)
    if (path / PLAN_FILE).exists():
        return read_format1(path, model)
    raise PlanError(f"'{path}' has no {NETWORK_FILE}: it was not made by shoal.save or a run")


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, finished or not."""
    return (folder / "identity.json").exists() or (folder / "result.json").exists()
