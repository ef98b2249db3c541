"""Train a network from random weights, for the benchmarks that need one nobody publishes.

    python benchmarks/train_dense.py --model shoal:cifar_resnet56 --data folder:cifar10-jpeg \
        --epochs 12 --out runs/resnet56.pt

The checkpoint beside `--out` lets the same command go on where it was interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from shoal.data import load_data
from shoal.files import write_file
from shoal.models import load_model
from shoal.training import Recipe, evaluate, fit


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="shoal:cifar_resnet56")
    parser.add_argument("--data", required=True, help="as for `shoal compress`")
    parser.add_argument("--train-samples", type=int, default=None, help="default: all")
    parser.add_argument("--val-samples", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--mean", nargs="+", type=float, default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", nargs="+", type=float, default=[0.229, 0.224, 0.225])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True, help="the file of weights")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    data = load_data(
        options.data,
        train_samples=options.train_samples,
        val_samples=options.val_samples,
        batch_size=options.batch_size,
        eval_batch_size=250,
        mean=options.mean,
        std=options.std,
        augment="flip_crop",
        seed=options.seed,
        device=options.device,
    )
    torch.manual_seed(options.seed)
    model = load_model(options.model, num_classes=data.num_classes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = fit(
        model,
        data.train,
        epochs=options.epochs,
        recipe=Recipe(lr=options.lr, warmup_epochs=1.0),
        seed=options.seed,
        checkpoint=options.out.with_suffix(".part"),
        on_epoch=lambda epoch: print(epoch, flush=True),
        device=options.device,
    )
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    write_file(options.out, lambda temporary: torch.save(state, temporary))
    accuracies = {"validation": evaluate(model, data.val).top1}
    if data.test is not None:
        accuracies["test"] = evaluate(model, data.test).top1
    text = ", ".join(f"{name} {value:.2f} %" for name, value in accuracies.items())
    print(f"{options.out}: {text}; {report.seconds:.0f} s")


if __name__ == "__main__":
    main()
