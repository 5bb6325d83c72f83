"""Methods that consist of several runs, their stages. Each stage is a run of a recipe, in a folder beside the others'.

The module of such a method has a function `stages(settings, workdir)`, which lists the stages in their order. A stage
has the settings of its own recipe, so it reads nothing else, and values that it does not read may change once it is
finished. The training loop makes the stages that are not finished, and a run that is stopped goes on in the middle of
a stage. A module may also have `stage_ended(settings, stage)`, which checks what a finished stage has come to, and
returns a line on it or ''. A method without that function is one run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pal_jax.run import checkpoint, inputs, stores
from pal_jax.run.forecast import spoken
from pal_jax.run.runs import is_finished, recipe_module
from pal_jax.run.settings import Run, filled, to_dict
from pal_jax.run.workdir import check_workdir

ALL = 'all'  # the value of `stage` that names every stage
MAY_CHANGE = (  # keys of any run that may change when it goes on; a recipe has further ones in its `MAY_CHANGE`
    'total_steps', 'checkpoint.every', 'checkpoint.minutes', 'checkpoint.keep', 'mesh.data', 'mesh.fsdp', 'mesh.tensor',
    'decode.shares', 'decode.driver', 'decode.address', 'metrics.wandb', 'export', 'eval.every', 'answers',
    'endpoints.*.address', 'endpoints.*.key_env', 'endpoints.*.concurrency', 'endpoints.*.timeout',
    'endpoints.*.retries', 'endpoints.*_price',
)  # fmt: skip


class Stage(NamedTuple):
    """A run: its folder, and the settings of its recipe."""

    folder: Path
    settings: Run

    @property
    def kind(self) -> str:
        """The part of the folder's name that stages of one kind share: `policy` of policy-P2A and policy-P2B."""
        return self.folder.name.partition('-')[0]


def make_stage(settings: Run, folder: Path, kind: type[Run], **values: Any) -> Stage:
    """A stage of the method with these settings, with `values` in place of some of the keys that both have."""
    # The method's `total_steps` are those of one kind of stage, which is given them; the others have 0, or their own.
    return Stage(folder, filled(kind, settings, **{'total_steps': 0, **values, 'part_of': settings.recipe}))


def section_values(section: Any, rows: Path, source: str = '') -> dict[str, Any]:
    """The keys of a stage that is a run of another recipe: those of its section of the method's settings, which learns
    from `<rows>.jsonl` and is tested on `<rows>-test.jsonl`."""
    data = dataclasses.replace(section.data, train=f'{rows}.jsonl', test=f'{rows}-test.jsonl')
    values = {**vars(section), 'data': data}
    if 'policy' in values:
        # A model of the stage's own without a source has `source`.
        values['policy'] = dataclasses.replace(section.policy, source=section.policy.source or source)
    return values


def chosen(stages: Sequence[Stage], name: str) -> list[Stage]:
    """The stages that `stage=NAME` names: all of them, the one in this folder, or all of this kind.

    Raises:
      ValueError: there is no such stage.
    """
    known = dict.fromkeys([name for stage in stages for name in (stage.kind, stage.folder.name)])
    if name != ALL and name not in known:
        raise ValueError(f'stage={name!r} is unknown; use {ALL} or one of {", ".join(known)}')
    return [stage for stage in stages if name in (ALL, stage.kind, stage.folder.name)]


def stages_of(settings: Run, folder: Path) -> list[Stage]:
    """The stages of the method that has these settings; a method that is one run has it as its only stage.

    Raises:
      ValueError: as the method's `stages`.
    """
    of_method = getattr(recipe_module(settings.recipe), 'stages', None)
    return of_method(settings, folder) if of_method else [Stage(folder, settings)]


def settings_in(settings: Run, folder: Path) -> Run:
    """The settings of the run in a folder: of the stage of the method in this folder, or else the method's own.

    Raises:
      ValueError: as `stages_of`; or the method has stages, and none of them is in this folder.
    """
    if not hasattr(module := recipe_module(settings.recipe), 'stages'):
        return settings
    stages = stages_of(settings, folder.parent)
    for stage in stages:
        if stage.folder == folder:
            return stage.settings
    # A method with stages may also be one run by itself.
    if hasattr(module, 'make'):
        return settings
    example = folder / stages[-1].folder.name
    raise ValueError(f'a run of {settings.recipe} has a folder for each of its stages; name one, such as {example}')


def unfinished(settings: Run, folder: Path, changed: Collection[str] = ()) -> Iterator[Stage]:
    """The stages to run, in their order. `changed` is as in `inputs.check`.

    Raises:
      ValueError: as `stages_of`; or a stage began with another config or other input files, or a folder cannot be a
        run's; or a finished stage rules out the next ones.
    """
    stages, ended = stages_of(settings, folder), getattr(recipe_module(settings.recipe), 'stage_ended', None)
    # All stages are checked before the first one runs.
    for stage in stages:
        # The training loop checks a single run.
        if not stage.settings.part_of:
            continue
        check_workdir(stage.folder)
        values = to_dict(stage.settings)
        checkpoint.check_config(stage.folder, values, may_change(stage.settings, stage.folder))
        inputs.compare(inputs.look(values), stage.folder, changed=changed)
    began = time.monotonic()
    for number, stage in enumerate(stages, 1):
        if stage.settings.part_of and is_finished(stage.settings, stage.folder):
            print(f'{stores.shown(stage.folder)} is finished')
        else:
            if len(stages) > 1:
                print(f'part {number} of {len(stages)}: {stores.shown(stage.folder)}')
            yield stage
        if line := ended and ended(settings, stage):
            print(line)
    if len(stages) > 1:
        print(f'all {len(stages)} parts are finished, after {spoken(time.monotonic() - began)} in this call')


def may_change(settings: Run, folder: Path) -> tuple[str, ...]:
    """The keys that may differ between two calls of the run in a folder.

    They are the keys of `MAY_CHANGE` here and in the recipe.
    """
    keys = *MAY_CHANGE, *getattr(recipe_module(settings.recipe), 'MAY_CHANGE', ())
    if not settings.part_of:
        return keys
    beside, values = f'{folder.parent}/', checkpoint.flatten(to_dict(settings))
    # A stage may also change the keys whose values name files of another stage: these lie beside the stage, and both
    # folders may have been moved together.
    return *keys, *(key for key, value in values.items() if beside in str(value))
