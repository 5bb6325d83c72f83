"""Turns of a policy in dialogues: their sampling, and demonstrations of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from pal_jax.data.packing import Example, pack_examples, round_up
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import sampler
from pal_jax.decode.choose import Decoder
from pal_jax.recipes.rlpa.demonstrations import TOPICS, Demonstration, make_demonstrations
from pal_jax.recipes.rlpa.dialogue import actor_prompt, fit_dialogue, messages
from pal_jax.recipes.rlpa.profiles import parse_completion
from pal_jax.recipes.rlpa.settings import Dialogues
from pal_jax.recipes.rlpa.world import read_system
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer
from pal_jax.types import Dialogue, Sample, TokenBatch

# Takes dialogues, the number of samples of each, a seed and `tell`: see `make_turn_sampler`.
Sampler = Callable[..., list[Sample]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupSettings:
    """Steps of supervised learning on made-up people before reinforcement."""

    steps: int  # the number of steps; 0: no warm-up
    rows: int  # rows of a step
    examples_per_row: int  # examples of each row
    examples: int  # the number of different examples
    optimizer: Optimizer  # with the name of the policy's optimiser, whose state it shares


def make_turn_sampler(settings: Dialogues, system: str, tokenizer: Tokenizer, decoder: Decoder) -> Sampler:
    """A function that samples the next turn of dialogues, `n` times each; `tell` receives each sample as soon as it is
    there."""
    sampling, longest = settings.sampling, settings.dialogue.prompt_max_len

    def render(dialogue: Dialogue) -> tuple[int, ...]:
        return tuple(tokenizer.chat(messages(dialogue, system)))

    def prompt_of(dialogue: Dialogue) -> tuple[int, ...]:
        prompt = render(
            fit_dialogue(dialogue, lambda shortened: len(render(shortened)) <= longest) if longest else dialogue
        )
        if longest and len(prompt) > longest:
            raise ValueError(
                f'the last messages alone of {dialogue.person.id!r} make a prompt of {len(prompt)} tokens, more than '
                f'dialogue.prompt_max_len={longest}; raise it'
            )
        return prompt

    def sample_turns(
        dialogues: Sequence[Dialogue], n: int, seed: Sequence[int], tell: Callable[[Sample], None] | None = None
    ) -> list[Sample]:
        prompts = list(map(prompt_of, dialogues))
        return sampler.sample(
            decoder, tokenizer, prompts, [sampling] * n, seed, sources=dialogues, parse=parse_completion, tell=tell
        )

    return sample_turns


def make_demonstration_batches(
    settings: Dialogues, warmup: WarmupSettings, tokenizer: Tokenizer, mesh: Mesh
) -> Callable[[int], TokenBatch]:
    """A function that gives the batch of a step's supervised update: demonstrations, each ended by the token that ends
    a turn."""
    system = read_system(settings.dialogue.system)
    # The embedded prompt names the topics of the demonstrations, and not those of people.
    system = actor_prompt(TOPICS) if system is None else system

    def example(demonstration: Demonstration) -> Example:
        prompt = tokenizer.chat(messages(demonstration.dialogue, system))
        return Example(prompt, [*tokenizer.plain(demonstration.completion), tokenizer.stop_ids[0]])

    examples = [example(demonstration) for demonstration in make_demonstrations(warmup.examples, seed=settings.seed)]
    ways, per_row = sharding.batch_ways(mesh), warmup.examples_per_row
    rows = round_up(warmup.rows, ways)

    def batch(i: int) -> TokenBatch:
        packed = pack_examples(
            examples, groups=rows, n=per_row, i=i, seed=settings.seed, ways=ways, row_tokens=settings.ppo.row_tokens
        )
        return sharding.put_batch(packed, mesh)

    return batch
