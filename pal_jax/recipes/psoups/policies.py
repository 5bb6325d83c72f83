"""The adapters that stages of Personalized Soups have trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from pal_jax.decode.answers import check_finished
from pal_jax.models.params import Params
from pal_jax.recipes.psoups.settings import PreferenceKeys
from pal_jax.run import inputs, sharding
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context
from pal_jax.run.settings import to_dict
from pal_jax.run.trained import trained_in
from pal_jax.run.workdir import read_run


def check_trained(folder: Path, settings: PreferenceKeys) -> None:
    """Raises ValueError where a stage does not fit this run.

    It is not finished, has trained adapters of another base or kind, or has read other preferences or prompts by the
    same name.
    """
    check_finished(folder)
    configs = read_run(folder), to_dict(settings)
    inputs.check_shared(inputs.look(configs[1]), folder)
    theirs, ours = ({**config['policy'], 'seed': config['seed']} for config in configs)
    # With a base of random weights the seed is part of the base's name.
    random = ours['source'].startswith('random:')
    for key in ('source', 'lora', *(['seed'] if random else [])):
        if theirs[key] != ours[key]:
            named = key if key == 'seed' else f'policy.{key}'
            raise ValueError(
                f'{folder} was trained with {named}={theirs[key]}, got {ours[key]}; give that or another --workdir'
            )


def open_adapters(folder: Path, ctx: Context) -> Params:
    """Read the adapters that a stage has trained from its last checkpoint, whole on every device.

    Raises:
      ValueError: the stage has no checkpoint.
    """
    trained = trained_in(str(folder), ctx)
    # The base and the optimiser's state are most of a checkpoint and are not needed.
    adapters = jax.tree_util.tree_map_with_path(only_adapters, trained.exported)
    state, *_ = Checkpoints(folder, adapters, read_only=True).read()
    return jax.jit(lambda params: params, out_shardings=sharding.replicated(ctx.mesh))(
        trained.actor(state).model.params
    )


def only_adapters(path: Any, leaf: Any) -> Any:
    """The leaf of a policy's state where it is an adapter's, else `...`, which a checkpoint's reader leaves out."""
    return leaf if '.model.params' in jax.tree_util.keystr(path) else ...
