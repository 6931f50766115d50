"""What is measured, a module for each op and kind of flow:

tables(…) -> its tables; the arguments are batch sizes and what else costs time
QUICK: arguments for tiny sizes with nothing compiled, to prove that all runs
on_gpu(dry_run, compiled) -> arguments for a GPU (optional)
"""

import importlib
import pkgutil

MODULES = tuple(importlib.import_module(f"bench.tables.{module.name}") for module in pkgutil.iter_modules(__path__))
