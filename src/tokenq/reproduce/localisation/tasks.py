"""The tasks by name."""

from typing import Any

from tokenq.reproduce.localisation.film import film
from tokenq.reproduce.localisation.material import Task

TASKS = {"film": film}


def task_of(name: str, options: Any) -> Task:
    """The task `name` with its own settings. Raises UserError where its data cannot be had."""
    return TASKS[name](options)
