"""What the stages of Personalized Soups share.

A stage that trains nothing works in parts (`parts/piecework.py`); its last evaluation puts them together, in the
folder that all stages share:

rollouts.jsonl         id, preference_id, instruction, input, preference_prompt, output_1, output_2, ...
annotations.jsonl      the same for two outputs, with annotator and preference: 1 or 2; 0: neither; null: no verdict
pairs/<name>.jsonl     what reward models learn from, and on other prompts pairs/<name>-test.jsonl, to test them on;
                       <name> is `best` for the best answer to each prompt under each pole, which multitask learns
merged/<combination>/  adapters as the library peft has them
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data import chats, inputs
from pal_jax.data.holdouts import normal
from pal_jax.data.packing import Group, shared_prompt
from pal_jax.data.thoughts import spoken
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.feedback import annotators, preferences
from pal_jax.feedback.annotators import Annotator, Spec
from pal_jax.feedback.preferences import Preference
from pal_jax.feedback.questions import make_questions
from pal_jax.learners.scorer import to_score
from pal_jax.models import params as model_params
from pal_jax.models.params import Params
from pal_jax.parts import sampler
from pal_jax.parts.chat_models import ChatModels
from pal_jax.parts.recipe import (
    Config,
    Context,
    Policy,
    read_config,
    trained_in,
)
from pal_jax.recipes import reward
from pal_jax.runtime import sharding
from pal_jax.runtime.checkpoint import Checkpoints
from pal_jax.runtime.report import REPORT
from pal_jax.types import ChatModel, Sample

ROLLOUTS, ANNOTATIONS, PAIRS, MERGED = 'rollouts.jsonl', 'annotations.jsonl', 'pairs', 'merged'

# Of the readings of questions, and of the replies to each; see `make_score`.
Score = Callable[[Sequence[Sequence[str]], Sequence[Sequence[str]]], np.ndarray]
Sampler = Callable[..., list[Sample]]  # of weights, questions, samples of each and a seed: see `make_sampler`


class Prompt(NamedTuple):
    """What is asked, as instruction and input have it."""

    id: str
    instruction: str
    input: str = ''

    @property
    def question(self) -> str:
        return f'{self.instruction} {self.input}'.strip()


# --- what all stages read ---------------------------------------------------------------------------------------------


def read_preferences(config: Config) -> tuple[Preference, ...]:
    """Those that `preferences` and `poles` name. Raises ValueError where they are wrong."""
    return preferences.choose(known_preferences(config), config.poles)


def known_preferences(config: Config) -> tuple[Preference, ...]:
    """All that `preferences` names, whatever `poles` says."""
    given = config.preferences
    return preferences.embedded() if given == preferences.EMBEDDED else preferences.load_preferences(given)


def read_prompts(config: Config, split: str, tokenizer: Tokenizer) -> list[Prompt]:
    """Those of a split that leave room for the longest texts of preferences.

    Raises:
      ValueError: as `known_prompts`, or nothing is left.
    """
    settings = config.prompts
    longest = max(preferences.combinations(read_preferences(config)), key=lambda c: len(preferences.ask('', c)))

    def fits(prompt: Prompt) -> bool:
        return len(tokenizer.chat(as_chat(preferences.ask(prompt.question, longest)))) <= settings.max_length

    prompts = list(filter(fits, known_prompts(config, split)))[: settings[f'{split}_count'] or None]
    if not prompts:
        raise ValueError(f'no prompt of prompts.{split} fits prompts.max_length={settings.max_length}; raise it')
    return prompts


def known_prompts(config: Config, split: str) -> list[Prompt]:
    """The prompts of a split; of `train` without those that ask what a prompt of `test` asks.

    Raises:
      ValueError: a file has no prompt, or a line that is none; or all prompts to learn from are in the test.
    """
    prompts = _given_prompts(config, split)
    if split == 'test':
        return prompts
    tested = {normal(prompt.question) for prompt in _given_prompts(config, 'test')}
    learnt = [prompt for prompt in prompts if normal(prompt.question) not in tested]
    if not learnt:
        raise ValueError(f'all prompts of prompts.train={config.prompts.train} are in prompts.test; give others')
    return learnt


def prompts_moved(config: Config) -> int:
    """How many of `prompts.train` are left out, since `prompts.test` has them."""
    return len(_given_prompts(config, 'train')) - len(known_prompts(config, 'train'))


def _given_prompts(config: Config, split: str) -> list[Prompt]:
    given = config.prompts[split]
    if given == 'embedded':
        return [Prompt(f'{split}-{i}', question) for i, question in enumerate(make_questions(split))]
    return [prompt._replace(id=f'{split}-{i}') for i, prompt in enumerate(chats.read(given, to_prompt))]


def to_prompt(record: Any) -> Prompt:
    """A record's prompt, without an id. Raises ValueError if it has none."""
    text = record.get('instruction', record.get('prompt')) if isinstance(record, dict) else None
    given = record.get('input') or '' if isinstance(record, dict) else ''
    if not isinstance(text, str) or not text.strip() or not isinstance(given, str):
        raise ValueError("expected an object with 'instruction' and, if you like, 'input', both texts")
    return Prompt('', text.strip(), given.strip())


