"""One `.onnx` file, made from an exported program, small and clean."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from shoal.errors import ConfigError, ShoalError, missing_extra
from shoal.network.paths import numbered
from shoal.quiet import quietly

BATCH = "batch"
MAX_BYTES = 2**31 - 1  # what protobuf holds in one message

_RANDOM = (
    "Bernoulli", "Dropout", "Multinomial",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip


def onnx_model(
    program: torch.export.ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int | None,
) -> Any:
    """Translate an exported program, from tensors to tensors, to an `onnx.ModelProto`.

    It holds its weights, and no notes of the exporter (stack traces with paths of this machine).
    Dimension 0 of the first input is named "batch" wherever it appears. Raises `ConfigError` if the
    operators do not exist in that opset, `ShoalError` if the network cannot be translated.
    """
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            raise missing_extra(package, "onnx", "exporting to .onnx") from error
    model = _translate(program, opset)
    given = opset_of(model)
    if opset is not None and given != opset:
        raise ConfigError(
            f"the network's operations cannot be written in ONNX opset {opset}, only in {given}: "
            f"leave the opset out, or ask for {given} or later"
        )
    _refuse_random(model)
    _clean(model)
    _name_values(model.graph, list(input_names), list(output_names))
    _name_batch(model)
    return model


def label(model: Any, facts: Mapping[str, Any]) -> None:
    """Write facts, JSON values by name, into a model's metadata, under `shoal.NAME`."""
    for name, value in facts.items():
        text = json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=f"shoal.{name}", value=text)


def root_cause(error: BaseException) -> str:
    """Return one line: the first of what started a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _translate(program: torch.export.ExportedProgram, opset: int | None) -> Any:
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    try:
        with quietly():
            translated = torch.onnx.export(program, (), opset_version=opset, **options)
            assert translated is not None  # as always with dynamo=True
            return translated.model_proto
    except Exception as error:
        reason = root_cause(error)
        if "2GiB" in reason or "2 GiB" in reason or "exceeds maximum protobuf size" in reason:
            raise ShoalError(
                "the network is over 2 GB, more than one .onnx file holds: export to .pt2"
            ) from error
        raise ShoalError(
            f"the network cannot be exported to ONNX ({reason}): export to .pt2, or replace the "
            "operation"
        ) from error


def opset_of(model: Any) -> int:
    """Return the version of ONNX's operators that a model uses."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain == "")


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and those inside its nodes (the branches of an If, the body of a Loop)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _refuse_random(model: Any) -> None:
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    for node in nodes:
        if node.op_type in _RANDOM:
            raise ShoalError(
                f"the network draws random numbers in eval mode ('{node.name}', {node.op_type}), "
                "so an exported file cannot be checked: take that operation out"
            )


def _clean(model: Any) -> None:
    model.doc_string = ""
    graphs = list(_graphs(model.graph))
    entries: list[Any] = [*graphs, *model.functions]
    for body in (*graphs, *model.functions):
        entries += [*body.node, *body.value_info]
    for graph in graphs:
        entries += [*graph.input, *graph.output, *graph.initializer]
    for entry in entries:
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")


def _name_values(graph: Any, input_names: list[str], output_names: list[str]) -> None:
    """Give inputs and outputs their names; inner values that have one of these make way."""
    _part_outputs(graph)
    initializers = {tensor.name for tensor in graph.initializer}
    output_names = _apart(output_names, {*input_names, *initializers})
    reserved = {*input_names, *output_names}
    ends = [*graph.input, *graph.output]
    new = dict(zip((value.name for value in ends), [*input_names, *output_names], strict=True))
    inner = {
        name for g in _graphs(graph) for node in g.node for name in (*node.input, *node.output)
    }
    taken = reserved | inner | initializers
    for name in sorted((inner | initializers) & reserved - set(new)):
        new[name] = numbered(f"{name}_value", taken.__contains__)
        taken.add(new[name])
    for one in _graphs(graph):
        for node in one.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
        for value in (*one.input, *one.output, *one.value_info, *one.initializer):
            value.name = new.get(value.name, value.name)


def _part_outputs(graph: Any) -> None:
    """Let each output be a value of its own: not an input, a weight, or another output too."""
    from onnx import helper

    used = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for index, output in enumerate(graph.output):
        if output.name in used:
            name = f"{output.name}_output_{index}"
            graph.node.append(helper.make_node("Identity", [output.name], [name], name=name))
            output.name = name
        used.add(output.name)


def _apart(names: list[str], taken: set[str]) -> list[str]:
    apart: list[str] = []
    for name in names:
        while name in taken:
            name += "_output"
        apart.append(name)
        taken.add(name)
    return apart


def _name_batch(model: Any) -> None:
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input]
    symbol = next((shape[0].dim_param for shape in shapes if shape), "")
    if not symbol:
        raise ShoalError("the exported graph lost its batch dimension: the network fixes its size")
    pattern = re.compile(rf"(?<!\w){re.escape(symbol)}(?!\w)")
    for graph in _graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = pattern.sub(BATCH, dim.dim_param)
