"""Load a file of weights into a model: read it, find the weights, check everything, then copy.

Code from a file is never run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import CheckpointError
from shoal.models.weight_names import (
    WRAPPERS,
    copies_among,
    is_averaged,
    is_counter,
    left_over,
    with_masks,
    without_wrappers,
)
from shoal.models.weights_file import read_weights
from shoal.user_paths import user_path

# Where training programs keep the weights, plain before averaged ones.
_NESTS: tuple[str, ...] = ("state_dict", "model", "model_state_dict", "model_state")
_NESTS += ("net", "network", "module", "params", "weights")
_PLAIN = WRAPPERS | {*_NESTS, "student", "online", "online_encoder", "encoder_q"}


@dataclass(frozen=True)
class CheckpointReport:
    """What was loaded; what is missing or misshapen in the file keeps the model's values."""

    path: str
    loaded: int  # number of tensors copied
    prefix: str  # what was removed from the front of the file's names ("module.")
    missing: tuple[str, ...]  # names of the model that the file does not have
    unexpected: tuple[str, ...]  # names of the file that the model does not have
    misshapen: tuple[str, ...]  # names with another shape in the file
    place: str = ""  # where in the file they lie: its dictionaries and the prefix ("model.module.")
    ignored: tuple[str, ...] = ()  # names of counters and other copies, which no model needs
    notes: tuple[str, ...] = ()  # what the user should know, one line each


# One reading of a file: the tensors under the model's names, and how well they fit.
_Reading = tuple[dict[str, Tensor], CheckpointReport]


def load_checkpoint(
    model: nn.Module, path: str | Path, *, strict: bool = True, prefix: str | None = None
) -> CheckpointReport:
    """Load a file of weights into `model`; if anything fails the model is unchanged.

    The weights may lie bare in the file or nested (under `state_dict`, `model`, …), and their names
    may carry a common prefix (`module.`, `_orig_mod.`, …); of all readings the one that fits the
    model best is taken. Plain weights are preferred to averaged ones (`ema_model.`, `teacher.`, …),
    which a note then names. Floating-point weights of another precision are converted to the
    model's, weights under a mask of `torch.nn.utils.prune` are multiplied by it, and counters
    (`num_batches_tracked`, `total_ops`, …) are ignored where the model has none.

    Args:
        model: receives the weights.
        path: `.safetensors`, or `.pt`, `.pth`, `.th`, `.bin`, `.ckpt` as `torch.save` writes them;
            of weights in several files the index (`….index.json`) or any of them; or a folder with
            the files of one network.
        strict: require that names and shapes agree exactly. Otherwise what agrees is loaded and
            the report lists the rest.
        prefix: which weights to take of several: the end of the report's `place`, such as
            "ema_model.".

    Raises:
        CheckpointError: the file cannot be read, holds no weights or pickled code, does not fit
            the model, holds several weights that do and none that is plainly meant, or holds NaN
            or infinite weights.
    """
    path = user_path(path)
    own = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    buffers = dict(model.named_buffers())
    found, report = _best_reading(read_weights(path), own, buffers, path, prefix)
    if strict and (report.missing or report.unexpected or report.misshapen):
        raise CheckpointError(_mismatch(found, report, own))
    if own and not report.loaded:
        raise CheckpointError(f"nothing in '{path}' fits the model: {_ADVICE}")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    fitting = {name: tensor for name, tensor in found.items() if name not in report.misshapen}
    converted = {name: _convert(name, t, own[name], path) for name, t in fitting.items()}
    for name, tensor in converted.items():
        fault = _fault(name, tensor, name in parameters)
        if fault:
            raise CheckpointError(f"'{path}' holds {fault} in '{name}': use an earlier checkpoint")
    # The model's own dictionary carries the versions of its modules, which some of them check.
    state = model.state_dict()
    state.update(converted)
    model.load_state_dict(state)
    return report


def check_finite(model: nn.Module) -> None:
    """Check that a model's parameters and buffers are finite.

    A buffer other than a running statistic may hold infinities (attention masks do), but no NaN.

    Raises:
        CheckpointError: names the first parameter or buffer that is not finite.
    """
    kinds = {"parameter": model.named_parameters(), "buffer": model.named_buffers()}
    for kind, tensors in kinds.items():
        for name, tensor in tensors:
            fault = _fault(name, tensor, kind == "parameter")
            if fault:
                raise CheckpointError(
                    f"the model's {kind} '{name}' holds {fault}: load a checkpoint with finite "
                    "weights"
                )


_ADVICE = "pass the checkpoint that was saved from this architecture"


