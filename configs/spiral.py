r"""SPIRAL: a policy learns zero-sum games against itself, with a baseline for each game and seat (arXiv 2506.24119).

  python -m pal_jax.train --config=configs/spiral.py            # SmolLM2-135M, tic-tac-toe and Kuhn poker
  python -m pal_jax.train --config=configs/spiral.py:quick      # a tenth of the work: too little to learn much
  python -m pal_jax.train --config=configs/spiral.py:smoke      # a random tiny model, nothing learnt
  python -m pal_jax.train --config=configs/spiral.py:tabular    # twelve logits come near an equilibrium of Kuhn poker
  python -m pal_jax.train --config=configs/spiral.py:mlp        # a small network learns tic-tac-toe
  python -m pal_jax.train --config=configs/spiral.py:paper      # Qwen3-4B-Base, the published settings
  python -m pal_jax.train --config=configs/spiral.py --config.play.baseline=none --workdir=runs/no_baseline

--help lists all keys.
"""

from ml_collections import ConfigDict

from pal_jax.learners.training import Lora
from pal_jax.recipes import spiral
from pal_jax.recipes.spiral import small as spiral_small
from pal_jax.recipes.spiral.settings import EvalSettings, PlaySettings, WarmupSettings
from pal_jax.run import presets as p
from pal_jax.run.language import DecodeSettings, ModelSettings


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'quick', 'smoke', 'tabular', 'mlp', 'paper')
    if variant in ('tabular', 'mlp'):
        return {'tabular': tabular, 'mlp': mlp}[variant]()
    optimizer = p.Optimizer(lr=5e-4, warmup_ratio=0.05)
    config = p.to_config(
        spiral.Settings(
            recipe='spiral',
            total_steps=24,
            policy=ModelSettings(lora=Lora(rank=16, alpha=32.0)),
            # Answers are the move alone; those of a negotiation take 13 tokens.
            sampling=p.Sampling(temperature=1.0, max_tokens=8),
            decode=DecodeSettings(slots=32),
            warmup=WarmupSettings(steps=14, positions=24, optimizer=p.Optimizer(lr=2e-3, warmup_ratio=0.1)),
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
            play=PlaySettings(matches=64, shares=(1, 3), max_turns=256, past=3, past_every=8),
            eval=EvalSettings(matches=24, crossplay=8),
        )
    )
    return {'quick': quick, 'smoke': smoke, 'paper': paper}[variant](config) if variant else config


def quick(config: ConfigDict) -> ConfigDict:
    config.total_steps = 3
    config.warmup.steps = 6
    config.play.matches = 24
    config.eval.update(matches=4, random_matches=8, crossplay=2)
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    config.policy.source = 'random:tiny'
    config.policy.dtype = 'float32'
    config.policy.lora.rank = 2
    config.total_steps = 3
    config.sampling.max_tokens = 16
    config.warmup.update(steps=1, positions=4)
    config.play.update(matches=6, games=('tictactoe', 'kuhn', 'negotiation'), shares=())
    config.eval.update(matches=2, random_matches=2, crossplay=1)
    config.play.past_every = 1
    config.decode.slots = 8
    config.checkpoint.every = 1
    return config


def tabular() -> ConfigDict:
    """Seat by seat self-play of a table on 200,000 hands, three seeds."""
    return p.to_config(
        spiral_small.Settings(
            recipe='spiral.small',
            total_steps=25,
            # Each update also takes a thousandth off the logits, which keeps self-play from circling the equilibrium.
            optimizer=p.Optimizer('sgd', lr=0.9, weight_decay=0.0011, warmup_ratio=0.0, min_ratio=1.0),
            export=False,
        )
    )


def mlp() -> ConfigDict:
    """Self-play of a network with a hidden layer of 128 on 102,400 matches of tic-tac-toe, three seeds."""
    return p.to_config(
        spiral_small.Settings(
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
    )


def paper(config: ConfigDict) -> ConfigDict:
    """Sections 4 and 5 of the paper and its released script: three games, answers that reason."""
    config.policy.source = 'hf:Qwen/Qwen3-4B-Base'
    config.policy.remat = 'full'
    config.policy.lora.rank = 0
    config.total_steps = 400
    config.warmup.steps = 0
    config.optimizer = p.to_config(p.Optimizer(lr=1e-6, warmup_ratio=0.0, min_ratio=1.0))
    config.ppo.update(kl_coef=0.0, epochs=2, row_tokens=0, micro_rows=4, old_logprobs='policy')
    config.sampling.max_tokens = 4096
    config.play.update(
        games=('tictactoe', 'kuhn', 'negotiation'),
        shares=(),
        matches=64,
        max_turns=128,
        past=0,
        rounds=5,
        reasoned=True,
    )
    config.eval.update(every=16, matches=8, random_matches=8)
    config.decode.update(slots=128, stride=8)
    return config
