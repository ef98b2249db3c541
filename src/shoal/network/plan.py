"""The plan: the ordered operations that turned a base model into the present network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.errors import PlanError


@dataclass(frozen=True)
class Operation:
    """One step of surgery."""

    kind: str  # "linearize", "drop", "collapse" or "merge"
    names: tuple[str, ...]  # the sites or blocks it was done to
    options: Mapping[str, Any] = field(default_factory=dict)  # JSON values only

    def to_dict(self) -> dict[str, Any]:
        """Return the operation as JSON values."""
        return {**vars(self), "names": list(self.names)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Operation:
        """Read what `to_dict` wrote; raises `PlanError` if it is something else."""
        try:
            return cls(str(data["kind"]), tuple(map(str, data["names"])), dict(data["options"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the plan holds an operation that cannot be read: {data}") from error


@dataclass
class Plan:
    """The operations done to a network, in order."""

    # Where the original model comes from ("torchvision:resnet18"); None if the user holds it.
    base: str | None = None
    fingerprint: str = ""  # a hash of the base model's architecture
    operations: list[Operation] = field(default_factory=list)  # oldest first

    def record(self, kind: str, names: tuple[str, ...], **options: Any) -> Operation:
        """Add an operation at the end, and return it."""
        self.operations.append(Operation(kind, names, options))
        return self.operations[-1]

    def __len__(self) -> int:
        return len(self.operations)

    def names(self, kind: str) -> list[str]:
        """Return all names that operations of this kind were done to, oldest first."""
        return [name for op in self.operations if op.kind == kind for name in op.names]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {**vars(self), "operations": [op.to_dict() for op in self.operations]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote; raises `PlanError` if it is something else."""
        operations = data.get("operations")
        if not isinstance(operations, list):
            raise PlanError("the plan has no list of operations: the file is damaged")
        done = [Operation.from_dict(op) for op in operations]
        return cls(data.get("base"), str(data.get("fingerprint", "")), done)
