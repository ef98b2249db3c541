"""Load a network from a folder that `shoal.save` or a run wrote."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from shoal.errors import ConfigError, DamagedError, PlanError
from shoal.hub import download, is_on_hub, repository
from shoal.merge.format1 import PLAN_FILE, read_format1
from shoal.network import Network
from shoal.network.saving import NETWORK_FILE, REMEDY, WEIGHTS_FILE, WHOLE, read_network
from shoal.sealed import check_file, read_sealed
from shoal.user_paths import user_path


# Long because each of its arguments is explained; the body is short.
def load(
    folder: str | Path,
    part: str | None = None,
    model: nn.Module | None = None,
    *,
    step: int | None = None,
    trust: bool = False,
) -> Network:
    """Load a network that `shoal.save` or a run wrote, or that `shoal.push` put on the hub.

    It needs neither the model's source nor its library, and works wherever the folder lies.

    Args:
        folder: a saved folder, or a run's; or "hf:ORG/NAME" (needs the extra "hub"), whose network
            is downloaded unless it is in the hub's cache: two files of data, and no code.
        part: what to take of a run: "merged" (the result to use, which None takes too), "best" (the
            result as it was trained, to train on), or a step such as "steps/003".
        model: the original model, for a folder of an early version of shoal whose model has no name
            such as "torchvision:resnet18"; its weights do not matter and it is left as it is.
        step: the number of a run's step, whose network is taken as it was trained: `shoal report`
            lists those on the front of accuracy against latency.
        trust: whether such a folder of an early version may run the code that it names to build its
            model; nothing else in a folder is ever run.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        FileError: the hub has no such repository, or cannot be reached.
        PlanError: shoal did not make the folder, it is damaged, or it holds an operator that is
            not registered here.
        CheckpointError: the weights are damaged or do not fit.
        ConfigError: the run has no such step; says which there are.

    Example:
        >>> import shoal, tempfile, torch
        >>> inputs = torch.randn(8, 4)
        >>> from torch import nn
        >>> net = shoal.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval(), inputs)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = shoal.load(shoal.save(net, folder))
        >>> torch.equal(again(inputs), net(inputs))
        True
    """
    if is_on_hub(folder):
        if part is not None or step is not None:
            raise ConfigError(f"'{folder}' holds one network: leave out part and step")
        where = repository(str(folder))
        path = download(where, (NETWORK_FILE, WEIGHTS_FILE))
        if not (path / NETWORK_FILE).exists():
            raise PlanError(f"'{folder}' has no {NETWORK_FILE}: shoal did not push it")
        return read_network(path)
    path = user_path(folder)
    if step is not None:
        part = _part_of(path, step, part)
    if part is None and is_run(path):
        if not (path / "result.json").exists():
            raise PlanError(
                f"the run in '{path}' has no result yet: give its command again to finish it, or "
                f"take one of its steps, such as '{path / 'steps' / '000'}'"
            )
        part = "merged"
    path = path / (part or "")
    if not path.is_dir():
        raise PlanError(f"there is no folder '{path}': give one that shoal.save or a run made")
    if (path / NETWORK_FILE).exists():
        _check_origin(path)
        return read_network(path)
    if (path / PLAN_FILE).exists():
        return read_format1(path, model, trust=trust)
    if (path / WEIGHTS_FILE).exists():
        raise PlanError(f"'{path / NETWORK_FILE}' is missing: {WHOLE}")
    raise PlanError(f"'{path}' has no {NETWORK_FILE}: it was not made by shoal.save or a run")


def is_pushed(text: object) -> bool:
    """Return whether a text names a repository of the hub with a network that shoal pushed.

    Raises:
        FileError: the hub has no such repository, or cannot be reached.
    """
    if not is_on_hub(text):
        return False
    return (download(repository(str(text)), (NETWORK_FILE,)) / NETWORK_FILE).exists()


def _part_of(run: Path, step: int, part: str | None) -> str:
    """Return where the network of a step is in a run's folder."""
    if part is not None:
        raise ConfigError(f"part is '{part}' and step is {step}: give one of them")
    places = (path.name for path in (run / "steps").glob("[0-9]*"))
    known = sorted(int(name) for name in places if name.isdecimal())
    if not known:
        raise ConfigError(f"'{run}' is no run with steps: give the folder of one, or no step")
    if step not in known:
        raise ConfigError(f"the run in '{run}' has no step {step}: it has {_spans(known)}")
    return f"steps/{step:03d}"


def _spans(known: list[int]) -> str:
    whole = known == list(range(known[0], known[-1] + 1))
    return f"{known[0]} to {known[-1]}" if whole else ", ".join(map(str, known))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, finished or not."""
    return (folder / "identity.json").exists() or (folder / "result.json").exists()


def _check_origin(folder: Path) -> None:
    """Raise `PlanError` if a run's record speaks of another network than lies in the folder."""
    run = folder.resolve().parent
    records = [(folder / "step.json", NETWORK_FILE)]
    if (run / "identity.json").exists():
        records.append((run / "result.json", f"{folder.resolve().name}/{NETWORK_FILE}"))
    try:
        for record, name in records:
            if record.exists():
                check_file(record, read_sealed(record), name)
    except DamagedError as error:
        raise PlanError(f"{error}: {REMEDY}") from error
