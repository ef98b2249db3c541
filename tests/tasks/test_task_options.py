"""How a task is named: in Python, on the command line, in YAML, and in a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import shoal.methods  # noqa: F401  registers them
from shoal.cli.compress import compress_flags
from shoal.cli.config import read_job, run_task
from shoal.errors import ConfigError
from shoal.search.settings import Settings
from shoal.tasks import find_task

SOURCES = {"model": "shoal:cifar_resnet20", "data": "digits"}


def test_a_tasks_options_are_flat_values_beside_all_others() -> None:
    settings = Settings.of("easier", task="segment", ignore_index=0, lr=0.1)
    assert settings.task == find_task("segment?ignore_index=0")
    assert settings == Settings.of("easier", task="segment?ignore_index=0", lr=0.1)
    assert Settings.of(**settings.to_dict()) == settings
    assert Settings.of(task=find_task("segment", ignore_index=0)).task_name == "segment"


def test_the_usual_task_leaves_a_runs_identity_as_it_was_without_tasks() -> None:
    known = Settings.of("easier").identity()
    assert not {"task", "output_index"} & set(known)
    assert Settings.of("easier", task="binary").identity() == known | {"task": "binary"}
    changed = Settings.of("easier", output_index=1).identity()
    assert changed == known | {"output_index": 1}


def test_an_option_of_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'classify' has no option ignore_index.*'segment'"):
        Settings.of("easier", ignore_index=0)


def test_flags_and_yaml_name_it(tmp_path: Path) -> None:
    assert {"ignore_index", "distance", "output_index"} <= {f.option.name for f in compress_flags()}
    job = read_job(None, {**SOURCES, "task": "segment", "ignore_index": 0})
    assert job.settings.task.options.ignore_index == 0
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(job.to_dict()))
    assert read_job(path, {}).settings == job.settings
    # Another task takes none of the options that the file has for its own.
    assert read_job(path, {"task": "regress"}).settings.task == find_task("regress")
    assert run_task(job.to_dict()) == job.settings.task
    assert run_task(job.to_dict(), "binary") == find_task("binary")
    assert run_task({}) == find_task("classify")


def test_a_folder_names_no_code_to_run() -> None:
    with pytest.raises(ConfigError, match="give --task"):
        run_task({"task": "os:system"})


def test_a_task_of_ones_own_brings_its_flags(tmp_path: Path) -> None:
    file = tmp_path / "ordinal_task.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "import shoal\n"
        "from shoal.tasks.classify import Classify\n\n\n"
        "class Ordinal(Classify):\n"
        "    @dataclass(frozen=True, kw_only=True)\n"
        "    class Options(Classify.Options):\n"
        "        within: int = shoal.option(1, 'So many classes off are right.')\n\n"
        "    quality_name = 'near'\n"
    )
    name = f"{file}:Ordinal"
    assert "within" in {flag.option.name for flag in compress_flags(None, name)}
    job = read_job(None, {**SOURCES, "task": name, "within": 2})
    assert (job.settings.task.options.within, job.settings.task.quality_name) == (2, "near")
    assert job.settings.to_dict()["task"] == name
