r"""SPIRAL: a policy learns zero-sum games against itself, with a baseline for each game and seat (arXiv 2506.24119).

  pal-jax train --config=spiral                                 # SmolLM2-135M, tic-tac-toe and Kuhn poker
  pal-jax train --config=spiral:quick                           # a tenth of the work: too little to learn much
  pal-jax train --config=spiral:smoke                           # a random tiny model, nothing learnt
  pal-jax train --config=spiral:tabular                         # twelve logits come near an equilibrium of Kuhn poker
  pal-jax train --config=spiral:mlp                             # a small network learns tic-tac-toe
  pal-jax train --config=spiral:paper                           # Qwen3-4B-Base, the published settings
  pal-jax train --config=spiral --config.play.baseline=none --workdir=runs/no_baseline

--help lists all keys.
"""

from pal_jax.learners.training import Lora
from pal_jax.recipes import spiral
from pal_jax.recipes.spiral import small as spiral_small
from pal_jax.recipes.spiral.settings import LegalActionSettings, MatchEvaluationSettings, MatchSettings
from pal_jax.run import presets as p
from pal_jax.run.language import DecodeSettings, ModelSettings


def get_config(variant: str = '') -> spiral.Settings | spiral_small.Settings:
    variant = p.parse_variant(variant, 'quick', 'smoke', 'tabular', 'mlp', 'paper')
    if variant in ('tabular', 'mlp'):
        return {'tabular': tabular, 'mlp': mlp}[variant]()
    optimizer = p.Optimizer(lr=5e-4, warmup_ratio=0.05)
    settings = spiral.Settings(
        recipe='spiral',
        total_steps=24,
        policy=ModelSettings(lora=Lora(rank=16, alpha=32.0)),
        # Answers are the move alone; those of a negotiation take 13 tokens.
        sampling=p.Sampling(temperature=1.0, max_tokens=8),
        decode=DecodeSettings(slots=32),
        warmup=LegalActionSettings(steps=14, positions=24, optimizer=p.Optimizer(lr=2e-3, warmup_ratio=0.1)),
        optimizer=optimizer,
        critic=optimizer,  # there is none
        ppo=p.PPO(
            estimator='reinforce',
            loss_agg='constant',
            kl_coef=0.1,  # to the warmed-up policy: without it so few matches end in one line of play
            epochs=1,
            row_tokens=512,
            micro_rows=1,
            old_logprobs='sampler',
        ),
        # Kuhn poker has twelve prompts, so that a hand costs a tenth of a match of tic-tac-toe.
        play=MatchSettings(matches=64, shares=(1, 3), max_turns=256, past=3, past_every=8),
        eval=MatchEvaluationSettings(matches=24, crossplay=8),
    )
    return {'quick': quick, 'smoke': smoke, 'paper': paper}[variant](settings) if variant else settings


def quick(settings: spiral.Settings) -> spiral.Settings:
    return p.changed(
        settings, total_steps=3, warmup=dict(steps=6), play=dict(matches=24),
        eval=dict(matches=4, random_matches=8, crossplay=2),
    )  # fmt: skip


def smoke(settings: spiral.Settings) -> spiral.Settings:
    return p.changed(
        settings,
        policy=dict(source='random:tiny', dtype='float32', lora=dict(rank=2)),
        total_steps=3,
        sampling=dict(max_tokens=16),
        warmup=dict(steps=1, positions=4),
        play=dict(matches=6, games=('tictactoe', 'kuhn', 'negotiation'), shares=(), past_every=1),
        eval=dict(matches=2, random_matches=2, crossplay=1),
        decode=dict(slots=8),
        checkpoint=dict(every=1),
    )


def tabular() -> spiral_small.Settings:
    """Seat by seat self-play of a table on 200,000 hands, three seeds."""
    return spiral_small.Settings(
        recipe='spiral.small',
        total_steps=25,
        # Each update also takes a thousandth off the logits, which keeps self-play from circling the equilibrium.
        optimizer=p.Optimizer('sgd', lr=0.9, weight_decay=0.0011, warmup_ratio=0.0, min_ratio=1.0),
        export=False,
    )


def mlp() -> spiral_small.Settings:
    """Self-play of a network with a hidden layer of 128 on 102,400 matches of tic-tac-toe, three seeds."""
    return spiral_small.Settings(
        recipe='spiral.small',
        total_steps=20,
        game='tictactoe',
        hidden=128,
        batch=128,
        updates=40,
        entropy=0.03,  # without it self-play settles on a few lines of play
        optimizer=p.Optimizer('adam', lr=3e-3, warmup_ratio=0.0, min_ratio=1.0),
        export=False,
    )


def paper(settings: spiral.Settings) -> spiral.Settings:
    """Sections 4 and 5 of the paper and its released script: three games, answers that reason."""
    return p.changed(
        settings,
        policy=dict(source='hf:Qwen/Qwen3-4B-Base', remat='full', lora=dict(rank=0)),
        total_steps=400,
        warmup=dict(steps=0),
        optimizer=p.Optimizer(lr=1e-6, warmup_ratio=0.0, min_ratio=1.0),
        ppo=dict(kl_coef=0.0, epochs=2, row_tokens=0, micro_rows=4, old_logprobs='policy'),
        sampling=dict(max_tokens=4096),
        play=dict(
            games=('tictactoe', 'kuhn', 'negotiation'), shares=(), matches=64, max_turns=128, past=0, rounds=5,
            reasoned=True,
        ),
        eval=dict(every=16, matches=8, random_matches=8),
        decode=dict(slots=128, stride=8),
    )  # fmt: skip
