"""The card of a model: what a reader must know of a network without its code, as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from shoal.errors import printable
from shoal.hub import Repository
from shoal.network import Network
from shoal.network.about import sample_shape
from shoal.network.inputs import tensors_of
from shoal.report import machine_words
from shoal.report.latency_tables import doubt_notes, quotient, runtime_name
from shoal.report.markdown import markdown
from shoal.report.table import (
    DONE,
    Column,
    Quantity,
    Row,
    Table,
    ratio_row,
    text_columns,
    unit_of,
)

_PIPELINES = {"classify": "image-classification", "segment": "image-segmentation"}
_METRICS = {"top-1": "accuracy", "mIoU": "mean_iou"}  # as the hub calls them
_MEANING = {
    "linearize": "rectifiers compute a line",
    "drop": "blocks pass on what their shortcut does",
    "collapse": "parts are one fitted layer",
}
_LISTED = 100  # names of classes, or of layers of a kind; more are in the file


def card_of(
    network: Network, where: Repository, license: str | None = None, files: Sequence[str] = ()
) -> str:
    """Return the card of a network, a Markdown text with YAML before it.

    Args:
        network: as it is shared; its `meta` says what it is for and what was measured.
        where: the repository it goes to.
        license: as the hub spells it ("mit"); None gives none, and says so.
        files: what else lies beside the network, such as "model.onnx".
    """
    front = yaml.safe_dump(_front(network, where, license, files), sort_keys=False)
    parts = [
        f"# {where.name}",
        _first(network),
        *_loading(network, where, files),
        *_figures(network),
        *_changes(network),
        *_use(network),
        *_limits(network, license),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def _front(
    network: Network, where: Repository, license: str | None, files: Sequence[str]
) -> dict[str, Any]:
    meta, figures = network.meta, network.meta.get("figures", {})
    pipeline = _PIPELINES.get(str(meta.get("task"))) if len(sample_shape(network)) == 3 else None
    onnx = any(file.endswith(".onnx") for file in files)
    values: dict[str, Any] = {"license": license, "library_name": "shoal"}
    values |= {"pipeline_tag": pipeline, "tags": ["shoal", "pruning", *(["onnx"] if onnx else [])]}
    quality, data = str(meta.get("quality", "quality")), _plain(meta.get("data", "the user's data"))
    metrics = [
        {
            "type": _METRICS.get(quality, re.sub(r"\W+", "_", quality)),
            "name": f"{quality} ({part})",
            "value": round(figures[part]["this"], 4),
        }
        for part in ("test", "validation")
        if part in figures
    ]
    if pipeline and metrics:
        result = {
            "task": {"type": pipeline},
            "dataset": {"name": data, "type": data},
            "metrics": metrics,
        }
        values["model-index"] = [{"name": where.name, "results": [result]}]
    return {name: value for name, value in values.items() if value is not None}


def _first(network: Network) -> str:
    """Return the sentence that says it all."""
    meta, figures = network.meta, network.meta.get("figures", {})
    base = f" from `{_plain(network.plan.base)}`" if network.plan.base else ""
    said = f"A network that *shoal* made shallower{base}"
    if not figures:
        return f"{said}."
    clauses = []
    if "depth" in figures:
        clauses.append("{this} layers deep instead of {dense}".format(**figures["depth"]))
    timed = [one for one in figures.get("latency", ()) if one.get("decides", True)]
    if timed:
        place = f"{runtime_name(timed[0]['runtime'])} at batch {timed[0]['batch']}"
        clauses.append(f"in {place} {_speed(timed[0]['ratio'])}")
    part = "test" if "test" in figures else "validation"
    if part in figures:
        after, before = (_points(figures, part, name) for name in ("this", "dense"))
        clauses.append(
            f"{meta.get('quality', 'quality')} on {part} data {after} instead of {before}"
        )
    return f"{said}: {'; '.join(clauses)}."


def _speed(ratio: Mapping[str, Any]) -> str:
    """Return how fast it is in words; no gain is claimed that is not certain."""
    certain = ratio.get("trusted", True) and not ratio["low"] <= 1 <= ratio["high"]
    return f"{quotient(ratio)} as fast" if certain else "as fast, as far as could be told"


def _loading(network: Network, where: Repository, files: Sequence[str]) -> Iterator[str]:
    yield "## Load it"
    args, kwargs = network.example_inputs(2)
    names = ["inputs"] if len(args) == 1 else [f"input_{place}" for place in range(len(args))]
    names += [f"{name}={name}" for name, value in kwargs.items() if tensors_of(value)]
    tensors = tensors_of((args, kwargs))
    sizes = ", ".join(f"[{', '.join(map(str, ('batch', *one.shape[1:])))}]" for one in tensors)
    yield (
        f'```python\nimport shoal\n\nnet = shoal.load("{where.text}")\n'
        f"outputs = net({', '.join(names)})  # inputs: {sizes}\n```"
    )
    yield (
        "`pip install 'shoal[hub]'` is all that it needs: the network is data, `network.json` and "
        "`model.safetensors`; no code of this repository is run."
    )
    if "model.onnx" in files:
        yield (
            "`model.onnx` computes the same in ONNX Runtime and whatever else reads such files; "
            "labels and normalisation are in its metadata, as JSON under `shoal.classes`, "
            "`shoal.mean` and `shoal.std`."
        )
    if "report.html" in files:
        yield "`report.html` shows the whole search, step by step."


def _figures(network: Network) -> Iterator[str]:
    meta, figures = network.meta, network.meta.get("figures", {})
    if not figures:
        return
    yield "## Figures"
    quality = str(meta.get("quality", "quality"))
    rows = [
        Row((f"{quality}, {part}", *(_points(figures, part, name) for name in ("dense", "this")),
             Quantity(figures[part]["this"] - figures[part]["dense"], "points")))
        for part in ("validation", "test") if part in figures
    ]  # fmt: skip
    sizes = (("depth", "depth, layers", ""), ("macs", "work, MACs per sample", "count"),
             ("params", "parameters", "count"),
             ("relus", "rectifier evaluations per sample", "count"))  # fmt: skip
    rows += [
        ratio_row(title, unit, figures[key]["dense"], figures[key]["this"], last=False)
        for key, title, unit in sizes
        if key in figures
    ]
    for one in figures.get("latency", ()):
        pair = (Quantity(one[name], "ms") for name in ("dense", "this"))
        title = f"latency, {runtime_name(one['runtime'])}, batch {one['batch']}"
        rows.append(Row((title, *pair, quotient(one["ratio"]))))
    notes = [
        "Change: a ratio is dense / this, so above 1 is faster or smaller; of latency (median of "
        "one call, in ms) with its 95 % interval. Dense is the network before, with its batch "
        "norms folded; this one is merged.",
        *doubt_notes(one["ratio"] for one in figures.get("latency", ())),
    ]
    if meta.get("machine"):
        notes.append(f"Measured on {machine_words(meta['machine'])}.")
    if meta.get("data"):
        notes.append(f"Data: {_plain(meta['data'])}.")
    columns = (*text_columns("figure"), *map(Column, ("dense", "this", "change")))
    yield _printable_lines(markdown(Table("", columns, tuple(rows), tuple(notes))))


def _changes(network: Network) -> Iterator[str]:
    done: dict[str, list[str]] = {}
    for operation in network.plan.operations:
        if operation.kind not in ("merge", "swap"):
            done.setdefault(operation.kind, []).extend(operation.names)
    yield "## What was made shallower"
    lines = [
        f"- {DONE.get(kind, kind)} ({len(names)}): {_listed(names)}"
        for kind, names in done.items()
        if names
    ]
    yield "\n".join(lines or ["Nothing was removed."])
    explained = [f"{DONE[kind]} {_MEANING[kind]}" for kind in done if kind in _MEANING]
    if any(operation.kind == "merge" for operation in network.plan.operations):
        explained.append("what had become linear was then merged into fewer layers, exactly")
    if explained:
        yield f"What that means: {'; '.join(explained)}."


def _use(network: Network) -> Iterator[str]:
    meta = network.meta
    yield "## Inputs and labels"
    lines = [f"- {line}" for line in network.inputs.size_lines()]
    if meta.get("mean") and meta.get("std"):
        mean, std = (_numbers(meta[name]) for name in ("mean", "std"))
        lines.append(
            f"- pixels are scaled to 0 to 1; then, per channel, the mean {mean} is subtracted, and "
            f"the rest divided by the deviation {std}"
        )
    else:
        lines.append("- how inputs were normalised is not known here: ask its author")
    if meta.get("classes"):
        names = meta["classes"]
        lines.append(f"- {len(names)} classes, in the order of the outputs: {_listed(names)}")
    elif meta.get("task"):
        lines.append("- the names of the classes, if there are any, are not known here")
    yield "\n".join(lines)


def _limits(network: Network, license: str | None) -> Iterator[str]:
    meta = network.meta
    lines = []
    if meta.get("figures"):
        lines += [
            "- latencies are those of the machine above; `shoal benchmark` measures yours",
            "- it is as good as said on data like those above, and no better than the network it "
            "was made of on others",
        ]
    if "validation" in meta.get("figures", {}):
        apart = "; test data took no part" if "test" in meta["figures"] else ""
        lines.append(
            f"- validation data chose this network among others, so they flatter it{apart}"
        )
    if license is None:
        lines.append("- no license was given: ask its author before you use it")
    if lines:
        yield "## Limits"
        yield "\n".join(lines)


def _points(figures: Mapping[str, Any], part: str, name: str) -> str:
    return str(Quantity(figures[part][name], unit_of(str(figures.get("quality_unit", "")))))


def _numbers(values: Sequence[float]) -> str:
    return json.dumps([float(format(value, "g")) for value in values])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:_LISTED])
    return shown + (f", … (all {len(names)} in network.json)" if len(names) > _LISTED else "")


def _plain(text: object) -> str:
    """Return a text that Markdown shows as it is, inside a span of code or a cell."""
    return printable(str(text)).replace("`", "'")


def _printable_lines(text: str) -> str:
    """Return lines with what no text holds taken out of each."""
    return "\n".join(map(printable, text.splitlines()))
