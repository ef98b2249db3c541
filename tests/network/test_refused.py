"""A module made from the model is refused in one line that says what to give instead."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import shoal
from shoal.errors import CaptureError
from shoal.network import capture


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(small(), (torch.randn(2, 3),))


def quantized() -> nn.Module:
    from torch.ao.nn.quantized.dynamic import Linear

    layer: nn.Module = Linear(3, 4)
    return nn.Sequential(layer, nn.ReLU())


class Codes(Tensor):
    """A weight that is stored as something else, as libraries of quantization have it."""

    codes: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor) -> Codes:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.ops.aten.detach.default else NotImplemented


def with_codes() -> nn.Module:
    model = small()
    codes = Codes(torch.ones(4, 3, dtype=torch.int8))
    model[0].weight = nn.Parameter(codes, requires_grad=False)
    return model


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "traced": (lambda: torch.jit.trace(small(), torch.randn(2, 3)), "the model is TorchScript"),
    "scripted": (lambda: torch.jit.script(small()), "the model is TorchScript"),
    "part": (lambda: nn.Sequential(torch.jit.script(small())), "the layer '0' is TorchScript"),
    "exported": (exported, "the model is an ExportedProgram"),
    "its module": (lambda: exported().module(), "the model is a module of torch.export"),
    "quantized": (quantized, "the layer '0' is quantized (Linear)"),
    "coded": (with_codes, "the parameter '0.weight' is a Codes"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), "the layer '0' is not initialized yet"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_to_give_instead_is_said_in_one_line(name: str) -> None:
    make, start = CASES[name]
    with pytest.raises(CaptureError) as caught:
        capture(make(), torch.randn(2, 3))
    text = str(caught.value)
    assert text.startswith(start)
    assert "give the" in text or "call the model once" in text
    assert "\n" not in text
    assert len(text) < 200


def test_a_distributed_model_is_refused_before_anything_waits() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(small())
        data = [(torch.randn(2, 3), torch.tensor([0, 1]))]
        for use in (
            lambda: capture(model, torch.randn(2, 3)),
            lambda: shoal.compress(model, data, data, epochs=0),
        ):
            with pytest.raises(CaptureError, match=r"give model\.module"):
                use()
        assert capture(model.module, torch.randn(2, 3)).sites
    finally:
        torch.distributed.destroy_process_group()


def test_what_only_looks_like_one_of_them_is_captured() -> None:
    x = torch.randn(2, 3)
    traced = fx.symbolic_trace(small())
    for model in (traced, nn.DataParallel(small()), torch.compile(small(), backend="eager")):
        assert len(capture(model, x).sites) == 1
