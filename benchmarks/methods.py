"""All methods at an equal number of training epochs: accuracy, latency, time; mean and spread.

A dense network is first trained on the data at hand, once per seed. Each method then starts from
it and trains for the same number of epochs in all; what its steps leave of them is spent on the
result. Methods for rectifiers remove the same number of these, those for blocks the same number of
blocks; SNL, DeepReDuce, EGP and NEPENTHE have a rule of their own for how many, which the table
tells. The dense network itself trains on for as many epochs, as a control. Trials that a method
trains on copies are not counted as epochs, but their time is. "As published" moves no paddings.

    python benchmarks/methods.py --data folder:cifar10-jpeg --model shoal:cifar_resnet20 \
        --checkpoint resnet20.th --train-samples 10000 --val-samples 2500 --out runs/methods \
        --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225

    python benchmarks/methods.py --data pacs:PACS --model timm:tf_efficientnet_lite0 \
        --checkpoint tf_efficientnet_lite0-fp16.safetensors --image-size 128 --train-samples 1500 \
        --val-samples 500 --epochs 4 --sites 4 --blocks 2 --dense-epochs 3 --lr 0.01 --seeds 0 \
        --only dense "EASIER 2" "Layer Folding" EGP "layer pruning" shoal --out runs/pacs

    python benchmarks/methods.py --data digits --model shoal:digits_resnet --dense-epochs 10 \
        --epochs 4 --sites 4 --blocks 2 --seeds 0 --out runs/trial

What is finished is kept in `--out`: the same command goes on after a stop, and the table is written
anew after each run. A system that fails is named, and the others go on. `--seeds` may name some of
them: what `methods.json` holds of others stays in the table. `--jobs 2` trains two systems at a
time, which share the threads: on two cores that is faster than one after the other for networks as
small as these. Last, and alone, so that other work beside the training does no harm, all results of
a seed are merged for ONNX Runtime and measured there in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import shoal
import shoal.methods
from shoal.data import DataSet, load_data
from shoal.files import write_file
from shoal.measure import InRuntime, count_macs, depth
from shoal.models import load_checkpoint, load_model
from shoal.report.markdown import markdown
from shoal.report.table import Column, Row, Table
from shoal.search.ending import folded
from shoal.search.gauge import Data, Gauge
from shoal.search.method import methods
from shoal.search.records import Result
from shoal.training import evaluate, fit

RUNTIME = "onnxruntime"
CONTROL = "dense, trained as long"

Facts = dict[str, Any]  # what the table needs of a system and a seed


def systems(epochs: int, sites: int, blocks: int) -> dict[str, dict[str, Any]]:
    """Return each system's options; none spends more than `epochs` after the dense network."""

    def by_site(**options: Any) -> dict[str, Any]:
        return in_steps(sites, options.pop("per_step", 1), **options)

    def in_steps(count: int, per_step: int, **options: Any) -> dict[str, Any]:
        steps = -(-count // per_step)
        return {"epochs": epochs // steps, "per_step": per_step, "remove": count, **options}

    as_published = {"move_padding": False}
    half = epochs // 2
    rounds = min(4, epochs)
    egp = {"method": "egp", "epochs": epochs // rounds, "rounds": rounds}
    tlc = {"method": "tlc", "inputs": "data", "epochs": epochs // sites, "remove": sites}
    lacoot = {"method": "lacoot", "remove": blocks}
    wasserstein = {"optimise": 0, "relative": False, "distance_weight": 5.0, "rank": "distance"}
    tuned = half // blocks  # epochs after each block
    shoals = {"method": "shoal", "epochs": epochs // sites, "remove": sites}
    every = {
        "EASIER": by_site(method="easier"),
        "EASIER, as published": by_site(method="easier", how="identity", **as_published),
        "EASIER 2×": by_site(method="easier", per_step=2),
        "EASIER 4×": by_site(method="easier", per_step=4),
        "EASIER, one-shot": by_site(method="easier", per_step=sites),
        "EASIER by line_loss": by_site(method="easier", criterion="line_loss"),
        "entropy in the loss": by_site(method="differentiable"),
        "TLC": tlc,
        "TLC, as published": {
            **tlc,
            **as_published,
            "inputs": "norm",
            "replace": "mask",
            "overshoot": True,
        },
        f"Layer Folding, top {sites}": {
            "method": "layer_folding",
            "epochs": half,
            "slope_epochs": epochs - half,
            "top_k": sites,
        },
        "SNL": {"method": "snl", "epochs": half, "search_epochs": epochs - half},
        "DeepReDuce": {"method": "deepreduce", "epochs": half, "trial_epochs": 1},  # two steps
        "EGP": egp,
        "NEPENTHE": {**egp, "zeros": "exclude", "pooling": "all"},
        "random rectifiers": by_site(method="random"),
        "rectifiers by magnitude": by_site(method="magnitude"),
        "layer pruning": in_steps(blocks, 1, method="layer_pruning"),
        "LaCoOT": {**lacoot, "epochs": epochs - tuned * blocks, "tune_epochs": tuned},
        "LaCoOT, as published": {**lacoot, **wasserstein, **as_published, "epochs": epochs},
        "random blocks": in_steps(blocks, 1, method="random", place="block"),
        "blocks by magnitude": in_steps(blocks, 1, method="magnitude", place="block"),
        "shoal": shoals,
        "shoal, to 0.6 of the latency": {**shoals, "target_latency": 0.6},
    }
    return {name: chosen for name, chosen in every.items() if chosen["method"] in methods.names()}


def dense(options: argparse.Namespace, seed: int) -> Any:
    """Return a seed's dense network; it is trained once and then read.

    Of a checkpoint all but the last layer is taken where it has other classes.
    """
    data = data_of(options, seed)
    model = load_model(options.model, num_classes=data.num_classes)
    path = options.out / f"dense{seed}.pt"
    if path.exists():
        load_checkpoint(model, path)
    elif options.checkpoint:
        load_checkpoint(model, options.checkpoint, strict=False)
    if not path.exists():
        recipe = {"lr": options.dense_lr or options.lr}
        fit(model, data.train, epochs=options.dense_epochs, recipe=recipe, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda temporary: torch.save(model.state_dict(), temporary))
    return model


def folder_of(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return Path(options.out, f"seed{seed}", "".join(c if c.isalnum() else "_" for c in name))


def data_of(options: argparse.Namespace, seed: int) -> DataSet:
    """Return the data, with what the command says of them."""
    asked = ("train_samples", "val_samples", "image_size", "augment")
    wanted = {option: getattr(options, option) for option in asked}
    channels = {name: tuple(getattr(options, name) or ()) for name in ("mean", "std")}
    return read_data(options.data, seed, **wanted, **channels)


@lru_cache(maxsize=1)  # the systems of a seed come one after the other
def read_data(
    spec: str, seed: int, mean: tuple[float, ...], std: tuple[float, ...], **wanted: Any
) -> DataSet:
    """Return the data of a seed."""
    return load_data(spec, seed=seed, mean=mean or None, std=std or None, **wanted)


def control(options: argparse.Namespace, seed: int) -> Facts:
    """Return the facts of the dense network, trained for as long as the systems are."""
    kept = folder_of(options, CONTROL, seed) / "facts.json"
    if kept.exists():
        known: Facts = json.loads(kept.read_text())
        return known
    data, model = data_of(options, seed), dense(options, seed)
    network, before = shoal.capture(model, data.example_inputs()), evaluate(model, data.test)
    start = time.perf_counter()
    fit(model, data.train, epochs=options.epochs, recipe={"lr": options.lr}, seed=seed)
    minutes = (time.perf_counter() - start) / 60.0
    accuracy = evaluate(model, data.test).quality
    found = {
        "removed": 0,
        "total": len(network.sites),
        "unit": "rectifiers",
        "epochs": options.epochs,
        "top1_test": accuracy,
        "change": accuracy - before.quality,
        "depth": depth(network),
        "macs": 1.0,
        "speedup": 1.0,
        "minutes": minutes,
        "notes": [],
        "by_step": [],
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))
    return found


def run(options: argparse.Namespace, name: str, chosen: dict[str, Any], seed: int) -> Result:
    """Return a system's result; what was done before is read from its folder."""
    data = data_of(options, seed)
    gauge = Gauge(Data(data.train, data.val, data.test), everywhere=False)  # `measure` comes later
    folder = folder_of(options, name, seed)
    common = {"out": folder, "max_drop": 100.0, "slack": 0.0, "seed": seed}
    common |= {"test": data.test, "gauge": gauge}
    if chosen["method"] != "shoal":  # whose recipe is a gentler one, with the dense network's help
        common["lr"] = options.lr
    model = dense(options, seed)
    left = folder / "left.json"  # epochs for the result, once the steps are done
    if not left.exists():
        result = shoal.compress(model, data.train, data.val, **common, **chosen)
        spent = sum(step.epochs for step in result.steps)
        left.write_text(json.dumps(max(0, options.epochs - spent)))
    common["final_epochs"] = json.loads(left.read_text())
    return shoal.compress(model, data.train, data.val, **common, **chosen)


def facts(result: Result) -> Facts:
    """Return a result's facts; accuracies on test images, in percent."""
    dense_accuracy, accuracy = result.dense.top1_test, result.final.top1_test
    assert dense_accuracy is not None
    assert accuracy is not None
    return {
        "removed": result.removed,
        "total": result.total,
        "unit": result.unit,
        "epochs": sum(step.epochs for step in result.steps),
        "top1_test": accuracy,
        "change": accuracy - dense_accuracy,
        "depth": None,  # these three are of the merged network, by `measure`
        "macs": None,
        "speedup": None,
        "minutes": sum(step.seconds for step in result.steps) / 60.0,
        "notes": [note for step in result.steps for note in step.notes],
        "by_step": [(step.removed, step.metrics.top1_test) for step in result.steps],
    }


def tried(options: argparse.Namespace, work: tuple[str, int]) -> Facts | str:
    """Return the facts of a system and a seed, or why it failed."""
    name, seed = work
    chosen = systems(options.epochs, options.sites, options.blocks)
    try:
        if name == CONTROL:
            return control(options, seed)
        return facts(run(options, name, chosen[name], seed))
    except Exception as error:  # of whatever kind: the others go on
        return f"{type(error).__name__}: {error}"


@contextmanager
def at_a_time(
    options: argparse.Namespace, work: Sequence[tuple[str, int]]
) -> Iterator[Iterator[Facts | str]]:
    """Give what `tried` finds of each piece of work, in order, `--jobs` at a time."""
    todo = partial(tried, options)
    if options.jobs == 1:
        yield map(todo, work)
        return
    with ProcessPoolExecutor(
        options.jobs,
        multiprocessing.get_context("spawn"),
        torch.set_num_threads,
        (threads_of(options),),
    ) as pool:
        yield pool.map(todo, work)


def threads_of(options: argparse.Namespace) -> int:
    """Return how many threads each system trains on."""
    return max(1, torch.get_num_threads() // options.jobs)


def measure(options: argparse.Namespace, rows: dict[str, dict[int, Facts]], seed: int) -> None:
    """Merge each system's result for the runtime, and add to a seed's facts how fast it is there.

    All are timed in the same rounds.
    """
    every = {name: folder_of(options, name, seed) for name in rows if seed in rows[name]}
    folders = {name: folder for name, folder in every.items() if (folder / "best").exists()}
    if not folders:
        return
    start = folded(shoal.load(next(iter(folders.values())), step=0))
    args, kwargs = start.example_inputs(1)
    work = count_macs(start, kwargs or args).total
    networks = {}
    for name, folder in folders.items():
        networks[name] = shoal.load(folder, "best").eval()
        report = shoal.merge_(networks[name], runtime=RUNTIME)
        rows[name][seed] |= {"depth": report.depth_after, "macs": work / report.macs_after}
    made = InRuntime(RUNTIME, {**networks, "dense": start}, kwargs or args)
    found = made.measure(kwargs or args, "dense", min_seconds=30.0, max_seconds=120.0)
    for name in networks:
        if name in found.latencies:
            rows[name][seed]["speedup"] = found.ratio(name).median
            rows[name][seed]["doubt"] = found.ratio(name).doubt


def spread(values: Sequence[float | None], form: str) -> str:
    """Return mean ± standard deviation over seeds, "–" where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    more = f" ± {stdev(known):{form.lstrip('+')}}" if len(known) > 1 else ""
    return f"{fmean(known):{form}}{more}"


def row_of(name: str, found: Sequence[Facts]) -> Row:
    """Return a system's row, over its seeds."""

    def over(key: str, form: str) -> str:
        return spread([one[key] for one in found], form)

    removed = f"{over('removed', '.1f')} of {found[0]['total']} {found[0]['unit']}"
    figures = (over("top1_test", ".2f"), over("change", "+.2f"), over("speedup", ".2f"))
    more = (
        over("macs", ".2f"),
        over("depth", ".1f"),
        over("epochs", ".0f"),
        over("minutes", ".1f"),
    )
    return Row((name, removed, *figures, *more, str(len(found))))


def table_of(rows: dict[str, list[Facts]], title: str) -> Table:
    """Return the table of all systems, the best on test first among those that remove alike."""
    columns = (
        Column("system", align="left"),
        Column("removed"),
        Column("test top-1, %"),
        Column("change, points"),
        Column("ONNX Runtime, dense / this"),
        Column("MACs, dense / this"),
        Column("depth"),
        Column("epochs"),
        Column("minutes"),
        Column("seeds"),
    )
    order = sorted(rows, key=lambda name: -fmean(one["change"] for one in rows[name]))
    order.sort(key=lambda name: rows[name][0]["unit"])
    note = (
        "Mean ± standard deviation over seeds; latency of the merged networks at batch 1, those of "
        "a seed from the same rounds."
    )
    return Table(title, columns, tuple(row_of(name, rows[name]) for name in order), (note,))


def title_of(options: argparse.Namespace) -> str:
    """Return the table's title: what ran, for how long and on what."""
    machine = f"{platform.processor() or platform.machine()}, PyTorch {torch.__version__}"
    threads = f"trained {options.jobs} at a time, {threads_of(options)} threads each"
    return (
        f"{options.model} on {Path(options.data).name}, {options.epochs} epochs for each system "
        f"({machine}, {threads})"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not there yet, and write the table after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="as `shoal compress` takes it")
    parser.add_argument("--model", default="shoal:cifar_resnet20", help="likewise")
    parser.add_argument("--checkpoint", type=Path, help="weights to start from")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--val-samples", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--mean", type=float, nargs="+", help="of the channels, for the weights")
    parser.add_argument("--std", type=float, nargs="+", help="likewise")
    parser.add_argument("--augment", default="auto")
    parser.add_argument("--epochs", type=int, default=16, help="after the dense network, in all")
    parser.add_argument("--sites", type=int, default=8, help="rectifiers to remove")
    parser.add_argument("--blocks", type=int, default=4, help="blocks to remove")
    parser.add_argument("--dense-epochs", type=int, default=2)
    parser.add_argument("--dense-lr", type=float)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", help="systems, by the beginning of their names")
    parser.add_argument("--jobs", type=int, default=1, help="systems at a time")
    options = parser.parse_args(arguments)
    if options.epochs < max(options.sites, options.blocks):
        parser.error("epochs must be at least sites and blocks: one for each removal")
    names = (CONTROL, *systems(options.epochs, options.sites, options.blocks))
    if options.only:
        names = tuple(name for name in names if name.startswith(tuple(options.only)))
    work = [(name, seed) for seed in options.seeds for name in names]
    for seed in options.seeds:
        dense(options, seed)
    rows = read(options, work)
    failed = []
    with at_a_time(options, work) as results:
        for (name, seed), found in zip(work, results, strict=True):
            if isinstance(found, str):
                failed.append(name)
                print(f"seed {seed}, {name}: failed: {found}", flush=True)
                continue
            rows.setdefault(name, {})[seed] = found
            print(f"seed {seed}, {name}: {found['change']:+.2f} points", flush=True)
            write(options, rows)
    for seed in options.seeds:
        measure(options, rows, seed)
    print(write(options, rows))
    if failed:
        sys.exit(f"{len(failed)} failed: the same command tries them again")


def read(
    options: argparse.Namespace, work: Sequence[tuple[str, int]]
) -> dict[str, dict[int, Facts]]:
    """Return what is known of systems and seeds that are not run now."""
    path = options.out / "methods.json"
    rows: dict[str, dict[int, Facts]] = {}
    for name, known in json.loads(path.read_text() if path.exists() else "{}").items():
        for seed, found in known.items():
            if (name, int(seed)) not in work:
                rows.setdefault(name, {})[int(seed)] = found
    return rows


def write(options: argparse.Namespace, rows: dict[str, dict[int, Facts]]) -> str:
    """Write all that is known by now, and return the table."""
    by_seed = {name: [known[seed] for seed in sorted(known)] for name, known in rows.items()}
    text = markdown(table_of(by_seed, title_of(options)))
    (options.out / "methods.json").write_text(json.dumps(rows, indent=2) + "\n")
    (options.out / "methods.md").write_text(text)
    return text


if __name__ == "__main__":
    main()
