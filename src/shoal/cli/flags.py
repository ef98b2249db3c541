"""Every field of the configuration as a flag, with a text that teaches.

A table and not fifty parameters, and texts of its own and not the `Config` class's: that one needs
PyTorch, for which `--help` must not wait. The tests hold the two against each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from shoal.errors import ConfigError

__all__ = ["FLAGS", "Flag", "read_flags", "with_config_flags"]

SEARCH, DATA, TRAINING, MACHINE = "Search", "Data", "Training", "Machine"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Flag:
    """A field of the configuration on the command line.

    Attributes:
        name: the field's.
        kind: its type; `list` takes values with commas between them.
        panel: the heading it stands under in the help.
        text: what it means, with its unit, and when to change it.
        default: the default as the help shows it.
        of: the type of a list's values.
    """

    name: str
    kind: type
    panel: str
    text: str
    default: str
    of: type = float

    @property
    def spelling(self) -> str:
        """The flag as typer takes it."""
        dashed = self.name.replace("_", "-")
        return f"--{dashed}/--no-{dashed}" if self.kind is bool else f"--{dashed}"

    @property
    def annotation(self) -> Any:
        """The parameter's annotation."""
        kind = str if self.kind is list else self.kind
        option = typer.Option(
            self.spelling,
            help=f"{self.text} [dim]Default: {self.default}.[/dim]",
            rich_help_panel=self.panel,
            show_default=False,
            metavar="A,B,…" if self.kind is list else None,
        )
        return Annotated[kind | None, option]


_RECIPE = "the recipe's"

