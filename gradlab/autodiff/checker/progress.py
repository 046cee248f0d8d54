"""The progress bar of a check that has a budget of seconds."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gradlab.autodiff.checker.function import CheckPlan


@contextmanager
def bar(plan: CheckPlan) -> Iterator[None]:
    """A bar over the budget's seconds on standard error, cleared when the check ends; nothing without a budget."""
    if plan.budget is None:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("check", total=plan.budget)
        plan.on_event = lambda what, spent: progress.update(
            task, description=what, completed=min(spent, 1) * (plan.budget or 0)
        )
        yield