def _fault(name: str, tensor: Tensor, is_parameter: bool) -> str | None:
    """Say how many values are not finite; buffers but running statistics may hold infinities."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    if tensor.element_size() == 1:  # float8 has no such tests of its own
        tensor = tensor.float()
    nans = int(tensor.isnan().sum())
    strict = is_parameter or name.rpartition(".")[2].startswith("running_")
    bad = int((~tensor.isfinite()).sum()) if strict else nans
    if not bad:
        return None
    return f"{'NaN' if nans else 'Inf'} ({bad} of {tensor.numel()} values are not finite)"


def _best_reading(
    content: Any,
    own: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    path: Path,
    wanted: str | None,
) -> _Reading:
    """Return the reading of the file that fits the model best; the first of equals.

    Of readings that fit alike and hold other values, the plainest is taken if it is the only one.
    """
    readings = [
        _read_as(variant, place, prefix, own, buffers, path)
        for place, weights in _state_dicts(content)
        for variant in _variants(weights)
        for prefix in _prefixes(variant, own, wanted)
    ]
    if not readings:
        raise CheckpointError(f"'{path}' holds no weights: give a file with a state_dict in it")
    if wanted is not None:
        readings = [r for r in readings if f".{r[1].place}".endswith(f".{wanted.strip('.')}.")]
        if not any(report.loaded for _, report in readings):
            raise CheckpointError(f"'{path}' has no weights that fit under prefix {wanted!r}")

    def rank(reading: _Reading) -> tuple[int, ...]:
        """Right shapes count first, then right names, plain weights, few unexpected ones."""
        found, report = reading
        return report.loaded, len(found), -_oddity(report.place), -len(report.unexpected)

    best, report = max(readings, key=rank)
    whole = not report.missing and not report.misshapen
    readings.reverse()  # of two readings of the same tensors the first gives the place its name
    named = {
        tuple(map(id, found.values())): other.place
        for found, other in readings
        if whole and other.loaded == report.loaded and other.place != report.place
        if _differ(found, best)
    }
    rivals = [*reversed(named.values())]
    equals = [place for place in rivals if _oddity(place) == _oddity(report.place)]
    if equals and wanted is None:
        shown = " and ".join(f"'{place}'" for place in (report.place, *equals[:2]))
        raise CheckpointError(
            f"'{path}' holds several weights that fit the model, under {shown}: say which with "
            "prefix=, or save the ones you mean in a file of their own"
        )
    return best, replace(report, notes=_notes(report, rivals))


def _oddity(place: str) -> int:
    """Return how unlikely it is that weights of this place are meant where others fit too."""
    if is_averaged(place):
        return 2
    return int(any(part and part not in _PLAIN for part in place.split(".")))


def _differ(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() != b.keys() or any(
        a[name] is not b[name] and not torch.equal(a[name], b[name]) for name in a
    )


def _notes(report: CheckpointReport, rivals: list[str]) -> tuple[str, ...]:
    """Say which weights were taken where the file holds others."""
    where = f"those under '{report.place}'" if report.place else "those without a prefix"
    if rivals:
        shown = ", ".join(f"'{place}'" for place in rivals[:3])
        return (
            f"'{report.path}' holds several weights: {where} were loaded, not {shown} (prefix= of "
            "shoal.models.load_checkpoint takes others)",
        )
    copies = [name for name in report.ignored if not is_counter(name)]
    if copies:
        return (
            f"'{report.path}' holds {len(copies)} more tensors that are copies of weights (first "
            f"'{copies[0]}'): {where} were loaded",
        )
    return ()


def _state_dicts(
    content: Any, depth: int = 3, place: str = ""
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dictionary of named tensors in the file and where, the likeliest first."""
    if not isinstance(content, Mapping):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield place, tensors
    if depth:
        names = [k for k, v in content.items() if isinstance(k, str) and isinstance(v, Mapping)]
        rank = {name: place for place, name in enumerate(_NESTS)}
        for name in sorted(names, key=lambda n: rank.get(n, len(rank))):
            yield from _state_dicts(content[name], depth - 1, f"{place}{name}.")


def _variants(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the weights as they are, without the wrappers' parts in their names, and masked."""
    yield weights
    plain = without_wrappers(weights)
    if plain is not None:
        yield plain
    for given in (weights, plain):
        masked = None if given is None else with_masks(given)
        if masked is not None:
            yield masked


def _prefixes(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], wanted: str | None = None
) -> list[str]:
    """Return what may be cut from the front of names: nothing, then the commonest fitting ones.

    A prefix of few of the file's names is none, unless it is the one that is wanted: it would make
    a part of another network pass for the model.
    """
    counts: Counter[str] = Counter()
    for name in weights:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in own:
                counts[".".join(parts[:cut]) + "."] += 1
    size = sum(not is_counter(name) or name in own for name in weights)
    common = (prefix for prefix, count in counts.most_common(8) if 3 * count >= size)
    asked = [
        prefix
        for prefix in counts
        if wanted is not None and f".{prefix}".endswith(f".{wanted.strip('.')}.")
    ]
    return [*dict.fromkeys(["", *common, *asked])]


