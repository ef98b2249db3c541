"""What cannot be captured is said in one line, with the user's own line of code where it helps."""

from __future__ import annotations

import linecache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call
from torch import Tensor, nn

from shoal.errors import CaptureError, ShoalError
from shoal.network import capture

HERE = Path(__file__).name


def message(model: Any, inputs: Any, **options: Any) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, inputs, **options)
    text = str(caught.value)
    assert isinstance(caught.value, ShoalError)
    assert "\n" not in text
    assert len(text) < 700
    return text


def test_a_single_sample_is_too_small() -> None:
    text = message(nn.Linear(4, 4), torch.randn(1, 4))
    assert "1 sample" in text
    assert "at least 2" in text


def test_an_empty_batch_is_too_small() -> None:
    assert "0 samples" in message(nn.Linear(4, 4), torch.randn(0, 4))


@pytest.mark.parametrize("model", [F.relu, nn.Linear, {"a": 1}, None])
def test_only_modules_are_captured(model: Any) -> None:
    assert "torch.nn.Module" in message(model, torch.randn(2, 4))


@pytest.mark.parametrize("inputs", [3, "images", None])
def test_example_inputs_of_another_type_are_refused(inputs: Any) -> None:
    assert "example_inputs must be" in message(nn.Linear(4, 4), inputs)


def test_example_inputs_without_a_tensor_are_refused() -> None:
    assert "no tensor" in message(nn.Linear(4, 4), (3,))


def test_example_inputs_with_different_batches_are_refused() -> None:
    model = Call(lambda self, x, y: x + y.sum())
    assert "[2, 3]" in message(model, (torch.randn(2, 4), torch.randn(3, 4)))


def test_example_inputs_that_do_not_fit_forward_are_refused() -> None:
    class OneInput(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image

    assert "OneInput.forward" in message(OneInput(), (torch.randn(2, 4), torch.randn(2, 4)))
    assert "image" in message(OneInput(), {"picture": torch.randn(2, 4)})


def test_a_shape_that_the_model_does_not_take_names_the_cause() -> None:
    text = message(nn.Sequential(nn.Linear(5, 4)), torch.randn(2, 4))
    assert "Sequential" in text
    assert "2x4 and 5x4" in text


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1) + 1


def test_control_flow_on_data_names_the_users_own_line() -> None:
    text = message(DataDependent(), torch.randn(2, 4))
    assert f"{HERE}:" in text
    assert "`if x.sum() > 0:`" in text


def test_a_fixed_batch_size_is_said_to_be_one() -> None:
    text = message(FixedBatch(), torch.randn(2, 4))
    assert "fixes its batch size to 2" in text
    assert "x.shape[0]" in text


def test_a_fixed_batch_size_deep_inside_names_its_line() -> None:
    model = nn.Sequential(nn.Linear(4, 4), FixedBatch())
    assert "x.shape[0]" in message(model, torch.randn(2, 4))


def test_a_model_from_a_users_file_is_located_there(tmp_path: Path) -> None:
    source = (
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x[:int(x.max())]\n"
    )
    path = tmp_path / "site_models.py"
    path.write_text(source)
    scope: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), scope)
    assert "site_models.py:4 `return x[:int(x.max())]`" in message(scope["Net"](), torch.ones(2))


def test_a_model_from_a_notebook_cell_is_located_there() -> None:
    # IPython compiles a cell under a name that is no file, and puts its lines into linecache.
    source = (
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x * x.sum().item() if x.max() > 1 else x\n"
    )
    name = "<ipython-input-3-a1b2c3>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    scope: dict[str, Any] = {}
    exec(compile(source, name, "exec"), scope)
    text = message(scope["Net"](), torch.ones(2, 2))
    assert "`return x * x.sum().item() if x.max() > 1 else x`" in text
    del linecache.cache[name]


@pytest.mark.parametrize("value", [3, "class", torch.float32])
def test_outputs_that_are_no_tensors_at_all_are_refused(value: Any) -> None:
    model = Call(lambda self, x: value)
    assert "tensor" in message(model, torch.randn(2, 4))


def test_a_model_that_is_random_in_eval_mode_is_told_so() -> None:
    model = Call(lambda self, x: F.dropout(self.a(x), 0.5), a=nn.Linear(8, 8))
    text = message(model, torch.randn(4, 8))
    assert "eval mode" in text
    assert "same inputs" in text


def test_a_model_that_counts_its_calls_into_the_output_is_told_so() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + self.calls

    model = Counting()
    assert "eval mode" in message(model, torch.randn(4, 8))
    assert model.calls == 0


def test_without_the_check_a_random_model_is_captured() -> None:
    model = Call(lambda self, x: F.dropout(self.a(x), 0.5), a=nn.Linear(8, 8))
    network = capture(model, torch.randn(4, 8), check=False)
    assert "random" in network.opaque[0].reason


def test_a_model_with_a_python_side_effect_says_where_it_differs() -> None:
    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.first(x) * (1 if self.calls == 1 else 2)

    assert "differ" in message(Alternating(), torch.randn(2, 4))


def test_an_output_of_an_unknown_class_is_refused() -> None:
    class Result:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    model = Call(lambda self, x: Result(x + 1))
    assert "Result" in message(model, torch.randn(2, 4))


class Recurrent(nn.Module):
    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.layer, self.packed = nn.GRU(4, 8, batch_first=True), packed

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        if not self.packed:
            return self.layer(x, extra)[0]
        pack = nn.utils.rnn.pack_padded_sequence
        _, state = self.layer(pack(x, extra, batch_first=True, enforce_sorted=False))
        return state[-1]


def test_packed_sequences_are_named() -> None:
    text = message(Recurrent(packed=True), (torch.randn(2, 5, 4), torch.tensor([5, 3])))
    assert text.startswith("packed sequences cannot be captured")
    assert HERE in text
    assert "padded" in text


def test_a_recurrent_state_is_not_batch_first() -> None:
    text = message(Recurrent(packed=False), (torch.randn(3, 5, 4), torch.randn(1, 3, 8)))
    assert "[1, 3] samples" in text
    assert "transposed" in text
