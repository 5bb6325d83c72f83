"""The methods of the bench by name: a line for each. `recipes/personal/interface.py` says what a method has to give.

LoRe, PReF, MRM, MaxMin-RLHF's groups, GPO and an own form of VRF stand in `recipes/personal/bench/learners.py`. PAL,
its baselines with a learner, and the shared model are no lines here: they are the run that `configs/pal.py` describes,
see `pal_rows.py`.
"""

from __future__ import annotations

from pal_jax.recipes.personal import baselines
from pal_jax.recipes.personal.bench import learners, reading, vpl
from pal_jax.recipes.personal.interface import Method

FOR_TABLES = tuple(baselines.METHODS)  # methods whose attributes need a meaning; texts have none
METHODS: dict[str, Method] = {
    **baselines.METHODS,
    'vpl': Method(vpl.fit, reading.margins, options=({'decay': 1e-2}, {'decay': 1.0})),
    **learners.METHODS,
}