def _read_as(
    weights: Mapping[str, Tensor],
    place: str,
    prefix: str,
    own: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    path: Path,
) -> _Reading:
    """Compare the file's names under `prefix` with the model's.

    Names outside the prefix belong to whatever wrapped the model (a counter of averaged models, a
    loss with weights): they do not count as unexpected.
    """
    under = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    found = {name: under[name] for name in own if name in under}
    outside = (name for name in weights if not name.startswith(prefix))
    ignored = (*left_over(under, own, buffers), *copies_among(outside, own))
    shared = {_memory(own[name]) for name in found}
    misshapen = [n for n, t in found.items() if not _fits(t, own[n])]
    return found, CheckpointReport(
        path=str(path),
        loaded=len(found) - len(misshapen),
        prefix=prefix,
        missing=tuple(
            name
            for name, tensor in own.items()
            if name not in under
            and not name.endswith("num_batches_tracked")
            and _memory(tensor) not in shared  # tied to one that the file has
        ),
        unexpected=tuple(n for n in under if n not in own and n not in ignored),
        misshapen=tuple(misshapen),
        place=place + prefix,
        ignored=ignored,
    )


def _memory(tensor: Tensor) -> Any:
    """Return what only tensors that are one and the same have in common."""
    if not tensor.numel() or tensor.is_meta:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _fits(tensor: Tensor, target: Tensor) -> bool:
    return tensor.shape == target.shape or (tensor.numel() == target.numel() == 1)


def _convert(name: str, tensor: Tensor, target: Tensor, path: Path) -> Tensor:
    """Return the tensor in the model's precision.

    Floating-point weights are rounded. Between kinds of numbers (an int8 weight is a quantised
    one, its scale is elsewhere) only single values go, and only if they stay the same.
    """
    same_kind = (
        tensor.is_floating_point() == target.is_floating_point()
        and tensor.is_complex() == target.is_complex()
        and not tensor.is_quantized
    )
    if tensor.dtype == target.dtype:
        return tensor.reshape(target.shape)
    if same_kind or tensor.numel() == 1:
        result = tensor.to(target.dtype)
        rounds = same_kind and target.is_floating_point()
        if rounds or torch.equal(result.to(tensor.dtype), tensor):
            return result.reshape(target.shape)
    here, there = (str(t.dtype).removeprefix("torch.") for t in (target, tensor))
    raise CheckpointError(
        f"'{name}' is {here} here, {there} in '{path}': "
        "save the checkpoint with floating-point weights"
    )


def _reparametrised(name: str) -> bool:
    ends = ("_orig", "_mask", "_g", "_v", "_u")
    return "parametrizations." in name or name.endswith(tuple(f"weight{end}" for end in ends))


def _mismatch(
    found: Mapping[str, Tensor], report: CheckpointReport, own: Mapping[str, Tensor]
) -> str:
    parts, advice = [], _ADVICE
    if report.missing:
        count = f"{len(report.missing)} of {len(own)}"
        parts.append(f"{count} tensors missing (first '{report.missing[0]}')")
    if report.unexpected:
        parts.append(f"{len(report.unexpected)} unexpected (first '{report.unexpected[0]}')")
    if report.misshapen:
        name = report.misshapen[0]
        here, there = (f"[{','.join(map(str, t[name].shape))}]" for t in (own, found))
        count = f"{len(report.misshapen)} of another shape"
        parts.append(f"{count} ({name} is {here} here, {there} in the file)")
    modules = {name.rpartition(".")[0] for name in report.misshapen}
    shapes = [(found[name].shape, own[name].shape) for name in report.misshapen]
    outputs = all(there[:1] != here[:1] and there[1:] == here[1:] for there, here in shapes)
    if any(_reparametrised(name) for name in report.unexpected):
        advice = (
            "its weights are parametrised or pruned: call torch.nn.utils.prune.remove or "
            "parametrize.remove_parametrizations on the model that wrote it, and save it again"
        )
    if len(parts) == len(modules) == 1 and outputs:  # nothing but the outputs of one module
        theirs, ours = shapes[0][0][0], shapes[0][1][0]
        advice = (
            f"only the last layer differs, it has {theirs} classes in the file and {ours} here: "
            f"build the model with num_classes={theirs}"
        )
    return f"'{report.path}' does not fit the model: {', '.join(parts)}; {advice}"
