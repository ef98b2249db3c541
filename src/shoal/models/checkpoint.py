"""Load a file of weights into a model: read it, find the weights, check everything, then copy.

Code from a file is never run.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shoal.errors import CheckpointError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")

# How torch's restricted reader words a refusal, as opposed to damage.
_REFUSALS = re.compile(r"Unsupported (?:global|class)|unrecognized function|TorchScript|GLOBAL")

# Where training programs keep the weights, plain before averaged ones.
_NESTS: tuple[str, ...] = ("state_dict", "model", "model_state_dict", "model_state")
_NESTS += ("net", "network", "module", "params", "weights")
# What DataParallel, torch.compile, FSDP and activation checkpointing insert into parameter names.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclass(frozen=True)
class CheckpointReport:
    """What was loaded; what is missing or misshapen in the file keeps the model's values."""

    path: str
    loaded: int  # number of tensors copied
    prefix: str  # what was removed from the front of the file's names ("module.")
    missing: tuple[str, ...]  # names of the model that the file does not have
    unexpected: tuple[str, ...]  # names of the file that the model does not have
    misshapen: tuple[str, ...]  # names with another shape in the file


# One reading of a file: the tensors under the model's names, and how well they fit.
_Reading = tuple[dict[str, Tensor], CheckpointReport]


def load_checkpoint(model: nn.Module, path: str | Path, *, strict: bool = True) -> CheckpointReport:
    """Load a file of weights into `model`; if anything fails the model is unchanged.

    The weights may lie bare in the file or nested (under `state_dict`, `model`, …; plain weights
    are preferred to averaged ones), and their names may carry a common prefix (`module.`,
    `_orig_mod.`, …); of all readings the one that fits the model best is taken. Floating-point
    weights of another precision are converted to the model's.

    Args:
        model: receives the weights.
        path: `.safetensors`, or `.pt`, `.pth`, `.th`, `.bin`, `.ckpt` as `torch.save` writes them.
        strict: require that names and shapes agree exactly. Otherwise what agrees is loaded and
            the report lists the rest.

    Raises:
        CheckpointError: the file cannot be read, holds no weights or pickled code, does not fit
            the model, or holds NaN or infinite weights.
    """
    path = Path(path).expanduser()
    own = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    found, report = _best_reading(_read(path), own, path)
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


def _best_reading(content: Any, own: Mapping[str, Tensor], path: Path) -> _Reading:
    """Return the reading of the file that fits the model best; the first of equals."""
    readings = [
        _read_as(variant, prefix, own, path)
        for weights in _state_dicts(content)
        for variant in _unwrapped(weights)
        for prefix in _prefixes(variant, own)
    ]
    if not readings:
        raise CheckpointError(f"'{path}' holds no weights: give a file with a state_dict in it")
    # Right shapes count first, then right names, then few unexpected ones.
    return max(readings, key=lambda r: (r[1].loaded, len(r[0]), -len(r[1].unexpected)))


def _state_dicts(content: Any, depth: int = 3) -> Iterator[dict[str, Tensor]]:
    """Yield every dictionary of named tensors in the file, the likeliest places first."""
    if not isinstance(content, Mapping):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield tensors
    if depth:
        names = [k for k, v in content.items() if isinstance(k, str) and isinstance(v, Mapping)]
        rank = {name: place for place, name in enumerate(_NESTS)}
        for name in sorted(names, key=lambda n: rank.get(n, len(rank))):
            yield from _state_dicts(content[name], depth - 1)


def _unwrapped(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the weights as they are, and without the wrappers' parts inside their names."""
    yield weights
    plain = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): tensor
        for name, tensor in weights.items()
    }
    if plain.keys() != weights.keys() and len(plain) == len(weights):
        yield plain


def _prefixes(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return what may be cut from the front of names: nothing, then the commonest fitting ones.

    A prefix of few of the file's names is none: it would make a part of another network pass for
    the model.
    """
    counts: Counter[str] = Counter()
    for name in weights:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in own:
                counts[".".join(parts[:cut]) + "."] += 1
    common = (prefix for prefix, count in counts.most_common(8) if 3 * count >= len(weights))
    return ["", *common]


def _read_as(
    weights: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor], path: Path
) -> _Reading:
    """Compare the file's names under `prefix` with the model's.

    Names outside the prefix belong to whatever wrapped the model (a counter of averaged models, a
    loss with weights): they do not count as unexpected.
    """
    under = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    found = {name: under[name] for name in own if name in under}
    # The counter came with torch 0.4.1; nothing depends on it while momentum is a number.
    counter = "num_batches_tracked"
    misshapen = [n for n, t in found.items() if not _fits(t, own[n])]
    return found, CheckpointReport(
        path=str(path),
        loaded=len(found) - len(misshapen),
        prefix=prefix,
        missing=tuple(n for n in own if n not in under and not n.endswith(counter)),
        unexpected=tuple(n for n in under if n not in own and not n.endswith(counter)),
        misshapen=tuple(misshapen),
    )


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
    if len(parts) == len(modules) == 1 and outputs:  # nothing but the outputs of one module
        theirs, ours = shapes[0][0][0], shapes[0][1][0]
        advice = (
            f"only the last layer differs, it has {theirs} classes in the file and {ours} here: "
            f"build the model with num_classes={theirs}"
        )
    return f"'{report.path}' does not fit the model: {', '.join(parts)}; {advice}"


def _read(path: Path) -> Any:
    """Return what a `.safetensors` file, or one that `torch.save` wrote, holds, on the CPU.

    Raises:
        CheckpointError: the file is missing, a folder, empty, damaged, of another type, or holds
            pickled code.
    """
    _check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # On refusing a TorchScript archive torch also warns; one line is enough.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged bytes make the readers fail in any way: EOFError, KeyError, IndexError, …
        if _REFUSALS.search(str(error)):
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({named[1]})" if named else ""
            raise CheckpointError(
                f"'{path}' holds pickled code{what}, which shoal never runs: where you trust the "
                "file, load it in your own program and save plain weights by "
                "`torch.save(model.state_dict(), 'weights.pt')`"
            ) from error
        # torch's own text gives advice that does not apply; its first sentence is the reason.
        message = re.split(r"\n|(?<=\w)\. ", str(error))[0][:160]
        reason = f"{type(error).__name__}: {message}".removesuffix(": ")
        raise CheckpointError(
            f"'{path}' is damaged, cut short or not a file of weights: copy it again ({reason})"
        ) from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        hint = f"it holds {', '.join(inside[:4])}" if inside else "it holds no file of weights"
        raise CheckpointError(f"'{path}' is a folder: name the file of weights ({hint})")
    if not path.is_file():
        raise CheckpointError(f"there is no file '{path}': {_nearest(path)}")
    if path.suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise CheckpointError(
            f"'{path}' does not look like a file of weights: give one that ends in {known}"
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"'{path}' is empty: copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"'{path}' is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
        )


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder '{path.parent}' either, check the path"
    names = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if name.endswith(SUFFIXES)][:3]
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return "its folder holds no file of weights, check the path"
