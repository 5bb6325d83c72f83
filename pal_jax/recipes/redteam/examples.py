"""Stage examples of Self-RedTeam: moves of both roles, which a small model learns from before it plays."""

from __future__ import annotations

import dataclasses

from pal_jax.recipes.redteam.attack import RedTeam
from pal_jax.recipes.redteam.settings import ExampleSettings
from pal_jax.recipes.redteam.stand_ins import make_examples
from pal_jax.run import piecework
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import Context, Evaluation, Host
from pal_jax.run.settings import Run
from pal_jax.types import Metrics

RECORDS = 'records'  # the folder of the examples, beside the stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of stage examples."""

    examples: ExampleSettings = ExampleSettings()
    hidden: bool = True  # moves think in private before they answer, as `play.hidden`


def make(settings: Settings, ctx: Context) -> Piecework:
    """The recipe of the stage: moves of both roles, to learn from and to test on."""
    game, folder = RedTeam(hidden=settings.hidden), ctx.workdir.parent / RECORDS

    def work(host: Host, i: int) -> tuple[Records, Host, Metrics]:
        parts = {'': ('train', settings.examples.count), '-test': ('test', settings.examples.test_count)}
        for ending, (split, count) in parts.items():
            rows = make_examples(count, split=split, seed=settings.seed, game=game)  # type: ignore[arg-type]
            piecework.write(folder / f'sft{ending}.jsonl', rows)
        return [{'rows': settings.examples.count}], host, {'answers': float(settings.examples.count)}

    def finish(records: Records) -> Evaluation:
        return Evaluation({'rows': records[0]['rows']})

    return piecework.make(ctx, 1, work, 'examples', finish)
