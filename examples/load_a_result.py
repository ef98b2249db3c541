"""Load the result of a run, use it and train it on: `python examples/load_a_result.py`."""

import torch

import shoal


def main() -> None:
    torch.manual_seed(0)
    data = shoal.data.load_data("digits", batch_size=64)
    shoal.compress(  # or, on the command line, shoal compress … --out runs/small
        shoal.models.digits_resnet(width=8),
        data.train,
        data.val,
        method="easier",
        dense_epochs=1,
        remove=1,
        max_drop=5.0,
        out="runs/small",
    )

    network = shoal.load("runs/small")  # merged, to use; needs no source of the model
    images, labels = next(iter(data.val))
    with torch.inference_mode():
        right = (network(images).argmax(1) == labels).float().mean()
    print(f"{100 * right:.1f} % of {len(images)} validation images are right")

    best = shoal.load("runs/small", "best")  # as it was trained, to train on
    print([f"{operation.kind} {', '.join(operation.names)}" for operation in best.plan.operations])
    optimizer = torch.optim.SGD(best.train().parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(best(images), labels).backward()
    optimizer.step()
    shoal.save(best.eval(), "runs/trained_on")

    first = shoal.load("runs/small", "steps/000")  # the dense network; each step is kept
    print(f"{first.sites_left} rectifiers in the dense network, {best.sites_left} in the result")


if __name__ == "__main__":
    main()
