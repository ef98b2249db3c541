"""Models: the papers' CIFAR networks, and the look-up of torchvision, timm and user factories.

Example:
    >>> import shoal
    >>> model = shoal.models.cifar_resnet20(num_classes=10)
    >>> sum(parameter.numel() for parameter in model.parameters())
    269722
"""

from __future__ import annotations

from shoal.compat import import_timm, import_torchvision
from shoal.models.checkpoint import CheckpointReport, check_finite, load_checkpoint
from shoal.models.lookup import (
    ModelSpec,
    build_model,
    complete_spec,
    load_model,
    models,
    parse_spec,
)
from shoal.models.published import classes_of, normalisation_of
from shoal.models.small import (
    CifarResNet,
    DigitsResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    digits_resnet,
    mobilenetv2_cifar,
    resnet18_cifar,
)

__all__ = [
    "CheckpointReport",
    "CifarResNet",
    "DigitsResNet",
    "ModelSpec",
    "build_model",
    "check_finite",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "classes_of",
    "complete_spec",
    "digits_resnet",
    "import_timm",
    "import_torchvision",
    "load_checkpoint",
    "load_model",
    "mobilenetv2_cifar",
    "models",
    "normalisation_of",
    "parse_spec",
    "resnet18_cifar",
]
