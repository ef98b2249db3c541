"""Which machine and which versions figures were measured with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("shoal", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def machine_facts(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what figures that are measured now depend on, as JSON values; no name of a machine.

    `device` is what networks ran on, `processor` (and `gpu`) its maker's name, `threads` those of
    PyTorch; `system`, `python`, `torch`, `shoal` and the installed runtimes are versions, and
    `date` is today's, as in 2026-11-28.
    """
    where = torch.device(device)
    facts: dict[str, Any] = {
        "device": str(where),
        "processor": _processor(),
        "processors": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    if where.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(where)
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    """Return the maker's name of the processor, or at least its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    except OSError:  # a system without that file
        pass
    return platform.processor() or platform.machine()
