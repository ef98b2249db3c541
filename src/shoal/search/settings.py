"""Everything that decides a search, from flat values: a method, and one object for each concern.

`shoal.compress` and the command line both come through here, so that a value is checked once. This
needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError
from shoal.options import Options, Recipe, at_budget, find_recipe, share_out
from shoal.options.task import BUILT_IN
from shoal.registry import Registry
from shoal.search.method import methods
from shoal.search.options import MachineOptions, SearchOptions

if TYPE_CHECKING:
    from shoal.tasks import Task


@dataclass(frozen=True)
class Settings:
    """A method, under the name it was given by, with the options of everything."""

    name: str
    method: Any
    options: Any
    task_name: str
    task: Task  # what the network is for
    search: SearchOptions
    machine: MachineOptions
    recipe: Recipe

    @classmethod
    def of(
        cls,
        method: Any = "shoal",
        recipe: Recipe | str | Mapping[str, Any] | None = None,
        task: str | type[Task] | Task = "classify",
        **values: Any,
    ) -> Settings:
        """Return the settings of some flat values; what is left out has its default.

        Args:
            method: a name, which options may follow as in "easier?how=identity", a target such as
                "path/file.py:Name", or the class itself.
            recipe: a recipe, its name, or single values of one; None is the method's own.
            task: a name, which options may follow, a target, a class, or a task that was made.
            **values: options of the search, the machine, the recipe, the method and the task.

        Raises:
            NameNotFoundError: there is no such method, task, recipe or option; names the nearest.
            OptionError: a value makes no sense.
            ConfigError: the method has no such option, and others have.

        Example:
            >>> import shoal.methods
            >>> Settings.of("easier", epochs=2, how="identity", lr=0.1).recipe.lr
            0.1
        """
        found, written = methods.find(method) if isinstance(method, str) else (method, {})
        values = {**written, **values}
        from shoal.tasks import find_task  # with PyTorch, for which `--help` would wait

        goal = find_task(task)
        parts = (SearchOptions, MachineOptions, Recipe, found.Options, goal.Options)
        name = name_of(method)
        _refuse_others("method", name, option_classes(), parts, values)
        _refuse_others("task", goal.name, BUILT_IN, parts, values)
        search, machine, training, own, of_task = share_out(values, *parts)
        usual = getattr(found, "recipe", "finetune")
        named = None if isinstance(recipe, Mapping) else recipe
        trained_by = find_recipe(usual if named is None else named)
        if isinstance(recipe, Mapping):
            training = {**recipe, **training}
        return cls(
            name=name,
            method=found,
            options=found.Options.from_dict(own),
            task_name=name_of_task(task),
            task=find_task(goal, **of_task),
            search=SearchOptions.from_dict(search),
            machine=MachineOptions.from_dict(machine),
            recipe=Recipe.from_dict({**trained_by.to_dict(), **training}),
        )

    def at_budget(self) -> Settings:
        """Return the settings as they are worked with: all epochs are those of the budget."""
        budget = self.search.budget
        if budget is None:
            return self
        return replace(
            self,
            options=at_budget(self.options, budget),
            search=at_budget(self.search, budget),
            recipe=at_budget(self.recipe, budget),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all values, flat; `Settings.of(**values)` is the way back."""
        return self._merged("to_dict") | {"task": self.task_name, **self.task.options.to_dict()}

    def identity(self) -> dict[str, Any]:
        """Return the values that decide the result, flat."""
        # Runs of earlier versions had no task but this one.
        usual = type(self.task).Options()
        own = self.task.options.identity()
        own = {name: value for name, value in own.items() if value != getattr(usual, name)}
        if self.task_name != "classify":
            own["task"] = self.task_name
        return self._merged("identity") | own

    def _merged(self, what: str) -> dict[str, Any]:
        merged: dict[str, Any] = {"method": self.name}
        for part in (self.search, self.machine, self.recipe, self.options):
            merged |= getattr(part, what)()
        return merged


def option_classes(method: str | None = None) -> dict[str, type[Options]]:
    """Return the option classes of all methods, by name, and of one more as the user named it."""
    known = {name: methods[name].Options for name in methods.names()}
    if method is not None and method.partition("?")[0] not in known:
        known[method.partition("?")[0]] = methods.find(method)[0].Options
    return known


def task_classes(task: str | None = None) -> dict[str, type[Options]]:
    """Return the option classes of the built-in tasks, by name, and of one more as named."""
    known: dict[str, type[Options]] = dict(BUILT_IN)
    if task is not None and task.partition("?")[0] not in known:
        from shoal.tasks import find_task  # with PyTorch, for which `--help` would wait

        known[task.partition("?")[0]] = find_task(task).Options
    return known


def task_of_run(values: Mapping[str, Any], asked: str | Task | None = None) -> Task:
    """Return the task that was asked for, or else that of a run's flat values.

    Raises:
        ConfigError: the run's task is code that its folder names, which is never run.
    """
    from shoal.tasks import find_task  # with PyTorch, for which `--help` would wait

    if asked is not None:
        return find_task(asked)
    name = str(values.get("task") or "classify")
    if ":" in name:
        raise ConfigError(
            f"the run's task is '{name}', and code that a folder names is never run: give --task"
        )
    known = {f.name for f in fields(task_classes(name)[name.partition("?")[0]])}
    return find_task(name, **{key: value for key, value in values.items() if key in known})


def name_of(method: Any) -> str:
    """Return a method's name: as it was written, without options, or as it is registered."""
    return _name_in(methods, method)


def name_of_task(task: Any) -> str:
    """Return a task's name, likewise."""
    from shoal.tasks import tasks  # with PyTorch, for which `--help` would wait

    return _name_in(tasks, task)


def _name_in(known: Registry[Any], named: Any) -> str:
    if isinstance(named, str):
        return named.partition("?")[0]
    kind = named if isinstance(named, type) else type(named)
    registered = (name for name in known if known[name] is kind)
    return next(registered, f"{kind.__module__}:{kind.__qualname__}")


def _refuse_others(
    what: str,
    chosen: str,
    classes: Mapping[str, type[Options]],
    parts: tuple[type[Options], ...],
    values: Mapping[str, Any],
) -> None:
    """Raise for an option that only other methods, or tasks, have."""
    own = {f.name for part in parts for f in fields(part)}
    for name in (name for name in values if name not in own):
        others = [repr(k) for k, cls in classes.items() if name in {f.name for f in fields(cls)}]
        if others:
            raise ConfigError(
                f"the {what} '{chosen}' has no option {name}: omit it, or choose "
                f"{' or '.join(others)}"
            )
        # What is nobody's is told where the values are shared out.
