"""Forgets a person of a finished run: drops the row from the table of users of every model and split, the name, and the
row of `people.csv`, and the person's effects by the mixed logit.

What all people share has learnt from the person too, and stays as it is: `forget` says which parameters these are. A
run is rid of a person's choices altogether only by training again without them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data import records
from pal_jax.recipes.personal import logit_people, portrait
from pal_jax.recipes.personal.learner import UserTable
from pal_jax.recipes.personal.pal import kept as pal_kept
from pal_jax.recipes.personal.pal import large as pal_large
from pal_jax.recipes.personal.pal.reward import open_parts, settings_of
from pal_jax.run import files, stores
from pal_jax.run.checkpoint import FOLDER, Checkpoints
from pal_jax.run.forecast import counted
from pal_jax.run.recipe import KEPT
from pal_jax.run.workdir import held, run_folder

FRESH, OLD = 'forgetting', 'old'  # the folder in which the new checkpoint is made, and the old ones meanwhile


class Forgotten(NamedTuple):
    """The traces of a person in a run: the number of splits that learnt from the person, of how many, the most updates
    in which a model did so, the names of the parameters that all people share, and whether there is a mixed logit."""

    splits: int
    of: int
    updates: int
    shared: tuple[str, ...]
    logit: bool

    def in_words(self, workdir: str, name: str) -> str:
        """A sentence about what was dropped, and what has learnt from the person and stays."""
        dropped = f'{name}: the row and the name are dropped from {workdir}.'
        if not self.updates and not self.logit:
            return f'{dropped} No parameter has learnt from this person, who was new to all {self.of} splits.'
        learnt = (
            f'What all people share ({", ".join(self.shared)}) has learnt from this person in up to '
            f'{counted(self.updates, "update")} in {self.splits} of {self.of} splits, and stays'
        )
        logit = 'The mixed logit of all people was estimated from the choices of this person, too, and stays'
        stays = '. '.join([*([learnt] if self.updates else []), *([logit] if self.logit else [])])
        return (
            f'{dropped} {stays}; so do the figures of the report. To be rid of that, delete the rows of this person in '
            'the data and train again in another --workdir.'
        )


def forget(workdir: str, name: str) -> Forgotten:
    """Drop a person's row from the last checkpoint of a run, and delete the earlier checkpoints.

    Raises:
      ValueError: the folder is of no run of PAL, a run is under way in it, or it has no such person.
    """
    workdir = run_folder(workdir)
    stores.check_local(Path(workdir), '--source')
    settings, folder = settings_of(workdir), Path(workdir)
    kept = pal_kept.load(folder / KEPT)
    name = records.spelled(name, kept.names)
    if name not in kept.rows:
        raise ValueError(f'{name!r} is not among the {len(kept.names)} people of {workdir}')
    people = _without(folder / portrait.PEOPLE, name)
    population = logit_people.load(folder, kept.attributes, kept.scale)
    row, abstract = kept.rows[name], open_parts(workdir, settings).abstract
    with held(folder):
        # A forgetting that was stopped half-way is undone, so that the run has its checkpoints.
        if (folder / FRESH / OLD).exists() and not (folder / FOLDER).exists():
            (folder / FRESH / OLD).rename(folder / FOLDER)
        shutil.rmtree(folder / FRESH, ignore_errors=True)
        state, host, step = Checkpoints(workdir, abstract, read_only=True).read()
        # 1. The row of the person is that of nobody: no logits, no moments, no updates.
        learnt: list[np.ndarray] = []

        def cleared(table: Any) -> Any:
            if not isinstance(table, UserTable):
                return table
            learnt.append(np.asarray(table.updates)[:, row])
            return jax.tree.map(lambda x: jax.device_put(x.at[:, row].set(0), x.sharding), table)

        state = jax.tree.map(cleared, state, is_leaf=lambda x: isinstance(x, UserTable))
        # 2. A new checkpoint takes the place of all earlier ones, which still have the row.
        fresh = Checkpoints(folder / FRESH, abstract)
        fresh.save(step, state, host)
        fresh.wait()
        fresh.close()
        # The row keeps its place, so that all other people keep theirs.
        names = tuple(f'forgotten {row}' if known == name else known for known in kept.names)
        pal_kept.save(folder / KEPT, kept._replace(names=names))
        if people is not None:
            files.write_whole(folder / portrait.PEOPLE, people, 'backslashreplace')
        if population is not None:
            others = logit_people.without_person(population, name)
            text = logit_people.to_json(others, kept.attributes, kept.scale)
            files.write_whole(folder / logit_people.FILE, text, 'backslashreplace')
        (folder / FOLDER).rename(folder / FRESH / OLD)
        (folder / FRESH / FOLDER).rename(folder / FOLDER)
        shutil.rmtree(folder / FRESH)
    # Only splits with true ids are of this person; the others came after them.
    by_split = np.max(learnt, axis=0)[: settings.split.seeds]
    learnt_by = int(np.sum(by_split > 0)), len(by_split), int(by_split.max())
    return Forgotten(*learnt_by, _shared(state), population is not None)


def _without(people: Path, name: str) -> str | None:
    """The text of the file of people without the row of a person; None: there is no such file.

    Raises:
      ValueError: another program has changed the file.
    """
    if not people.exists():
        return None
    text = files.read_text(people)
    if not text.startswith('participant,'):
        raise ValueError(f'{people} was changed by another program; delete or move it, and give the command again')
    return portrait.without_person(text, name)


def _shared(state: Any) -> tuple[str, ...]:
    """The names of what people share, over all models of a state, and the decoder's adapters of PAL-Large."""
    words = {'P': 'prototypes', 'f': 'the map of items', 'g': 'the maps of prompts', 'log_scale': 'the scale'}
    large = isinstance(state, pal_large.LargeState)
    models: Any = (model.pal for model in state.models.values()) if large else state.values()
    names = {name for model in models for name in model.params}
    known = [words[name] for name in words if name in names] + sorted(names - words.keys())
    return (*known, *(['the decoder'] if large else []))
