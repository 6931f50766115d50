"""The peer libraries, each of which may be missing: what uses it is then refused, and all else runs."""

import importlib


def optional(name):
    """The module `name`, or what raises ModuleNotFoundError as soon as something of it is used."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        return _Missing(error)


class _Missing:
    def __init__(self, error):
        self._error = error

    def __getattr__(self, name):
        raise self._error
