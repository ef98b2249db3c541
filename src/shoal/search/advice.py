"""What to try next where a search's result is not faster than the dense network."""

from __future__ import annotations

from shoal.runtimes import EAGER
from shoal.search.options import MachineOptions, SearchOptions
from shoal.search.records import RunRecord

_OWN = "shoal"  # the method that removes only what was measured to save time


def advice(
    record: RunRecord, method: str, options: SearchOptions, machine: MachineOptions
) -> tuple[str, ...]:
    """Return a line on which options to change, if the result is not faster for certain.

    They are spelled as keyword arguments, such as max_drop=2.
    """
    if record.latency is None or record.latency.speedup["low"] > 1.0:
        return ()
    tries = []
    if method != _OWN:
        tries.append(f"method='{_OWN}', which removes only what saves time where it is measured")
    if any(not step.within for step in record.steps):  # accuracy is what ended it
        tries.append(f"max_drop={max(1.0, 2.0 * options.max_drop):g}")
        if options.final_epochs == 0:
            tries.append("final_epochs=10, which lets the search go further and trains at the end")
        else:
            asked = options.epochs / (options.budget or 1.0)  # before the budget shortened it
            tries.append(f"epochs={max(2, round(2 * asked))}")
    if machine.runtimes == (EAGER,):
        tries.append("runtime='onnxruntime' if that is where the network will run")
    if not tries:
        tries.append("latency_batch, the batch size that the network will run at")
    return (f"the result is not faster than the dense network: try {'; '.join(tries)}",)
