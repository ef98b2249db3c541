"""One shape for every batch that a loader may yield: positional inputs, keyword inputs, target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.errors import ConfigError, DataError

TARGET_KEYS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class Batch:
    """What a model is called with, positionally or by keyword, and what its output should be.

    The target is a tensor `[B, ...]`, a list with one entry for each sample, or a mapping or tuple
    of these; None if there is none. What it means is the task's business.
    """

    args: tuple[Tensor, ...]  # each [B, ...]
    kwargs: dict[str, Tensor]
    target: Any

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All inputs, those by keyword last."""
        return (*self.args, *self.kwargs.values())

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.inputs[0])

    def first(self, count: int) -> Batch:
        """Return the first `count` samples."""
        return self.rows(slice(count))

    def rows(self, chosen: slice) -> Batch:
        """Return some of the samples."""
        return self._changed(
            lambda value: value[chosen] if value.dim() else value, lambda entries: entries[chosen]
        )

    def mixed(self, share: Tensor) -> Batch:
        """Return the batch with a share of each sample's inputs, and the rest of the one before it.

        The first sample has the last one before it; inputs are real numbers (`check_mixable`).
        """

        def change(value: Tensor) -> Tensor:
            return before(value).lerp(value, share.to(value)) if value.dim() else value

        inputs = {name: change(value) for name, value in self.kwargs.items()}
        return Batch(tuple(map(change, self.args)), inputs, self.target)

    def check_mixable(self) -> None:
        """Raise `ConfigError` if an input has whole numbers, which cannot be mixed."""
        if not all(value.is_floating_point() for value in self.inputs):
            raise ConfigError(
                "mix takes inputs of real numbers, and some of these are whole ones: set mix to 0"
            )

    def to(self, device: torch.device | str | None) -> Batch:
        """Return the batch on `device`; None leaves it where it is."""
        if device is None:
            return self
        where = torch.device(device)
        return self.each(lambda value: sent(value, where))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed, those of the target too."""
        return self._changed(change, lambda entries: [_mapped(change, None, x) for x in entries])

    def _changed(
        self, tensor: Callable[[Tensor], Tensor], entries: Callable[[list[Any]], list[Any]]
    ) -> Batch:
        return Batch(
            tuple(map(tensor, self.args)),
            {name: tensor(value) for name, value in self.kwargs.items()},
            _mapped(tensor, entries, self.target),
        )


def before(target: Any) -> Any:
    """Return of tensors, and of lists with an entry for each sample, those of the sample before."""
    return _mapped(
        lambda value: value.roll(1, 0), lambda entries: [*entries[-1:], *entries[:-1]], target
    )


def _mapped(
    tensor: Callable[[Tensor], Tensor],
    entries: Callable[[list[Any]], list[Any]] | None,
    value: Any,
) -> Any:
    """Return a target with its tensors changed, and its lists of samples' entries."""
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, list):
        return [_mapped(tensor, None, x) for x in value] if entries is None else entries(value)
    if isinstance(value, Mapping):
        return {name: _mapped(tensor, entries, own) for name, own in value.items()}
    if isinstance(value, tuple):
        return tuple(_mapped(tensor, entries, own) for own in value)
    return value


def _lengths(target: Any) -> set[int]:
    """Return for how many samples the parts of a target are; -1 for one that does not say."""
    if isinstance(target, Tensor):
        return {len(target) if target.ndim else -1}
    if isinstance(target, list):
        return {len(target)}
    if isinstance(target, Mapping | tuple) and target:
        parts = target.values() if isinstance(target, Mapping) else target
        return set().union(*map(_lengths, parts))
    raise DataError(
        f"the target of a batch is a {type(target).__name__}: a loader must yield a tensor, a list "
        "with one entry per sample, or a dict of these"
    )


def sent(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the process does not wait for what a GPU still has to do."""
    # Towards the CPU a copy may be read before it has arrived.
    return value.to(device, non_blocking=device.type != "cpu")


def batch_count(loader: Any) -> int | None:
    """Return how many batches a loader has; None if it cannot say.

    A `DataLoader` over an `IterableDataset` has a `__len__` too, which raises.
    """
    try:
        return len(loader)
    except Exception:  # whatever says that there is no number
        return None


def training_batches(loader: Any) -> int:
    """Return how many batches an epoch of training has.

    Raises:
        DataError: the loader has no length.
    """
    count = batch_count(loader)
    if count is None:
        kind = type(loader).__name__
        data = getattr(loader, "dataset", None)
        over = "" if data is None else f" over a data set of type {type(data).__name__}"
        raise DataError(
            f"the training data ({kind}{over}) have no length: give them a __len__ that returns "
            "the number of batches, which the learning-rate schedule needs"
        )
    return count


def split_batch(batch: Any, device: torch.device | str | None = None) -> Batch:
    """Return a loader's batch as a `Batch`.

    Args:
        batch: a tensor (inputs only); a tuple or list whose last entry is the target, `(x, y)`,
            `(x1, x2, y)` or `((x1, x2), y)`, or whose only entry is the input; or a mapping that
            has the target under "labels", "label", "target", "targets" or "y" and keyword inputs
            elsewhere.
        device: where its tensors go; None leaves them.

    Raises:
        DataError: the batch has another form, no input, or not one target per sample.
    """
    args, kwargs, target = _parts(batch)
    if not args and not kwargs:
        raise DataError("a batch has no input: a loader must yield a tensor, (x, y) or a dict")
    named = {**{f"input {i}": value for i, value in enumerate(args)}, **kwargs}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise DataError(
                f"{name} of a batch is a {type(value).__name__}, not a tensor: "
                "a loader must yield a tensor, (x, y) or a dict of tensors"
            )
    first = next(iter(named.values()))
    if first.ndim == 0:
        raise DataError("an input of a batch has no batch dimension: yield tensors of [B, ...]")
    wrong = min((set() if target is None else _lengths(target)) - {len(first)}, default=None)
    if wrong is not None:
        given = "no batch dimension" if wrong < 0 else f"{wrong} targets"
        raise DataError(f"a batch has {len(first)} samples but {given}: yield one target each")
    return Batch(tuple(args), kwargs, target).to(device)


def first_batch(loader: Iterable[Any]) -> Batch | None:
    """Return the first batch that has samples; None if there is none."""
    return next((batch for batch in map(split_batch, loader) if batch.size), None)


def sample_keys(batch: Batch) -> Tensor:
    """Return an integer for each sample, `[B]`, that depends on its first input alone.

    What is drawn by it does not depend on the sample's place in the data.
    """
    rows = batch.inputs[0].detach().reshape(batch.size, -1).contiguous()
    return rows.view(torch.uint8).sum(1, dtype=torch.int64)


def _parts(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    if isinstance(batch, Mapping):
        key = next((k for k in TARGET_KEYS if k in batch), None)
        named = {str(k): v for k, v in batch.items() if k != key}
        return (), named, None if key is None else batch[key]
    if not isinstance(batch, tuple | list):
        raise DataError(
            f"a batch is a {type(batch).__name__}: a loader must yield a tensor, (x, y) or a dict"
        )
    inputs, target = (tuple(batch[:-1]), batch[-1]) if len(batch) > 1 else (tuple(batch), None)
    if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
        return tuple(inputs[0]), {}, target
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return (), {str(k): v for k, v in inputs[0].items()}, target
    return inputs, {}, target
