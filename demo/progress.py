"""Progress bars, and a place for messages that would tear them."""

import contextlib
import functools
import logging
import warnings

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextlib.contextmanager
def bars(console, descriptions, total):
    """Progress bars; yields for each `advance(note="")`, which moves it one step on."""
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        tasks = [progress.add_task(text, total=total, note="") for text in descriptions]
        yield [functools.partial(_advance, progress, task) for task in tasks]


def _advance(progress, task, note=""):
    progress.update(task, advance=1, note=note)


@contextlib.contextmanager
def bar(console, description, total):
    """One progress bar; yields its `advance`."""
    with bars(console, [description], total) as (advance,):
        yield advance


@contextlib.contextmanager
def messages_to(path):
    """Append what torch.compile logs and warns about to the file `path`, not to the screen."""
    handler = logging.FileHandler(path, encoding="utf-8")
    logger = logging.getLogger("torch._dynamo")
    screen, logger.handlers = logger.handlers, [handler]
    with warnings.catch_warnings(record=True) as warned:
        try:
            yield
        finally:
            logger.handlers = screen
            for warning in warned:
                text = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
                handler.stream.write(text)
            handler.close()
