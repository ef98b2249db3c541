"""Rank rectifiers by a criterion of your own: `python examples/own_criterion.py`.

The command line takes it too: `--criterion examples/own_criterion.py:Magnitude`.
"""

from dataclasses import dataclass

import torch

import shoal


@shoal.register_criterion("magnitude")
class Magnitude(shoal.Criterion):
    """Scores each rectifier by the mean square of the weights of the layer before it."""

    place = "site"

    @dataclass(frozen=True, kw_only=True)
    class Options(shoal.Criterion.Options):
        """Options appear where those of built-in criteria do."""

        root: bool = shoal.option(False, "Take the square root.")

    options: Options

    def compute(self, network: shoal.Network, data: object) -> shoal.Scores:
        scores, before = {}, 0.0
        for node in network.graph.nodes:  # in the order of the forward pass
            layer = network.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(layer, torch.nn.Conv2d):
                before = float(layer.weight.detach().square().mean())
            elif node.target in {site.name for site in network.sites}:
                scores[node.target] = before**0.5 if self.options.root else before
        return shoal.Scores(self.name, scores, samples=0)  # looked at no data


def main() -> None:
    torch.manual_seed(0)
    data = shoal.data.load_data("digits", train_samples=500)
    network = shoal.capture(shoal.models.digits_resnet(), data.example_inputs())
    mine = shoal.score(network, data.train, "magnitude?root=true")
    theirs = shoal.score(network, data.train, "entropy", samples=200)
    for name in mine.lowest(3):
        print(f"{name}: magnitude {mine[name]:.3f}, entropy {theirs[name]:.3f} {theirs.unit}")
    shoal.linearize_(network, mine.lowest(3), loader=data.train)
    print(f"{network.sites_left} of {len(network.sites)} rectifiers left")


if __name__ == "__main__":
    main()
