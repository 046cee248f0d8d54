"""What a check is doing, on the terminal, while it may take long."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gradlab.autodiff.checker.function import Plan


@contextmanager
def bar(plan: Plan) -> Iterator[None]:
    """A bar of the budget's seconds on standard error, gone when the check ends; nothing without a budget."""
    if plan.budget is None:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("check", total=plan.budget)
        plan.started = lambda what, spent: progress.update(
            task, description=what, completed=min(spent, 1) * (plan.budget or 0)
        )
        yield