FLAGS = (
    Flag("method", str, SEARCH, "How to search. 'easier' linearizes rectifiers (Quétu et al. "
         "2024), 'layer_pruning' drops residual blocks (Jordao et al. 2023), 'shoal' does "
         "whatever costs least per millisecond it saves here.", "easier"),
    Flag("criterion", str, SEARCH, "What decides which rectifier or block goes: the one with the "
         "lowest score does. For 'easier' entropy, line_loss, …; for 'layer_pruning' cka, "
         "block_influence, lesion, l1, taylor, snip, grasp, …; for 'shoal' loss or accuracy. "
         "docs/methods.md has all.", "the method's"),
    Flag("how", str, SEARCH, "What takes a rectifier's place: 'line', a line fitted to it for each "
         "channel, or 'identity', as the paper has it, which costs more accuracy.", "line"),
    Flag("max_drop", float, SEARCH, "Points of validation accuracy that the result may lose "
         "against the dense network. More lets more layers go.", "1.0"),
    Flag("remove", int, SEARCH, "Stop when so many rectifiers, or blocks with 'layer_pruning', are "
         "removed, even if the accuracy would allow more.", "no limit"),
    Flag("per_step", int, SEARCH, "Rectifiers or blocks to remove before each fine-tuning. More is "
         "quicker and coarser.", "the method's: 1, for 'shoal' 8"),
    Flag("step_saving", float, SEARCH, "For 'shoal': fine-tune as soon as the moves of a step were "
         "measured to save this share of the latency.", "0.05"),
    Flag("tries", int, SEARCH, "For 'shoal': so many of the most promising moves of each kind are "
         "fine-tuned briefly before the choice. 0 goes by what they cost untrained, which is "
         "quicker and favours what needs no training.", "3"),
    Flag("patience", int, SEARCH, "Steps in a row that may lie below the allowed accuracy before "
         "the search ends. Raise it where the accuracy jumps up and down.", "0"),
    Flag("keep_first", bool, SEARCH, "For 'layer_pruning': never drop the first one.", "no"),
    Flag("keep_per_stage", int, SEARCH, "For 'layer_pruning': how many blocks must stay in each "
         "stage, the removable ones and the others.", "0"),
    Flag("per_latency", bool, SEARCH, "For 'easier' and 'layer_pruning': divide importance by the "
         "milliseconds that the removal was measured to save, so that what is slow goes sooner.",
         "no"),
    Flag("move_padding", bool, SEARCH, "Where convolutions that are now linear in a row would be "
         "faster as one, let the first pad for both before fine-tuning.", "yes"),
    Flag("rewind", int, SEARCH, "After each removal, go back to the weights of this epoch of "
         "--dense-epochs; 0 is the weights the model came with.", "train on"),
    Flag("rewind_from", str, SEARCH, "A file of weights to go back to instead.", "none"),
    Flag("score_on", str, SEARCH, "Score the 'trained' weights, or the 'rewound' ones.",
         "trained"),
    Flag("moves", list, SEARCH, "For 'shoal': what it may do, of 'linearize', 'collapse' and "
         "'drop'.", "all three", of=str),
    Flag("target_latency", float, SEARCH, "Stop when the latency is at most this share of dense's: "
         "0.5 is twice as fast.", "none"),
    Flag("target_macs", float, SEARCH, "Stop when the MACs are at most this share of dense's.",
         "none"),
    Flag("samples", int, SEARCH, "Score on so many training images only. Quicker on large data; "
         "a note says when the choice is then not certain.", "all"),
    Flag("train_samples", int, DATA, "Train on so many images only, the same share of each class.",
         "all"),
    Flag("val_fraction", float, DATA, "The part of the training images that validates, where the "
         "data have no validation part.", "0.1"),
    Flag("val_samples", int, DATA, "Validate on so many images only. With 500, one image is 0.2 "
         "points: keep it well above 100 / max-drop.", "all"),
    Flag("batch_size", int, DATA, "Images per training step. Lower it if memory runs out; change "
         "the learning rate in proportion.", "128"),
    Flag("eval_batch_size", int, DATA, "Images per batch when evaluating; changes speed only.",
         "the batch size"),
    Flag("image_size", int, DATA, "Height and width of the images, in pixels. Take what the "
         "network was trained on.", "the data's own"),
    Flag("mean", list, DATA, "What is subtracted from each channel, of pixels from 0 to 1. Take "
         "what the network was trained with.", "the data's own"),
    Flag("std", list, DATA, "What each channel is divided by, as --mean.", "the data's own"),
    Flag("augment", str, DATA, "Random changes to training images: 'none', 'flip_crop', 'shift', "
         "or 'auto', the data's own.", "auto"),
    Flag("skip_broken", bool, DATA, "Leave out images that cannot be decoded and name them, "
         "instead of stopping.", "no"),
    Flag("download", bool, DATA, "Fetch the data if they are missing.", "no"),
    Flag("workers", int, DATA, "Processes that decode images which do not fit in memory.", "2"),
    Flag("epochs", int, TRAINING, "Epochs of fine-tuning after each removal. More gets more "
         "layers out at the same accuracy, and takes longer in proportion.", "1"),
    Flag("dense_epochs", int, TRAINING, "Epochs of training before anything is removed. Needed if "
         "the model comes without trained weights.", "0"),
    Flag("final_epochs", int, TRAINING, "Epochs of fine-tuning the result when the search has "
         "ended. Ten or more often win back part of what was lost; a finished run takes them too.",
         "0"),
    Flag("final_lr", float, TRAINING, "The learning rate of these.", _RECIPE),
    Flag("recipe", str, TRAINING, "A set of training options by name: finetune, distill (learn "
         "from the dense network), easier_cifar, easier_domainbed, easier_transfer (the paper's), "
         "vit. The flags below change single ones.", "the method's: for 'shoal' distill, else "
         "finetune"),
    Flag("optimizer", str, TRAINING, "'sgd', 'adam' or 'adamw'.", _RECIPE),
    Flag("lr", float, TRAINING, "The highest learning rate. Lower it if the loss is not finite or "
         "a layer dies.", _RECIPE),
    Flag("momentum", float, TRAINING, "Momentum of sgd.", _RECIPE),
    Flag("nesterov", bool, TRAINING, "Nesterov's momentum for sgd.", _RECIPE),
    Flag("weight_decay", float, TRAINING, "L2 penalty on weights.", _RECIPE),
    Flag("decay_all", bool, TRAINING, "Penalise biases and norms too.", _RECIPE),
    Flag("schedule", str, TRAINING, "How the learning rate falls: 'cosine', 'step' or 'constant'.",
         _RECIPE),
    Flag("milestones", list, TRAINING, "For 'step': when it falls, as fractions of the training.",
         _RECIPE),
    Flag("gamma", float, TRAINING, "For 'step': the factor at each milestone.", _RECIPE),
    Flag("warmup_epochs", float, TRAINING, "Epochs over which the learning rate rises.", _RECIPE),
    Flag("label_smoothing", float, TRAINING, "From 0 to below 1.", _RECIPE),
    Flag("clip_norm", float, TRAINING, "Largest norm of the gradient. Set it, to 1 say, if the "
         "loss is not finite.", _RECIPE),
    Flag("precision", str, TRAINING, "'fp32', 'bf16', 'fp16' or 'auto': bf16 where the hardware "
         "computes in it.", _RECIPE),
    Flag("channels_last", bool, TRAINING, "Memory order of images; several times faster on CPUs.",
         _RECIPE),
    Flag("accumulate", int, TRAINING, "Batches per optimizer step: a larger batch where memory is "
         "short.", _RECIPE),
    Flag("distill", float, TRAINING, "Weight, 0 to 1, of learning from the dense network's "
         "outputs. Helps where there are few epochs.", _RECIPE),
    Flag("temperature", float, TRAINING, "Of that learning.", _RECIPE),
    Flag("early_stop", int, TRAINING, "End a fine-tuning after so many epochs without a better "
         "validation accuracy, and go back to the best.", _RECIPE),
    Flag("seed", int, MACHINE, "Decides all that is random: the same seed gives the same result.",
         "0"),
    Flag("device", str, MACHINE, "Where to work: 'cpu', 'cuda', 'cuda:1', 'mps'.",
         "a GPU if there is one"),
    Flag("latency_batch", int, MACHINE, "Batch size at which latency is measured. Take that of "
         "your deployment.", "1"),
    Flag("runtime", str, MACHINE, "Where latency is measured for every choice: 'eager' (PyTorch) "
         "or 'onnxruntime', which exports what it measures and so takes longer.", "eager"),
    Flag("energy", bool, MACHINE, "Also report energy and CO2 of the run's training, and of an "
         "epoch and 1,000 inferences of dense and result. An estimate where the machine has no "
         "counters that may be read; the report says so. Needs shoal's extra 'energy'.", "no"),
    Flag("country", str, MACHINE, "For --energy: three letters, such as DEU, of where the "
         "electricity is made, which decides the CO2.", "the world's mean"),
)  # fmt: skip


def with_config_flags(command: F) -> F:
    """Give a command that ends in `**flags` one parameter for each flag of the table."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = [
        inspect.Parameter(
            flag.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flag.annotation
        )
        for flag in FLAGS
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + flags
    # typer reads the one or the other, depending on its release.
    command.__dict__["__signature__"] = signature.replace(parameters=parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def read_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, with the types of the configuration.

    Raises:
        ConfigError: a list holds something else than numbers.
    """
    lists = {flag.name: flag.of for flag in FLAGS if flag.kind is list}
    return {
        name: _values(name, value, lists[name]) if name in lists else value
        for name, value in given.items()
        if value is not None
    }


def _values(name: str, text: str, of: type) -> list[Any]:
    try:
        return [of(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{name} is '{text}': give numbers with commas between them, such as 0.5,0.75"
        ) from None
