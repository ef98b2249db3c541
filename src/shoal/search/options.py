"""The options of a search and of the machine it runs on; every method brings its own."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.errors import ConfigError
from shoal.options import (
    Options,
    above,
    at_least,
    between,
    find_recipe,
    one_of,
    option,
    seed_option,
)

_SHARE = between(0, 1, ends="()")
# Options of one training, and what says that there is one.
_OF_TRAINING = {"dense_lr": "dense_epochs", "dense_recipe": "dense_epochs",
                "final_lr": "final_epochs", "final_recipe": "final_epochs"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Options):
    """How far to go, how long to train, and when to stop; the same for every method."""

    max_drop: float = option(
        1.0,
        "Points of validation quality that the result may lose against the dense network. More "
        "lets more layers go.",
        unit="points",
        check=at_least(0),
        common=True,
    )
    epochs: int = option(
        1,
        "Epochs of fine-tuning after each removal. More gets more layers out at the same accuracy, "
        "and takes longer in proportion.",
        check=at_least(0),
        common=True,
    )
    dense_epochs: int = option(
        0,
        "Epochs of training before anything is removed. Needed if the model comes without trained "
        "weights.",
        check=at_least(0),
        common=True,
    )
    dense_lr: float | None = option(
        None,
        "Learning rate of that training, before anything is removed. From scratch it takes a "
        "higher one than fine-tuning.",
        check=above(0),
        default_text="the recipe's",
    )
    dense_recipe: str | None = option(
        None,
        "The recipe of that training, by its name. Precision, memory format and accumulate stay "
        "those of the run.",
        default_text="the run's",
    )
    rectifier: str | None = option(
        None,
        "Swap all rectifiers of the network for this kind before anything else: 'gelu', "
        "'leaky_relu', 'prelu', 'relu' or 'silu'. The network must be trained with them: give "
        "dense_epochs.",
        check=one_of("gelu", "leaky_relu", "prelu", "relu", "silu"),
        default_text="the network's own",
    )
    final_epochs: int = option(
        0,
        "Epochs of fine-tuning the result when the search has ended, kept only if they help. Ten "
        "or more often win back part of what was lost, and so the search goes further; see slack. "
        "A finished run accepts them too.",
        check=at_least(0),
        common=True,
    )
    final_lr: float | None = option(
        None, "Learning rate of the last fine-tuning.", check=above(0), default_text="the recipe's"
    )
    final_recipe: str | None = option(
        None,
        "The recipe of the last fine-tuning, by its name: 'patient' for 20 epochs or more. "
        "Precision, memory format and accumulate stay those of the run.",
        default_text="the run's",
        late=True,
    )
    slack: float | None = option(
        None,
        "Points past max_drop to which the search goes on for the last training to win back. That "
        "is given to the fastest network first, and to slower ones until one is within max_drop. "
        "By default what should be won back, as far as the fine-tunings of the run tell, at most 2 "
        "points, and 0 without final_epochs.",
        unit="points",
        check=at_least(0),
        default_text="learnt from the run",
    )
    remove: int | None = option(
        None,
        "Stop when this many are removed (of what the method counts: rectifiers or blocks), even "
        "if the accuracy would allow more.",
        check=at_least(1),
        default_text="no limit",
    )
    patience: int = option(
        0,
        "How many steps in a row may lie below the allowed accuracy before the search ends. Raise "
        "it where the accuracy jumps up and down.",
        check=at_least(0),
    )
    target_latency: float | None = option(
        None,
        "Stop when the latency is at most this share of the dense network's, both merged: 0.5 is "
        "twice as fast.",
        check=_SHARE,
        default_text="none",
        common=True,
    )
    target_macs: float | None = option(
        None,
        "Stop when the MACs are at most this share of the dense network's.",
        check=_SHARE,
        default_text="none",
    )
    hours: float | None = option(
        None,
        "A budget of working time that the search plans for: no step is begun that would not leave "
        "time for last trainings, merging and measuring. The time of interrupted calls counts, "
        "the time between them does not. If it is raised before a last training was made, the "
        "search goes on.",
        unit="hours",
        check=above(0),
        decides=False,
        default_text="no limit",
        common=True,
    )
    move_padding: bool = option(
        True,
        "Where convolutions that are now linear in a row would be faster as one, let the first pad "
        "for both before fine-tuning.",
    )
    budget: float | None = option(
        None,
        "Train this share of all epochs, and of what counts in epochs: 0.1 trains a tenth, with "
        "the learning rate falling as much earlier. For results that cost less and compare with "
        "others at the same budget.",
        check=between(0, 1, ends="(]"),
        default_text="all epochs",
    )
    rewind: int | None = option(
        None,
        "After each removal, go back to the weights of this epoch of the dense network's training; "
        "0 is the weights the model came with.",
        unit="epochs",
        check=at_least(0),
        default_text="train on",
    )
    rewind_from: str | None = option(
        None, "A file of weights to go back to after each removal instead.", default_text="none"
    )
    score_on: str = option(
        "trained",
        "Score the trained weights, or the rewound ones: with untrained weights as these, that is "
        "pruning at initialization.",
        check=one_of("trained", "rewound"),
    )
    seed: int = seed_option()

    def __post_init__(self) -> None:
        """Raise `ConfigError` for the first value that makes no sense, or does not fit another."""
        super().__post_init__()
        for name, epochs in _OF_TRAINING.items():
            if getattr(self, name) is not None and getattr(self, epochs) == 0:
                raise ConfigError(f"{name} is given without {epochs}: say how many epochs")
        for recipe in (self.dense_recipe, self.final_recipe):
            if recipe is not None:
                find_recipe(recipe)  # there must be one
        if self.rewind is not None and self.rewind_from is not None:
            raise ConfigError("rewind and rewind_from are both given: choose one of them")
        if self.rewind is not None and self.rewind > self.dense_epochs:
            raise ConfigError(
                f"rewind is {self.rewind} but the dense network is trained for "
                f"{self.dense_epochs} epochs: raise dense_epochs, or use rewind_from"
            )
        if self.score_on == "rewound" and self.rewind is None and self.rewind_from is None:
            raise ConfigError(
                "score_on is 'rewound' but nothing is rewound: give rewind or rewind_from"
            )


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Options):
    """Where the work is done, and where and how latency is measured."""

    device: str | None = option(
        None,
        "Where to work: 'cpu', 'cuda', 'cuda:1', 'mps'.",
        decides=False,
        default_text="a GPU if there is one",
        common=True,
    )
    latency_batch: int | tuple[int, ...] = option(
        1,
        "Batch size at which latency is measured, or several. Use those you deploy with.",
        check=at_least(1),
        common=True,
    )
    runtime: str | tuple[str, ...] = option(
        "eager",
        "Where latency is measured for every choice: 'eager' (PyTorch), 'compile' (torch.compile), "
        "'onnxruntime', 'openvino' or 'tensorrt', which translate what they measure and so take "
        "longer. With several of these or several batch sizes a move must pay in the sum over all, "
        "each by its share of the network's latency there, and be slower in none.",
        common=True,
    )
    int8: bool = option(
        False,
        "Also quantize the result to int8, calibrated on training images, in each installed "
        "runtime that can (ONNX Runtime, OpenVINO with NNCF), and report its accuracy and latency "
        "there. A finished run accepts it too.",
        decides=False,
    )

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes; the first one counts where there can be but one."""
        return (
            self.latency_batch if isinstance(self.latency_batch, tuple) else (self.latency_batch,)
        )

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The names of the runtimes, likewise."""
        return self.runtime if isinstance(self.runtime, tuple) else (self.runtime,)


@dataclass(frozen=True, kw_only=True)
class JobOptions(Options):
    """What a run of the command line is of, and whether its energy is reported."""

    model: str = option(
        "",
        "The network by its name, such as torchvision:resnet18, or path/file.py:factory. In Python "
        "it is the module itself.",
        default_text="must be given",
        flag=False,
    )
    data: str = option(
        "",
        "The data by their name, such as folder:photos, or path/file.py:factory. In Python they "
        "are batches.",
        default_text="must be given",
        flag=False,
    )
    checkpoint: str | None = option(
        None,
        "The file of the model's trained weights.",
        default_text="those it is built with",
        flag=False,
    )
    pretrained: bool = option(
        False, "Fetch the weights that the model's library publishes.", flag=False
    )
    energy: bool = option(
        False,
        "Also report energy and CO2 of the run's training, and of an epoch and 1,000 inferences of "
        "dense and result. An estimate where the machine's counters cannot be read; the report "
        "says so. Needs shoal's extra 'energy'.",
        decides=False,
    )
    country: str | None = option(
        None,
        "With energy: three letters, such as DEU, of where the electricity is made, which decides "
        "the CO2.",
        decides=False,
        default_text="the world's mean",
    )
