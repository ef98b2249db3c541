"""How data are read; and recipes: all of a training but the network, the data and the epochs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shoal.errors import OptionError
from shoal.options.base import Options, above, at_least, between, one_of, option

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def seed_option() -> Any:
    """Return the option that reading data and the search both have."""
    return option(
        0,
        "Decides all that is random: the same seed gives the same result, except where a "
        "choice goes by latency.",
        check=at_least(0),
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """How a data set is read and split.

    Splits, subsets, order and augmentation depend on `seed` alone: the same seed gives the same
    numbers in every run, process and version of Python.
    """

    train_samples: int | None = option(
        None,
        "Train on this many images only, the same share of each class.",
        check=at_least(1),
        default_text="all",
    )
    val_fraction: float | None = option(
        None,
        "The share of the training images that is kept for validation, where the data have no "
        "validation part. By default 0.1, or 0.15 of all images where a test part is split off "
        "as well.",
        check=between(0, 1, ends="()"),
        default_text="0.1",
    )
    val_samples: int | None = option(
        None,
        "Validate on this many images only. With 500, one image is 0.2 points: keep it well above "
        "100 / max_drop.",
        check=at_least(1),
        default_text="all",
    )
    batch_size: int = option(
        128,
        "Images per training step, over all processes. Lower it if memory runs out, and change "
        "the learning rate in proportion.",
        check=at_least(1),
        common=True,
    )
    eval_batch_size: int | None = option(
        None,
        "Images per batch when evaluating; changes speed only.",
        check=at_least(1),
        decides=False,
        default_text="the batch size",
    )
    image_size: int | None = option(
        None,
        "Height and width of the images. Use what the network was trained on.",
        unit="pixels",
        check=at_least(1),
        default_text="the data's own",
        common=True,
    )
    mean: tuple[float, ...] | None = option(
        None,
        "Subtracted from each channel of pixels in [0, 1]. Use what the network was trained with.",
        default_text="the data's own",
    )
    std: tuple[float, ...] | None = option(
        None, "Each channel is divided by it, as for the mean.", default_text="the data's own"
    )
    augment: str = option(
        "auto",
        "Random changes to training images: 'none', 'flip_crop', 'shift', or 'auto', the data's "
        "own.",
    )
    skip_broken: bool = option(
        False, "Skip images that cannot be decoded, and name them, instead of stopping."
    )
    download: bool = option(False, "Download the data if they are missing.", decides=False)
    max_memory_gib: float = option(
        4.0,
        "Images that need more memory are decoded when they are needed, and training ones are then "
        "cut at random where others are shifted.",
        unit="GiB",
        check=at_least(0),
        late=True,
        flag=False,
    )
    workers: int = option(
        2,
        "Processes that decode images that do not fit in memory.",
        check=at_least(0),
        decides=False,
    )
    seed: int = seed_option()


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """How to train. The defaults suit short fine-tunings of convolutional networks.

    Example:
        >>> import shoal
        >>> recipe = shoal.Recipe(lr=0.1, schedule="step", milestones=(0.5, 0.75))
        >>> recipe.gamma, recipe.to_dict()["lr"]
        (0.1, 0.1)
    """

    optimizer: str = option("sgd", "The optimizer.", check=one_of("sgd", "adam", "adamw"))
    lr: float = option(
        0.02,
        "The peak learning rate. Lower it if the loss is not finite or a layer dies.",
        check=above(0),
        common=True,
    )
    momentum: float = option(0.9, "Momentum of sgd.", check=between(0, 1, ends="[)"))
    nesterov: bool = option(True, "Nesterov's momentum for sgd.")
    weight_decay: float = option(
        5e-4, "L2 penalty on weights (decoupled for adamw).", check=at_least(0)
    )
    decay_all: bool = option(
        False,
        "Penalise every parameter. By default those with one dimension or none (norms, biases, "
        "slopes and intercepts of lines) are not penalised.",
    )
    schedule: str = option(
        "cosine",
        "How the learning rate falls: 'cosine' (to zero at the end), 'step' (times gamma at each "
        "milestone) or 'constant'.",
        check=one_of("cosine", "step", "constant"),
    )
    milestones: tuple[float, ...] = option(
        (),
        "For 'step': when the rate falls, as fractions of the training: 0.5 is halfway.",
        check=between(0, 1, ends="()"),
        default_text="none",
    )
    gamma: float = option(
        0.1, "For 'step': the factor at each milestone.", check=between(0, 1, ends="(]")
    )
    warmup_epochs: float = option(
        0.0,
        "The learning rate rises linearly over this many epochs, at most over half of them.",
        unit="epochs",
        check=at_least(0),
    )
    label_smoothing: float = option(0.0, "Label smoothing.", check=between(0, 1, ends="[)"))
    clip_norm: float | None = option(
        None,
        "Largest norm of the gradient. Set it, to 1 say, if the loss is not finite.",
        check=above(0),
        default_text="no clipping",
    )
    precision: str = option(
        "auto",
        "Number format of the arithmetic; weights stay fp32. 'auto' is bf16 where the hardware "
        "computes in it.",
        check=one_of(*PRECISIONS),
    )
    compile_training: str = option(
        "auto",
        "Compile the training step (torch.compile): 'on', 'off', or 'auto', which tries it on a "
        "GPU in trainings of 3 minutes or more and keeps it if it is faster. Compiled, numbers "
        "differ in their last digits.",
        check=one_of("auto", "on", "off"),
        decides=False,
    )
    channels_last: bool = option(
        True, "Memory format of images and 4-D weights; several times faster on CPUs."
    )
    accumulate: int = option(
        1,
        "Batches per optimizer step: a larger batch where memory is short.",
        check=at_least(1),
    )
    distill: float = option(
        0.0,
        "Weight of distillation: learning from the dense network's outputs. Helps when there are "
        "few epochs.",
        check=between(0, 1),
    )
    temperature: float = option(
        4.0, "Temperature of distillation (Hinton et al. 2015).", check=above(0)
    )
    mix: float = option(
        0.0,
        "Train on pairs of samples of a batch, mixed by a share of the beta distribution "
        "B(mix, mix) for each batch (MixUp, Zhang et al. 2018): 1 draws all shares alike. With "
        "distillation and many epochs it wins back more (Beyer et al. 2022); 0 mixes nothing.",
        check=at_least(0),
        late=True,
    )
    early_stop: int | None = option(
        None,
        "Stop a training after this many epochs without a better validation accuracy, and go back "
        "to the best.",
        unit="epochs",
        check=at_least(1),
        default_text="never",
    )

    def __post_init__(self) -> None:
        """Check the values, each by itself and together; raises `OptionError`."""
        super().__post_init__()
        if self.schedule == "step" and not self.milestones:
            raise OptionError("milestones", (), "fractions such as 0.5,0.75 for schedule 'step'")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise OptionError("momentum", 0, "a number above 0, or set nesterov to false")

    def computed_like(self, other: Recipe) -> Recipe:
        """Return this recipe with what depends on machine and batch size as in another one."""
        return replace(
            self,
            precision=other.precision,
            compile_training=other.compile_training,
            channels_last=other.channels_last,
            accumulate=other.accumulate,
        )
