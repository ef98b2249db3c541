"""Write a method of your own: `python examples/own_method.py`.

The command line takes it too, with its options as flags:
`shoal compress MODEL --data D --method examples/own_method.py:BackToFront --decay 0.99`.
"""

from dataclasses import dataclass

import torch

import shoal


@shoal.register_method("back_to_front")
class BackToFront(shoal.Method):
    """Replaces the last rectifier that is left by a line, and trains with two ideas of its own.

    A penalty keeps the inputs of the other rectifiers small; after each optimizer step the weights
    of linear layers shrink.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(shoal.Options):
        """What the method can be told."""

        weight: float = shoal.option(1e-3, "Weight of the penalty.")
        decay: float = shoal.option(1.0, "Factor of linear layers after each step.")

    def step(self, lab) -> bool:
        left = [site.name for site in lab.network.sites if site.linearized is None]
        if not left:
            return lab.done("no rectifier is left")
        lab.linearize(left[-1:])
        lab.train(penalty=self.size, at=left, after_step=self.shrink)
        return True

    def size(self, network, values) -> torch.Tensor:
        """Return the penalty; `values` holds what goes into each rectifier named by `at`."""
        return self.options.weight * sum(value.square().mean() for value in values.values())

    def shrink(self, network) -> None:
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.data.mul_(self.options.decay)

    def progress(self, lab) -> shoal.Progress:
        total = lab.base.sites_left
        return shoal.Progress(total - lab.network.sites_left, total, "rectifiers")


if __name__ == "__main__":
    data = shoal.data.load_data("digits", batch_size=64)
    model = shoal.models.digits_resnet(width=8)
    wanted = {"max_drop": 5.0, "dense_epochs": 2, "remove": 2, "decay": 0.999}
    print(shoal.compress(model, data.train, data.val, BackToFront, **wanted))
