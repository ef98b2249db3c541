"""The plan: the ordered operations that turned a base model into the present network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.errors import PlanError

__all__ = ["Operation", "Plan"]


@dataclass(frozen=True)
class Operation:
    """One step of surgery.

    Attributes:
        kind: "linearize", "drop", "collapse" or "merge".
        names: the sites or blocks it was done to.
        options: what else replaying it needs; JSON values only.
    """

    kind: str
    names: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the operation as JSON values."""
        return {"kind": self.kind, "names": list(self.names), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Operation:
        """Read what `to_dict` wrote; raises `PlanError` if it is something else."""
        try:
            return cls(str(data["kind"]), tuple(map(str, data["names"])), dict(data["options"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the plan holds an operation that cannot be read: {data}") from error


@dataclass
class Plan:
    """The operations done to a network, in order.

    Attributes:
        base: where the original model comes from ("torchvision:resnet18"), or None if the user
            holds it.
        fingerprint: a hash of the base model's architecture.
        operations: what was done, oldest first.
    """

    base: str | None = None
    fingerprint: str = ""
    operations: list[Operation] = field(default_factory=list)

    def record(self, kind: str, names: tuple[str, ...], **options: Any) -> None:
        """Add an operation at the end."""
        self.operations.append(Operation(kind, names, options))

    def __len__(self) -> int:
        return len(self.operations)

    def names(self, kind: str) -> list[str]:
        """Return all names that operations of this kind were done to, oldest first."""
        return [name for op in self.operations if op.kind == kind for name in op.names]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "base": self.base,
            "fingerprint": self.fingerprint,
            "operations": [op.to_dict() for op in self.operations],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote; raises `PlanError` if it is something else."""
        operations = data.get("operations")
        if not isinstance(operations, list):
            raise PlanError("the plan has no list of operations: the file is damaged")
        done = [Operation.from_dict(op) for op in operations]
        return cls(data.get("base"), str(data.get("fingerprint", "")), done)
