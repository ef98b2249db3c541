"""The result of a search in int8: written for each runtime that can, and evaluated there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.errors import ShoalError, summary
from shoal.network import Network
from shoal.runtimes import Runner, Running, Runtime
from shoal.runtimes.int8 import calibration, quantize
from shoal.search.records import Int8
from shoal.tasks import Task, find_task


@dataclass(frozen=True)
class Int8Maker:
    """Quantizes dense and result; the files of the result lie in `folder`."""

    train: Iterable[Any]  # calibrated on, without augmentation
    val: Iterable[Any]
    test: Iterable[Any] | None
    quality: Callable[[Any, Iterable[Any]], float]  # of a module on data, in points
    folder: Path
    task: Task = field(default_factory=find_task)

    def answers(self, returned: Any) -> Tensor | None:
        """Return the task's answers in what a network returned, if it has any."""
        return self.task.answers(self.task.output(returned))

    def make(
        self, runtime: Runtime, dense: Network, result: Network
    ) -> tuple[Int8, Mapping[str, Runner]]:
        """Return the result's figures in int8, and what runs "result_int8" and "dense_int8".

        Validation and test data are for the figures alone. Raises `ShoalError` if the runtime
        cannot quantize one of the networks, or the quality cannot be measured there.
        """
        samples = calibration(result, self.train)
        path = self.folder / f"{runtime.name}{runtime.int8}"
        beside = self.folder / "dense"
        other = quantize(dense, samples, beside / path.name, runtime, self.answers)
        for file in other.files:
            file.unlink()  # it is in memory, and nobody's result
        beside.rmdir()
        made = quantize(result, samples, path, runtime, self.answers)
        module = Running(made.runner, result)
        try:
            quality = self.quality(module, self.val)
            test = None if self.test is None else self.quality(module, self.test)
        except Exception as error:  # the user's own measure may want more than a network's outputs
            for file in made.files:
                file.unlink()  # nobody is told of them
            raise ShoalError(f"its quality cannot be measured: {summary(error)}") from error
        figures = Int8(
            runtime=runtime.name,
            file=path.name,
            bytes=sum(file.stat().st_size for file in made.files),
            samples=made.samples,
            agreement=made.agreement,
            top1_val=quality,
            top1_test=test,
        )
        return figures, {"dense_int8": other.runner, "result_int8": made.runner}
