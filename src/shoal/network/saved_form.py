"""What `network.json` may hold: its schema."""

from __future__ import annotations

from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # those of `typing` lack what pydantic reads
)

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from shoal.schema import Count, Finite, Shape

_EXACT = ConfigDict(extra="forbid")
_OPEN = ConfigDict(extra="allow")


@with_config(_EXACT)
class Meta(TypedDict, total=False):
    """What is known of a node's value."""

    path: str | None
    shape: Shape | None
    dtype: str
    block: str
    opaque: str


@with_config(_EXACT)
class Node(TypedDict):
    """A step of the forward pass."""

    name: str
    op: Literal["placeholder", "get_attr", "call_function", "call_module", "output"]
    target: str
    args: list[Any]
    kwargs: NotRequired[dict[str, Any]]
    meta: Meta


@with_config(_EXACT)
class StoredTensor(TypedDict, total=False):
    """A parameter or buffer; its values are in the file of weights, or another one's."""

    same: str
    memory: str
    strides: list[int]
    frozen: bool
    persistent: bool


@with_config(_OPEN)
class Module(TypedDict, total=False):
    """A module; the arguments of its constructor stand beside these."""

    type: str
    nodes: list[Node]
    same: str
    owner: str
    parameters: dict[str, StoredTensor | None]
    buffers: dict[str, StoredTensor | None]


@with_config(_EXACT)
class Done(TypedDict):
    """An operation of the plan."""

    kind: str
    names: list[str]
    options: dict[str, Any]


@with_config(_EXACT)
class History(TypedDict):
    """The plan."""

    base: str | None
    fingerprint: str
    operations: list[Done]


@with_config(_EXACT)
class ExampleTensor(TypedDict):
    """Shape and type of an input."""

    shape: Shape
    dtype: str


@with_config(_EXACT)
class ExampleValue(TypedDict):
    """An input that is no tensor."""

    value: bool | int | float | str | None


@with_config(_EXACT)
class Inputs(TypedDict):
    """What the network is called with."""

    structure: Any
    keywords: list[str]
    parameters: list[str]
    leaves: list[ExampleTensor | ExampleValue]
    weights: str | None
    fixed_sizes: NotRequired[list[list[int]]]  # older files know nothing of sizes
    conditions: NotRequired[list[str]]


@with_config(_OPEN)
class Pair(TypedDict):
    """A figure of the dense network and of this one."""

    dense: Finite
    this: Finite


@with_config(_OPEN)
class Quotient(TypedDict):
    """A ratio with its 95 % interval."""

    median: Finite
    low: Finite
    high: Finite
    trusted: NotRequired[bool]


@with_config(_OPEN)
class TimedPair(Pair):
    """A latency, in ms, and dense over this one."""

    runtime: str
    batch: int
    ratio: Quotient


@with_config(_OPEN)
class Measured(TypedDict, total=False):
    """What was measured of a network beside the one it was made of; qualities are in points."""

    validation: Pair
    test: Pair
    quality_unit: str
    depth: Pair
    macs: Pair
    params: Pair
    relus: Pair  # rectifier evaluations of one sample
    latency: list[TimedPair]


@with_config(_OPEN)
class About(TypedDict, total=False):
    """What goes with a network and is for people and programs beside it; users may add to it."""

    classes: list[str]  # in the order of the labels
    mean: list[Finite]  # of each channel of pixels from 0 to 1
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    input_shape: list[Count] | list[list[Count]]  # of one sample, or of each of its inputs
    task: str
    quality: str  # its name
    figures: Measured
    machine: dict[str, str | int]  # where, when and with which versions these were measured


@with_config(_EXACT)
class SavedNetwork(TypedDict):
    """The file as a whole."""

    format: int
    inputs: Inputs
    outputs: Any
    nodes: list[Node]
    modules: dict[str, Module]
    sites: dict[str, list[str]]
    opaque: list[list[str]]
    notes: list[str]
    plan: History
    meta: About
    weights_sha256: str
