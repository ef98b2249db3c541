"""Fine-tune with a training loop of your own: `python examples/own_training.py`."""

import torch
from torch.nn.functional import cross_entropy

import shoal


def main() -> None:
    torch.manual_seed(0)
    data = shoal.data.load_data("digits", batch_size=64)
    model = shoal.models.digits_resnet(width=8)

    def train(network: torch.nn.Module) -> None:
        """Train in place; the optimizer is made here, since the network differs after each step."""
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        network.train()
        for images, labels in data.train:
            loss = cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    for _ in range(3):
        train(model)
    result = shoal.compress(
        model,
        data.train,
        data.val,
        method="layer_pruning?criterion=block_influence",  # whole residual blocks go
        max_drop=5.0,
        remove=2,
        fit=train,  # called after each removal
    )
    print(f"dropped {', '.join(result.plan.names('drop')) or 'nothing'}")
    print(result)


if __name__ == "__main__":
    main()
