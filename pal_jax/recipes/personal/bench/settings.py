"""The keys of a run of the bench; those of every run are in `run/settings.py`, those of PAL in
`recipes/personal/pal/settings.py`."""

from __future__ import annotations

import dataclasses

from pal_jax.recipes.personal import pal
from pal_jax.run.settings import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run. There is a step for each part of the work, so `total_steps` stays 0.

    Splits, numbers of known choices and the vectors of texts are those of PAL's sections, for all methods.
    """

    tables: tuple[str, ...] = ('electricity',)  # tables of choices, as `data` of configs/pal.py names them
    texts: tuple[str, ...] = ()  # votes or choices between texts, as `data` of configs/pal.py:text names them
    methods: tuple[str, ...] = ()  # names in `recipes/personal/bench/methods.py`; (): all
    pal: pal.Settings  # the run of PAL on each table
    pal_text: pal.Settings  # the run of PAL on each set of texts
