"""Take layers out by hand, merge, measure and export: `python examples/merge_and_export.py`."""

import torch

import shoal


def main() -> None:
    torch.manual_seed(0)
    data = shoal.data.load_data("digits", train_samples=500)
    dense = shoal.capture(shoal.models.digits_resnet().eval(), data.example_inputs())

    network = dense.copy()
    shoal.drop_(network, ["layer1.1"])  # a residual block; its shortcut stays
    shoal.collapse_(network, ["layer2.1"], loader=data.train)  # one fitted layer for a block
    shoal.linearize_(network, ["layer1.0.relu"], loader=data.train)  # a line for a rectifier
    # … fine-tune here: a merge folds batch norms for good …

    report = shoal.merge_(network, data.val)  # exact, verified, and only what is faster here
    print(report)
    shoal.merge_(dense, policy="fold")  # what any runtime does to the dense network too
    images = data.example_inputs(batch=16)
    print(shoal.benchmark(network, images, baseline=dense, min_seconds=0.1))

    print(shoal.export(network, "digits.pt2"))  # "digits.onnx" for ONNX Runtime and others
    program = torch.export.load("digits.pt2").module()
    with torch.inference_mode():
        error = float((program(images) - network(images)).abs().max())
    print(f"largest difference between file and network: {error:.1e}")


if __name__ == "__main__":
    main()
