"""Rewinding: train on from earlier weights after a removal (Jordao et al. 2023, Algorithm 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shoal.distributed import barrier, is_main
from shoal.errors import ConfigError, RunError
from shoal.files import write_file
from shoal.models import load_checkpoint
from shoal.network import Network
from shoal.network.saving import tensors_hash
from shoal.sealed import KEY
from shoal.search.options import SearchOptions
from shoal.search.run import Run
from shoal.training import EpochReport


class Rewind:
    """The weights that a search goes back to after each removal, if it does.

    They are those of a file, those the search was given (epoch 0), or those of an epoch of the
    dense network's training, which the run's folder keeps, or memory where there is none.

    Raises:
        ConfigError: an epoch is asked for and a user's own function trains, which reports none.
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
                f"rewind={search.rewind} needs the built-in trainer, as fit= reports no epochs: "
                "use rewind=0 or rewind_from="
            )
        if search.rewind_from is not None or self.epoch == 0:
            rewound = base.copy()
            if search.rewind_from is not None:
                load_checkpoint(rewound, Path(search.rewind_from))
            self._state = dict(rewound.state_dict())

    @property
    def missing(self) -> bool:
        """Whether the epoch's weights are wanted and not there yet."""
        known = self._state is not None or (self._file is not None and self._file.exists())
        return self.wanted and not known

    def remember(self, network: Network, report: EpochReport) -> None:
        """Keep the weights if this is the epoch."""
        if not self.epoch or report.epoch != self.epoch:
            return
        state = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in network.state_dict().items()
        }
        if self._file is None:
            self._state = state
            return
        if is_main():
            seal = {KEY: tensors_hash(state)}
            write_file(self._file, lambda path: save_file(state, path, metadata=seal))
        barrier()

    def apply_(self, network: Network) -> None:
        """Give a network the earlier weights of what it still has; the rest stays.

        A weight that was pruned stays at zero.
        """
        if not self.wanted:
            return
        if self._state is None:
            if self._file is None or not self._file.exists():
                raise RunError(
                    f"the weights of epoch {self.epoch} are missing in the run's folder: start "
                    "again in another one"
                )
            self._state = _read(self._file)
        names = {f"{name}.weight" for name in network.plan.names("prune")}
        state = network.state_dict(keep_vars=True)
        pruned = {id(tensor) for name, tensor in state.items() if name in names}  # tied ones, too
        with torch.no_grad():
            for name, tensor in state.items():
                earlier = self._state.get(name)
                if earlier is not None and earlier.shape == tensor.shape:
                    gone = tensor == 0 if id(tensor) in pruned else None
                    tensor.copy_(earlier)
                    if gone is not None:
                        tensor.masked_fill_(gone, 0.0)


def _read(path: Path) -> dict[str, Tensor]:
    """Return the kept weights."""
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            damaged = (file.metadata() or {}).get(KEY) != tensors_hash(state)
    except (SafetensorError, OSError):
        damaged = True
    if damaged:
        raise RunError(
            f"'{path}' is damaged: restore it, or start again in another folder, since every step "
            "goes back to these weights"
        )
    return state
