"""A captured network is called, and answers, as the model is and does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call, captured, evaluate, names, same
from torch import Tensor, nn

from shoal.errors import CaptureError, NameNotFoundError
from shoal.network import capture


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.b = nn.Linear(5, 3)

    def forward(self, image: Tensor, text: Tensor, scale: Tensor | None = None) -> Tensor:
        out = F.relu(self.a(image) + self.b(text))
        return out if scale is None else out * scale


def two(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 4), torch.randn(batch, 5)


def test_several_inputs() -> None:
    model = TwoInputs()
    network = captured(model, two(2))
    image, text = two(3)
    expected = model(image, text)
    assert same(network(image, text), expected)
    assert same(network(image, text=text), expected)
    assert same(network(text=text, image=image), expected)


def test_keyword_inputs() -> None:
    model = TwoInputs()
    image, text = two(2)
    network = captured(model, {"text": text, "image": image, "scale": torch.ones(2, 1)})
    image, text = two(5)
    scale = torch.randn(5, 1)
    expected = model(image, text, scale)
    assert same(network(image=image, text=text, scale=scale), expected)
    assert same(network(image, text, scale), expected)
    assert same(network(image, scale=scale, text=text), expected)


@pytest.mark.parametrize("call", [lambda n, i, t: n(i), lambda n, i, t: n(i, t, t, t)])
def test_a_call_that_does_not_fit_says_what_fits(call: Callable[..., Any]) -> None:
    network = capture(TwoInputs(), two(2))
    with pytest.raises(CaptureError, match=r"\(image, text\)") as caught:
        call(network, *two(2))
    assert "\n" not in str(caught.value)


def test_nested_inputs() -> None:
    model = Call(lambda self, pair: self.a(pair["x"][0]) + pair["x"][1], a=nn.Linear(4, 4))
    example = {"x": (torch.randn(2, 4), torch.randn(2, 4))}
    network = capture(model, (example,))
    example = {"x": (torch.randn(3, 4), torch.randn(3, 4))}
    assert same(network(example), model(example))


def test_tuple_and_dictionary_outputs() -> None:
    def forward(self: nn.Module, x: Tensor) -> dict[str, Any]:
        z = self.a(x)
        return {"logits": F.relu(z), "rest": (z, [x.mean()]), "nothing": None}

    captured(Call(forward, a=nn.Linear(4, 4)), torch.randn(2, 4))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_any_batch_size_runs_after_capture_from_two(batch: int) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        z = F.relu(self.conv(x))
        token = self.token.expand(x.shape[0], -1, -1)
        tokens = torch.cat([token, z.flatten(2).transpose(1, 2)], dim=1)
        weights = (tokens @ tokens.transpose(1, 2)).softmax(-1)
        return (weights @ tokens).reshape(x.size(0), -1) + torch.zeros(x.shape[0], 1)

    model = Call(forward, conv=nn.Conv2d(3, 4, 3))
    model.register_parameter("token", nn.Parameter(torch.randn(1, 1, 4)))
    network = capture(model, torch.randn(2, 3, 6, 6))
    x = torch.randn(batch, 3, 6, 6)
    assert same(evaluate(network, x), evaluate(model, x))


def test_a_model_that_takes_no_single_sample_is_captured() -> None:
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU())
    network = captured(model, torch.randn(3, 4))
    with pytest.raises(ValueError, match="more than 1 value"):
        network(torch.randn(1, 4))


def test_children_may_have_the_names_of_the_networks_own_attributes() -> None:
    owned = (
        "blocks", "graph", "sites", "plan", "copy", "forward_features", "code", "site", "notes",
        "opaque", "0", "recompile", "node_of", "block", "example_inputs", "root", "name",
        "example", "sharing_copy",
    )  # fmt: skip

    class Clashing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in owned:
                layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
                self.add_module(name, nn.ModuleDict({"layers": layers}))

        def forward(self, x: Tensor) -> Tensor:
            for name in owned:
                x = self._modules[name]["layers"](x)
            return x

    network = captured(Clashing(), torch.randn(2, 4)).copy().double()
    assert names(network) == [f"{name}.layers.1" for name in owned]
    assert isinstance(network.get_submodule("blocks.layers.0"), nn.Linear)
    network.replace_module("graph.layers.1", nn.Identity())
    assert network.site("graph.layers.1").linearized == "identity"
    assert network.copy().eval()(torch.randn(3, 4).double()).shape == (3, 4)


def test_parameters_may_have_such_names_too() -> None:
    model = Call(lambda self, x: x * self._parameters["graph"] + self._buffers["plan"])
    model.register_parameter("graph", nn.Parameter(torch.ones(4)))
    model.register_buffer("plan", torch.ones(4))
    captured(model, torch.randn(2, 4))


def test_unknown_sites_and_modules_are_named_with_the_nearest() -> None:
    network = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    with pytest.raises(NameNotFoundError, match="unknown site '2'"):
        network.site("2")
    with pytest.raises(NameNotFoundError, match="unknown module"):
        network.node_of("nowhere")


def test_example_inputs_have_the_captured_shapes_and_fit() -> None:
    network = capture(TwoInputs(), {"image": torch.randn(2, 4), "text": torch.randn(2, 5)})
    args, kwargs = network.example_inputs(batch=7, seed=1)
    assert args == ()
    assert {k: tuple(v.shape) for k, v in kwargs.items()} == {"image": (7, 4), "text": (7, 5)}
    assert network(**kwargs).shape == (7, 3)
    again = network.example_inputs(batch=7, seed=1)[1]
    assert same(kwargs, again)
    assert not same(kwargs, network.example_inputs(batch=7, seed=2)[1])


def test_an_example_holds_all_inputs_by_position_and_by_keyword() -> None:
    image, text = two(2)
    network = capture(TwoInputs(), (image,), example_kwargs={"text": text})
    example = network.example(3, seed=1)
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "image": (3, 4), "text": (3, 5),
    }  # fmt: skip
    (image,), keywords = network.example_inputs(3, seed=1)
    assert same(network(**example), network(image, **keywords))
    positional = capture(TwoInputs(), two(2))
    assert same(positional.example(), positional.example_inputs()[0])


def test_example_inputs_follow_the_networks_type() -> None:
    network = capture(nn.Linear(4, 4), torch.randn(2, 4)).copy().to(torch.bfloat16)
    (x,), _ = network.example_inputs()
    assert network(x).dtype is torch.bfloat16


def test_other_image_sizes_are_refused_or_right() -> None:
    # Only the batch is free: a network whose code fixed the size must not answer something wrong.
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = capture(model, torch.randn(2, 3, 8, 8))
    x = torch.randn(2, 3, 12, 12)
    assert same(network(x), model(x))


# ---------------------------------------------------------------------- tools around it


def residual_model() -> nn.Module:
    return Call(
        lambda self, x: self.head(F.relu(self.bn(self.conv(x)) + x).mean((2, 3))),
        conv=nn.Conv2d(3, 3, 3, padding=1), bn=nn.BatchNorm2d(3), head=nn.Linear(3, 2),
    )  # fmt: skip


def test_torch_compile_takes_a_network() -> None:
    network = capture(residual_model(), torch.randn(2, 3, 6, 6)).eval()
    compiled = torch.compile(network, backend="eager")
    x = torch.randn(4, 3, 6, 6)
    assert same(compiled(x), network(x))


def test_torch_export_takes_a_network() -> None:
    network = capture(residual_model(), torch.randn(2, 3, 6, 6)).eval()
    x = torch.randn(4, 3, 6, 6)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(network, (x,), dynamic_shapes={"args": (batch,)}, strict=False)
    assert same(program.module()(x[:3]), network(x[:3]))
    assert set(program.state_dict) == set(network.state_dict())


def test_a_network_can_be_captured_from_a_model_that_holds_a_network() -> None:
    inner = capture(residual_model(), torch.randn(2, 3, 6, 6))
    model = nn.Sequential(inner, nn.ReLU())
    network = captured(model, torch.randn(2, 3, 6, 6))
    assert names(network) == ["0.relu", "1"]


def test_channels_last_and_autocast_work_as_on_the_model() -> None:
    model = residual_model().to(memory_format=torch.channels_last)
    network = capture(model, torch.randn(2, 3, 6, 6)).eval()
    x = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(network(x), model.eval()(x))


def test_the_forward_pass_can_be_read_as_source() -> None:
    network = capture(residual_model(), torch.randn(2, 3, 6, 6))
    assert "self.conv" in network.code
