"""The prompts of Personalized Soups: questions, with the preferences that answers are to suit."""

from __future__ import annotations

from typing import Any, NamedTuple

from pal_jax.data import chats, records
from pal_jax.data.holdouts import normal
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.recipes.psoups import preferences
from pal_jax.recipes.psoups.preferences import Preference, ask
from pal_jax.recipes.psoups.questions import make_questions
from pal_jax.recipes.psoups.settings import InstructionSettings, PreferenceKeys, PromptedKeys


class Prompt(NamedTuple):
    """A question, as an instruction and an input that the instruction is about."""

    id: str
    instruction: str
    input: str = ''

    @property
    def question(self) -> str:
        return f'{self.instruction} {self.input}'.strip()


class PreferencePrompt(NamedTuple):
    """A prompt with the preferences that stand in the policy's prompt; there may be none."""

    prompt: Prompt
    preferences: tuple[Preference, ...] = ()

    @property
    def text(self) -> str:
        """The text that the policy reads."""
        return ask(self.prompt.question, self.preferences)

    @property
    def readings(self) -> list[str]:
        """The texts that reward models read: the question with one preference at a time, or with none (I.6, edge 1)."""
        return [ask(self.prompt.question, [pole]) for pole in self.preferences] or [self.prompt.question]


def read_preferences(settings: PreferenceKeys) -> tuple[Preference, ...]:
    """The preferences that `preferences` and `poles` name. Raises ValueError where these are wrong."""
    return preferences.choose(known_preferences(settings.preferences), settings.poles)


def everyone(settings: PreferenceKeys) -> tuple[Preference, ...]:
    """The general preference, then the preferences that `preferences` and `poles` name."""
    return preferences.general(), *read_preferences(settings)


def known_preferences(source: str) -> tuple[Preference, ...]:
    """All preferences that `preferences` of a config names, whatever `poles` says."""
    return preferences.embedded() if source == preferences.EMBEDDED else preferences.load_preferences(source)


def read_prompts(settings: PromptedKeys, split: str, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of a split that leave room for the longest texts of preferences.

    Raises:
      ValueError: as `known_prompts`, or no prompt is left.
    """
    section = settings.prompts
    # All systems answer the same prompts, so a prompt has to fit with the longest texts.
    longest = max(preferences.combinations(read_preferences(settings)), key=lambda poles: len(ask('', poles)))
    prompts = known_prompts(section, split)
    lengths = [len(tokenizer.chat(chats.as_chat(ask(prompt.question, longest)))) for prompt in prompts]
    prompts = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= section.max_length]
    prompts = prompts[: getattr(section, f'{split}_count') or None]
    if not prompts:
        raise ValueError(f'no prompt of prompts.{split} fits prompts.max_length={section.max_length}; raise it')
    return prompts


def known_prompts(settings: InstructionSettings, split: str) -> list[Prompt]:
    """The prompts of a split; `train` is without prompts that ask what a prompt of `test` asks.

    Raises:
      ValueError: a file has no prompt, or a line that is none; or all prompts to learn from are in the test.
    """
    prompts = _given_prompts(settings, split)
    if split == 'test':
        return prompts
    # Questions are compared in a normal form, so that spelling hides no repetition.
    tested = {normal(prompt.question) for prompt in _given_prompts(settings, 'test')}
    learnt = [prompt for prompt in prompts if normal(prompt.question) not in tested]
    if not learnt:
        raise ValueError(f'all prompts of prompts.train={settings.train} are in prompts.test; give others')
    return learnt


def prompts_moved(settings: InstructionSettings) -> int:
    """The number of prompts of `prompts.train` that are left out, since `prompts.test` has them."""
    return len(_given_prompts(settings, 'train')) - len(known_prompts(settings, 'train'))


def _given_prompts(settings: InstructionSettings, split: str) -> list[Prompt]:
    source = getattr(settings, split)
    if source == 'embedded':
        return [Prompt(f'{split}-{i}', question) for i, question in enumerate(make_questions(split))]
    return [prompt._replace(id=f'{split}-{i}') for i, prompt in enumerate(records.read_all(source, to_prompt))]


def to_prompt(record: Any) -> Prompt:
    """The prompt of a record, without an id. Raises ValueError where the record has no prompt."""
    text = record.get('instruction', record.get('prompt')) if isinstance(record, dict) else None
    extra = record.get('input') or '' if isinstance(record, dict) else ''
    if not isinstance(text, str) or not text.strip() or not isinstance(extra, str):
        raise ValueError("expected an object with 'instruction' and, if you like, 'input', both texts")
    return Prompt('', text.strip(), extra.strip())