def as_chat(text: str) -> list[dict[str, str]]:
    return [{'role': 'user', 'content': text}]


def make_sampler(config: Config, policy: Policy, ctx: Context, at_once: int) -> Sampler:
    """Answers of a policy without their thoughts, `n` neighbours to each question, at most `at_once` at a time."""
    decoder, sampling = sampler.make_decoder(config, policy, ctx, at_once), sampler.make_sampling(config)

    def sample(params: Params, asked: Sequence[str], n: int, seed: Sequence[int]) -> list[Sample]:
        prompts = [tuple(policy.tokenizer.chat(as_chat(text))) for text in asked]
        decoder.load(params)
        samples = sampler.sample(decoder, policy.tokenizer, prompts, [sampling] * n, seed, sources=asked)
        decoder.release()
        return list(map(without_thoughts, samples))

    return sample


def without_thoughts(sample: Sample) -> Sample:
    """The sample whose text is what its answer says: nothing, where a thought does not end. Its tokens stay."""
    said = dataclasses.replace(sample.completion, text=spoken(sample.completion.text) or '')
    return dataclasses.replace(sample, completion=said)


def load_base(policy: Policy, ctx: Context) -> Params:
    """The weights that `policy` names, on the mesh."""
    return policy.source.load(sharding.param_shardings(model_params.decoder_specs(policy.cfg), ctx.mesh))


def read_annotators(given: str, config: Config, default: Spec = annotators.LABELLING) -> dict[str, Spec]:
    """Those of a file, or the one that endpoint:<name>, local:<source> or rule is.

    Raises:
      ValueError: the file is wrong, or has one, after its first, that judges no preference.
    """
    if not given.endswith(('.yaml', '.yml')):
        return {given: default._replace(decoder=given)}
    found = annotators.load_annotators(given)
    known = [preferences.GENERAL, *(each.id for each in known_preferences(config))]
    if idle := [name for name in [*found][1:] if name not in known]:
        raise ValueError(f'{given}: {idle[0]} is neither its first annotator nor one of {", ".join(known)}')
    return found


def open_annotators(models: ChatModels, specs: Mapping[str, Spec], role: str = 'judge') -> Callable[[str], Annotator]:
    """Who judges a preference, by its id; a local model samples as `config.endpoints` has it for the role.

    Raises:
      ValueError: there is no such judge.
    """

    def opened(spec: Spec) -> Annotator:
        def make(model: ChatModel) -> Annotator:
            return annotators.make_annotator(model, spec)

        return models.choose(role, spec.decoder, make, spec.model, rule=lambda: annotators.annotate_by_rule)

    found = {name: opened(spec) for name, spec in specs.items()}
    first = next(iter(found.values()))
    return lambda preference: found.get(preference, first)


