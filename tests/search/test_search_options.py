"""What the options of a search refuse, and what those of a single training change."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import ConfigError, NameNotFoundError
from shoal.search import coach
from shoal.search.options import SearchOptions
from small_runs import run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dense_lr": 0.1}, "dense_lr is given without dense_epochs"),
        ({"dense_recipe": "vit"}, "dense_recipe is given without dense_epochs"),
        ({"final_lr": 0.1}, "final_lr is given without final_epochs"),
        ({"dense_lr": 0.0, "dense_epochs": 1}, "dense_lr is 0.0"),
    ],
)
def test_what_concerns_a_training_needs_its_epochs(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SearchOptions(**options)


def test_an_unknown_recipe_of_the_dense_network_is_told_with_the_nearest() -> None:
    with pytest.raises(NameNotFoundError, match="'finetun': did you mean 'finetune'"):
        SearchOptions(dense_recipe="finetun", dense_epochs=1)


def test_training_from_scratch_has_a_recipe_and_a_rate_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    real = coach.fit

    def fit(network: Any, train: Any, **options: Any) -> Any:
        seen.append(options["recipe"])
        return real(network, train, **options)

    monkeypatch.setattr(coach, "fit", fit)
    dense = {"dense_epochs": 1, "dense_recipe": "easier_cifar", "dense_lr": 0.05}
    run(remove=1, recipe={"lr": 0.02, "precision": "fp32", "distill": 0.5}, **dense)
    first, after = seen
    assert (first.schedule, first.decay_all, first.lr) == ("step", True, 0.05)
    assert (first.precision, first.distill) == ("fp32", 0.0)
    assert (after.schedule, after.lr, after.distill) == ("cosine", 0.02, 0.5)
