"""How far a search goes: what is good enough, what the last training may make so, why it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import median

from shoal.search.figures import TOP1
from shoal.search.options import SearchOptions
from shoal.search.records import Metrics, Step, chosen

MOST_SLACK = 2.0  # points that a last training is expected to win back
MACS = "the number of MACs"
_USUAL_SHARE = 0.5  # of the points lost, where no fine-tuning of the run tells


def is_within(metrics: Metrics, dense: float, drop: float) -> bool:
    """Whether a quality is at most `drop` points below the dense network's, but for rounding."""
    return metrics.top1_val >= dense - drop - 1e-9


def slack(options: SearchOptions, steps: Sequence[Step]) -> float:
    """Return how many points past `max_drop` a step may lie for the last training to win back.

    Unless the user says it, that is learnt from the steps: the share of the lost points that the
    median fine-tuning won back, w, is what the last training should win back of what it finds. So
    it comes within `max_drop` from max_drop / (1 - w), but no more than 2 points are expected.
    """
    if options.slack is not None:
        return options.slack
    if options.final_epochs == 0:
        return 0.0
    dense, shares = steps[0].metrics.top1_val, []
    for step in steps[1:]:
        lost = dense - (dense if step.top1_val_before is None else step.top1_val_before)
        if step.epochs and lost > 0.0 and not step.ended:
            left = dense - step.metrics.top1_val
            shares.append((1.0 - left / lost) * min(1.0, options.final_epochs / step.epochs))
    share = min(1.0, max(0.0, median(shares) if shares else _USUAL_SHARE))
    if share * options.max_drop >= MOST_SLACK * (1.0 - share):
        return MOST_SLACK
    return options.max_drop * share / (1.0 - share)


def may_be_won_back(step: Step, options: SearchOptions, steps: Sequence[Step]) -> bool:
    """Whether a step's quality is within the allowed drop and the slack together."""
    drop = options.max_drop + slack(options, steps)
    return is_within(step.metrics, steps[0].metrics.top1_val, drop)


def may_ever_be_won_back(step: Step, options: SearchOptions, steps: Sequence[Step]) -> bool:
    """Whether it may be, whatever slack later steps will teach."""
    most = MOST_SLACK if options.slack is None else options.slack
    return is_within(step.metrics, steps[0].metrics.top1_val, options.max_drop + most)


def candidates(options: SearchOptions, steps: Sequence[Step]) -> list[Step]:
    """Return the steps that the last training may make the result, the slowest first.

    That is the last step within the drop, unless it is the dense network, and those past the drop
    that are not slower than it. Where intervals overlap, or the clock was not to be trusted, the
    later step goes for the faster one.
    """
    loop = [step for step in steps if not step.ended]
    base = chosen(loop)
    past = [s for s in loop if not s.within and may_be_won_back(s, options, steps)]
    order: list[Step] = []
    for step in sorted([base, *past], key=lambda step: step.step):
        faster = takewhile(lambda other: _is_faster(other, step), reversed(order))  # noqa: B023
        order.insert(len(order) - sum(1 for _ in faster), step)
    return [step for step in order[order.index(base) :] if step.step > 0]


def _is_faster(one: Step, other: Step) -> bool:
    """Whether a step is certainly faster than another one."""
    doubtful = one.latency_doubt or other.latency_doubt
    return not doubtful and one.latency_ratio_low > other.latency_ratio_high


def fastest_that_holds(
    found: Sequence[Step],
    holds: Callable[[Step], bool | None],
    likely: Callable[[Step], bool] = lambda step: False,
) -> None:
    """Ask for the last of some steps whether it holds; if it does not, bisect the others.

    It begins in the middle, or with a later one that is `likely` to hold, as far as the first
    answer tells. A step is taken to hold if a faster one does. With n steps it asks at most
    ceil(log2(n)) + 2 times. None ends the asking.
    """
    low, high = -1, len(found)
    while high - low > 1:
        middle = high - 1 if high == len(found) else (low + high + 1) // 2
        if low == -1 and high == len(found) - 1:  # the last has failed, and nothing else was asked
            middle = max((i for i in range(middle, high) if likely(found[i])), default=middle)
        answer = holds(found[middle])
        if answer is None:
            return
        if answer:
            low = middle
        else:
            high = middle


def should_hold(step: Step, options: SearchOptions, steps: Sequence[Step]) -> bool:
    """Whether a step comes within `max_drop` if it wins back what the first last training did."""
    last = next((one for one in steps if one.ended), None)
    if last is None or last.begun_from is None:  # it failed
        return False
    won = last.metrics.top1_val - steps[last.begun_from].metrics.top1_val
    return is_within(step.metrics, steps[0].metrics.top1_val, options.max_drop + won)


def latency_share(step: Step, dense: Step) -> tuple[str, float]:
    """Return the share of dense's latency that a step has, and what it is a share of, in words.

    Where the clock was not to be trusted, MACs stand in for it.
    """
    if step.latency_doubt:
        return MACS, _macs_share(step, dense)
    return "latency", 1.0 / step.latency_ratio


def _macs_share(step: Step, dense: Step) -> float:
    return step.metrics.macs / max(1, dense.metrics.macs)


def why_stop(options: SearchOptions, steps: Sequence[Step], removed: int) -> str:
    """Return why a search must end after its last step, or an empty string."""
    dense, last = steps[0], steps[-1]
    hopeful = [may_be_won_back(step, options, steps) for step in steps]
    failed = sum(1 for _ in takewhile(lambda may: not may, reversed(hopeful)))
    if failed > options.patience:
        drop = dense.metrics.top1_val - last.metrics.top1_val
        more = slack(options, steps)
        name = dense.metrics.quality_name
        what = "accuracy" if name == TOP1 else name
        expected = f" and {more:.2f} more for the last training to win back" if more else ""
        return (
            f"validation {what} is {drop:.2f} points below dense, at most "
            f"{options.max_drop:g} allowed{expected}"
        )
    if options.remove is not None and removed >= options.remove:
        return f"removed {options.remove}, as asked"
    macs = _macs_share(last, dense)
    for what, share, wanted in (
        (*latency_share(last, dense), options.target_latency),
        (MACS, macs, options.target_macs),
    ):
        if hopeful[-1] and wanted is not None and share <= wanted:
            return f"{what} is {share:.2f} of dense's, {wanted:g} was the target"
    return ""


def judged(steps: Sequence[Step], max_drop: float) -> list[Step]:
    """Return the steps with those marked that are within the drop; a last training is as it is."""
    within = [is_within(s.metrics, steps[0].metrics.top1_val, max_drop) for s in steps]
    return [s if s.ended else replace(s, within=w) for s, w in zip(steps, within, strict=True)]