def check_verdicts(failed: int, asked: int, stage: Config, judge: str, why: str) -> None:
    """Raises RuntimeError where more than a share `max_failed` of a stage's rows has no verdict of `judge`, which is
    where the config names it; `why` is what servers said."""
    if failed > stage.max_failed * asked:
        raise RuntimeError(
            f'{failed} of {asked} rows have no verdict, more than {judge.partition(".")[0]}.max_failed='
            f'{stage.max_failed}; check {judge} ({why or "its answers could not be read"}), then run this again with a '
            "higher limit, or with --config.answers='', by which it is asked anew"
        )


def check_finished(folder: Path) -> None:
    """Raises ValueError where a stage has not come to its end."""
    if not (folder / REPORT).exists():
        stage, _, preference = folder.name.partition('-')
        named = f'stage={stage}' + (f',preference={preference}' if preference else '')
        raise ValueError(f'{folder} is not finished; run {named} first (stage=all runs all in order)')


def check_trained(folder: Path, config: Config) -> None:
    """Raises ValueError where a stage is not finished, has trained adapters of another base or kind, or has read
    other preferences or prompts by the same name."""
    check_finished(folder)
    inputs.check_shared(inputs.look(config.to_dict()), folder)
    theirs, ours = ({**each.policy.to_dict(), 'seed': each.seed} for each in (read_config(str(folder)), config))
    random = ours['source'].startswith('random:')  # then the seed makes the base
    for key in ('source', 'lora', *(['seed'] if random else [])):
        if theirs[key] != ours[key]:
            named = key if key == 'seed' else f'policy.{key}'
            raise ValueError(
                f'{folder} was trained with {named}={theirs[key]}, got {ours[key]}; give that or another --workdir'
            )


def open_adapters(folder: Path, ctx: Context) -> Params:
    """The adapters a stage has trained, from its last checkpoint, whole on every device. Raises ValueError where
    there are none."""
    trained = trained_in(str(folder), ctx)

    def only_adapters(path: Any, leaf: Any) -> Any:
        return leaf if '.model.params' in jax.tree_util.keystr(path) else ...

    adapters = jax.tree_util.tree_map_with_path(only_adapters, trained.exported)
    state, *_ = Checkpoints(folder, adapters, read_only=True).read()
    return jax.jit(lambda params: params, out_shardings=sharding.replicated(ctx.mesh))(
        trained.actor(state).model.params
    )


def make_score(folder: Path, ctx: Context) -> Score:
    """Scores of replies by the reward model in `folder`, which is read at the first call: `[questions, replies of
    each]`, the mean over what it reads of a question, each with the reply (I.6, edges 1 and 3)."""

    @functools.cache
    def opened() -> Callable[[Sequence[tuple[str, Sequence[str]]]], np.ndarray]:
        tokenizer, pooling, scores = reward.open_scores(folder, ctx)
        return lambda texts: scores([to_group(tokenizer, *each, pooling) for each in texts])

    def score(readings: Sequence[Sequence[str]], replies: Sequence[Sequence[str]]) -> np.ndarray:
        texts = [(text, each) for own, each in zip(readings, replies, strict=True) for text in own]
        return opened()(texts).reshape(len(readings), -1, len(replies[0])).mean(axis=1)

    return score


def to_group(tokenizer: Tokenizer, question: str, replies: Sequence[str], pooling: str = 'last') -> Group:
    """Replies to one question, whole, of the tokens that reward models have learnt from."""
    turns = [{'prompt': as_chat(question), 'completion': [{'role': 'assistant', 'content': each}]} for each in replies]
    read = [chats.to_imitate(each, tokenizer) for each in turns]
    return shared_prompt([to_score(each.prompt, each.completion, pooling) for each in read])
