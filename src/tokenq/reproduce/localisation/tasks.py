"""The tasks by name."""

from collections.abc import Callable
from typing import Any

from tokenq.reproduce.localisation.film import film
from tokenq.reproduce.localisation.material import Task
from tokenq.reproduce.localisation.planted import planted
from tokenq.reproduce.localisation.qa import qa
from tokenq.reproduce.localisation.summedits import summedits
from tokenq.reproduce.localisation.surface import surface

TASKS: dict[str, Callable[[Any], Task]] = {
    "film": film,
    "planted": planted,
    "summedits": summedits,
    "qa": qa,
    "surface": surface,
}


def task_of(name: str, options: Any) -> Task:
    """The task `name` with its own settings. Raises UserError where its data cannot be had."""
    return TASKS[name](options)
