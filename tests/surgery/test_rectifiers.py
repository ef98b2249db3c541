from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import shoal
from shoal.errors import NameNotFoundError, OptionError, RunError
from shoal.network.modules import Blend
from shoal.options import options_of
from shoal.search.options import SearchOptions
from shoal.surgery.linearize import replace_
from shoal.surgery.rectifiers import RECTIFIERS
from small_runs import SITES, captured, run


class Mixed(nn.Module):
    """ReLU6, a functional ReLU, one PReLU that is called twice, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu6 = nn.ReLU6()
        self.prelu = nn.PReLU(4, init=0.7)
        self.gelu = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.conv(self.relu6(x[:, :3])))
        return self.gelu(self.prelu(self.prelu(x) - 1))


def mixed() -> shoal.Network:
    torch.manual_seed(0)
    return shoal.capture(Mixed(), torch.randn(2, 3, 5, 5)).copy()


@pytest.mark.parametrize("kind", RECTIFIERS)
def test_all_rectifiers_become_of_one_kind_under_their_names(kind: str) -> None:
    network = mixed()
    names = [site.name for site in network.sites]
    (operation,) = shoal.swap_rectifiers_(network, kind)
    assert [(site.name, site.kind) for site in network.sites] == [(name, kind) for name in names]
    made = {type(network.get_submodule(name)) for name in operation.names}
    assert made == {type(RECTIFIERS[kind]())}
    assert operation.options == {"rectifier": kind}
    assert shoal.swap_rectifiers_(network, kind) == []


def test_the_network_computes_as_one_built_with_the_other_kind() -> None:
    network, model = mixed(), Mixed()
    model.load_state_dict(network.state_dict())
    shoal.swap_rectifiers_(network, "silu")
    x = torch.randn(2, 3, 5, 5)
    silu = nn.functional.silu
    wanted = silu(silu(silu(silu(model.conv(silu(x)))) - 1))
    torch.testing.assert_close(network(x), wanted)


def test_those_of_the_kind_keep_what_they_learned_and_each_new_one_is_its_own() -> None:
    network = mixed()
    learned = [network.get_submodule(s.name) for s in network.sites if s.kind == "prelu"]
    shoal.swap_rectifiers_(network, "prelu")
    made = [network.get_submodule(site.name) for site in network.sites]
    assert all(any(old is new for new in made) for old in learned)
    new = [m for m in made if not any(m is old for old in learned)]
    assert [module.weight.tolist() for module in new] == [[0.25]] * 3
    assert len({id(module.weight) for module in new}) == 3


def test_linearized_sites_stay_linear() -> None:
    network = mixed()
    name = network.sites[1].name
    shoal.linearize_(network, [name], how="identity")
    (operation,) = shoal.swap_rectifiers_(network, "relu")
    assert network.site(name).linearized == "identity"
    assert name not in operation.names


def test_a_swapped_network_is_saved_and_merged_like_any(tmp_path: Path) -> None:
    network = mixed().eval()
    shoal.swap_rectifiers_(network, "prelu")
    shoal.save(network, tmp_path / "net")
    again, x = shoal.load(tmp_path / "net").eval(), torch.randn(2, 3, 5, 5)
    assert torch.equal(again(x), network(x))
    assert [site.kind for site in again.sites] == ["prelu"] * 5
    shoal.linearize_(again, [again.sites[0].name], how="identity")
    assert shoal.merge_(again).max_rel_error <= 1e-5


def test_a_rectifier_that_would_write_in_place_leaves_the_shortcut_as_it_is(tmp_path: Path) -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return x + self.b(self.act(x))

    torch.manual_seed(0)
    network, x = shoal.capture(Shortcut().eval(), torch.randn(2, 4)), torch.randn(16, 4)
    expected = network.copy()
    replace_(network, {"act": nn.LeakyReLU(0.2, inplace=True)})
    replace_(expected, {"act": nn.LeakyReLU(0.2)})
    assert torch.equal(network(x), expected(x))
    assert torch.equal(shoal.load(shoal.save(network, tmp_path / "net"))(x), network(x))


def test_other_kinds_are_refused() -> None:
    with pytest.raises(NameNotFoundError, match="unknown rectifier 'rely': did you mean 'relu'"):
        shoal.swap_rectifiers_(mixed(), "rely")
    with pytest.raises(OptionError, match="rectifier is 'elu': give one of gelu"):
        SearchOptions(rectifier="elu")
    known = {known.name: known for known in options_of(SearchOptions)}["rectifier"]
    assert known.check is not None
    assert set(known.check.choices) == set(RECTIFIERS)


def test_a_search_swaps_before_the_dense_training_and_goes_on_in_its_folder(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    options = {"dense_epochs": 1, "epochs": 1, "max_drop": 100.0, "remove": 1}
    kinds = [site.kind for site in captured().sites]
    result = run(out, rectifier="gelu", **options)
    assert {site.kind for site in result.model.sites} == {"gelu"}
    assert [site.kind for site in captured().sites] == kinds  # the model is left as it is
    assert len(result.model.sites) == len(SITES)
    dense = shoal.load(out, step=0)
    assert all(isinstance(dense.get_submodule(s.name), nn.GELU) for s in dense.sites)
    assert not any("give dense_epochs" in note for note in result.notes)
    again = run(out, rectifier="gelu", **options | {"remove": 2})
    assert [step.names for step in again.steps[:2]] == [step.names for step in result.steps]
    with pytest.raises(RunError, match=r"rectifier was \"gelu\" and is \"silu\""):
        run(out, rectifier="silu", **options)


def test_without_training_a_note_says_so() -> None:
    result = run(None, rectifier="silu", epochs=0, max_drop=100.0, remove=1)
    assert any("not trained with them: give dense_epochs" in note for note in result.notes)


def test_a_network_in_which_nothing_is_swapped_is_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.SiLU(), nn.Linear(8, 10))
    result = run(model=model, rectifier="silu", epochs=0, remove=1)
    assert any("was swapped: all are silu already" in note for note in result.notes)


def test_the_kind_of_a_site_is_that_of_the_rectifier_put_there() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    net = shoal.capture(model.eval(), torch.randn(2, 4))
    kinds = {
        "gelu": nn.GELU(), "relu6": nn.ReLU6(), "hardtanh": nn.Hardtanh(0.0, 4.0),
        "prelu": nn.PReLU(),
    }  # fmt: skip
    for kind, module in kinds.items():
        replace_(net, {"1": module})
        assert net.site("1").kind == kind
    (operation,) = shoal.swap_rectifiers_(net, "relu")
    assert operation.names == ("1",)
    assert net.site("1").kind == "relu"
    assert isinstance(net.get_submodule("1"), nn.ReLU)


def test_a_site_that_becomes_linear_by_and_by_keeps_its_kind() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    net = shoal.capture(model.eval(), torch.randn(2, 4))
    replace_(net, {"1": Blend(net.get_submodule("1"))})
    assert net.site("1").kind == "gelu"
    replace_(net, {"1": nn.Identity()})
    assert (net.site("1").kind, net.site("1").linearized) == ("gelu", "identity")
