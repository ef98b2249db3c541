"""What networks are for: tasks, one file each, in one registry."""

from __future__ import annotations

from shoal.registry import import_modules
from shoal.tasks.custom import Loss, with_own
from shoal.tasks.task import Task, find_task, register_task, tasks

__all__ = ["Loss", "Task", "find_task", "register_task", "tasks", "with_own"]

import_modules(__name__, __path__)  # a task registers itself: a new one is one new file
