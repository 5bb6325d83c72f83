"""Talks with a model in the terminal. A policy that was trained to know its user shows the profile beside the reply.

  pal-jax chat                                             the embedded model
  pal-jax chat --source=runs/rlpa                          a run of this package

Options:
  --source=SOURCE     a run's folder (--workdir=FOLDER is the same), gguf:<file>, hf:<folder or hub id> or random:tiny;
                      default the embedded model
  --system=TEXT       the system prompt; default: of a run of RLPA its own, of a run on rows that of
                      all its rows, else none
  --temperature=T     0 always takes the likeliest token; default 0.7; of a run of RLPA that of its training
  --max_tokens=N      of an answer; default that of a run of RLPA, or 256
  --max_len=N         tokens of the whole conversation; default 2048, or what the model has room for
  --seed=N            the same seed and the same words get the same answers; default 0

Write a line and press Enter; /again starts anew, /quit or Ctrl-D ends.
"""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from collections.abc import Iterable, Iterator

from absl import flags
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pal_jax.commands.talking import chat_preset, open_model, source_or_run
from pal_jax.data.thoughts import spoken_reply
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.decode.serve.page import Preset
from pal_jax.recipes.rlpa.dialogue import messages
from pal_jax.recipes.rlpa.profiles import ParsedCompletion, parse_completion
from pal_jax.run import cli, stores
from pal_jax.types import Dialogue, Person, Turn

SYSTEM = flags.DEFINE_string('system', None, 'The system prompt.')
TEMPERATURE = flags.DEFINE_float('temperature', None, 'Of sampling.', lower_bound=0.0)
MAX_TOKENS = flags.DEFINE_integer('max_tokens', None, 'Of an answer.', lower_bound=1)
MAX_LEN = flags.DEFINE_integer('max_len', 2048, 'Tokens of the conversation.', lower_bound=2)
SEED = flags.DEFINE_integer('seed', 0, 'Of sampling.', lower_bound=0)
YOU = Person('you', ())


def main() -> None:
    """Open the model, and answer the lines of the user until the end of input."""
    console = Console()
    source = source_or_run()
    decoder, tokenizer, preset = cli.faults(open_chat, source)
    console.print(Text(f'{stores.shown(source)}: /again starts anew, /quit ends'))
    for answer in talk(decoder, tokenizer, preset, lines(console), seed=SEED.value):
        console.print(answer)


def open_chat(source: str) -> tuple[LocalDecoder, Tokenizer, Preset]:
    """A model in a decoder of one slot, its tokenizer, and the system prompt and sampling to talk with it."""
    preset = chat_preset(source)
    changes = {'temperature': TEMPERATURE.value, 'max_tokens': MAX_TOKENS.value}
    sampling = dataclasses.replace(preset.sampling, **{k: v for k, v in changes.items() if v is not None})
    preset = preset._replace(sampling=sampling, system=preset.system if SYSTEM.value is None else SYSTEM.value)
    model, cfg, tokenizer, mesh = open_model(source, 'auto', MAX_LEN.value)
    decoder = LocalDecoder(cfg, tokenizer, mesh, slots=1, grain=512)
    decoder.load(model.load(decoder.param_shardings))
    return decoder, tokenizer, preset


def lines(console: Console) -> Iterator[str]:
    """The lines that the user writes, until the input ends."""
    while True:
        try:
            yield console.input('[bold]you[/bold]: ' if sys.stdin.isatty() else '')
        except (EOFError, KeyboardInterrupt):
            return


def talk(
    decoder: LocalDecoder, tokenizer: Tokenizer, preset: Preset, said_lines: Iterable[str], *, seed: int
) -> Iterator[Columns | Text]:
    """The answer to each line that the user says, as the console shows it; commands and empty lines have none.

    Line number `i`, from 0, is answered with the random seed `seed + i`.
    """
    start = dialogue = Dialogue(YOU, ())
    for number, line in enumerate(said_lines):
        if line == '/quit':
            return
        if line == '/again':
            dialogue = start
        if line == '/again' or not line.strip():
            continue
        # A line enters the dialogue with its answer, so a line without one can be said again.
        open_dialogue = dataclasses.replace(dialogue, turns=(*dialogue.turns, Turn('user', line)))
        try:
            text = reply(decoder, tokenizer, preset, open_dialogue, seed + number)
        except ValueError as error:
            yield Text(f'{error}; /again starts anew', style='red')
            continue
        bare = spoken_reply(text)
        if bare is None:
            yield Text(f'{visible(text)}\n(its thought did not end; ask for more --max_tokens)', style='yellow')
            continue
        # A policy that has learnt the format writes profile and reply, any other model a reply alone.
        parsed = parse_completion(text) if preset.layout else ParsedCompletion('', (), bare.strip())
        if parsed is None:
            yield Text(
                f'{visible(bare)}\n(not in the format it was trained to write; say it otherwise)', style='yellow'
            )
            continue
        dialogue = dataclasses.replace(
            open_dialogue, turns=(*open_dialogue.turns, Turn('assistant', parsed.reply, parsed.profile))
        )
        yield reply_columns(parsed, with_profile=bool(preset.layout))


def reply(decoder: LocalDecoder, tokenizer: Tokenizer, preset: Preset, dialogue: Dialogue, seed: int) -> str:
    """The text of the model's next turn, with its thoughts as the tokenizer's template has them.

    Raises:
      ValueError: the conversation has become too long for the model.
    """
    chat = [{'role': 'system', 'content': preset.system}] if preset.system else []
    chat += [{'role': turn.role, 'content': turn.content} for turn in dialogue.turns]
    chat = messages(dialogue, preset.system) if preset.layout else chat
    prompt = tuple(tokenizer.chat(chat))
    return tokenizer.thinking(prompt, decoder([Request(prompt, preset.sampling, seed)])[0].text)


def reply_columns(parsed: ParsedCompletion, *, with_profile: bool) -> Columns | Text:
    """The reply, and beside it the facts that the policy has noted about its user."""
    answer = Text(visible(parsed.reply))
    if not with_profile:
        return answer
    notes = Text(visible('\n'.join(parsed.facts)) or 'nothing yet', style='' if parsed.facts else 'dim')
    return Columns(
        [Panel(answer, title='reply', title_align='left'), Panel(notes, title='profile', title_align='left')]
    )


def visible(text: str) -> str:
    """The text of a model for a terminal, which would obey its control characters: � stands for each of them."""
    return ''.join(c if c in '\n\t' or unicodedata.category(c) not in ('Cc', 'Cs') else '�' for c in text)


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)
