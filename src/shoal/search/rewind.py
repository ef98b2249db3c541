"""Rewinding: train on from earlier weights after a removal (Jordao et al. 2023, Algorithm 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.distributed import barrier, is_main
from shoal.errors import ConfigError, RunError
from shoal.files import write_file
from shoal.models import load_checkpoint
from shoal.network import Network
from shoal.search.options import SearchOptions
from shoal.search.run import Run
from shoal.training import EpochReport

__all__ = ["Rewind"]


class Rewind:
    """The weights that a search goes back to after each removal, if it does.

    They are those of a file, those the search was given (epoch 0), or those of an epoch of the
    dense network's training in this run, which are kept in the run's folder.

    Args:
        search: its `rewind` and `rewind_from` say what is wanted.
        base: the captured original.
        run: the folder to keep an epoch's weights in; None keeps them in memory.
        own_training: whether a user's own function trains, which tells nothing of its epochs.

    Raises:
        ConfigError: epochs are asked for that nobody can tell.
        CheckpointError: the file cannot be read or does not fit.
    """

    def __init__(
        self, search: SearchOptions, base: Network, run: Run | None, *, own_training: bool
    ) -> None:
        self.epoch = search.rewind
        self.wanted = search.rewind is not None or search.rewind_from is not None
        self._file = None if run is None else run.folder / "rewind.safetensors"
        self._state: dict[str, Tensor] | None = None
        if search.rewind and own_training:
            raise ConfigError(
                f"rewind={search.rewind} needs the built-in trainer, for fit= does not tell its "
                "epochs: use rewind=0 or rewind_from="
            )
        if search.rewind_from is not None:
            rewound = base.copy()
            load_checkpoint(rewound, Path(search.rewind_from))
            self._state = dict(rewound.state_dict())
        elif self.epoch == 0:
            self._state = dict(base.copy().state_dict())

    @property
    def missing(self) -> bool:
        """Whether the epoch's weights are wanted and not there yet."""
        known = self._state is not None or (self._file is not None and self._file.exists())
        return self.wanted and not known

    def remember(self, network: Network, report: EpochReport) -> None:
        """Keep the weights if this is the epoch."""
        if not self.wanted or not self.epoch or report.epoch != self.epoch:
            return
        state = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
        if self._file is None:
            self._state = state
            return
        if is_main():
            tensors = {name: tensor.contiguous() for name, tensor in state.items()}
            write_file(self._file, lambda path: save_file(tensors, path))
        barrier()

    def apply_(self, network: Network) -> None:
        """Give a network the earlier weights of what it still has; the rest stays.

        Raises:
            RunError: the run's folder lost them.
        """
        if not self.wanted:
            return
        state = self._loaded()
        own = network.state_dict()
        with torch.no_grad():
            for name, tensor in own.items():
                earlier = state.get(name)
                if earlier is not None and earlier.shape == tensor.shape:
                    tensor.copy_(earlier)

    def _loaded(self) -> dict[str, Tensor]:
        if self._state is None:
            if self._file is None or not self._file.exists():
                raise RunError(
                    f"the weights of epoch {self.epoch} are missing in the run's folder: begin in "
                    "another one"
                )
            self._state = load_file(self._file)
        return self._state
