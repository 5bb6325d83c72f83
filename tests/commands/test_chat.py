"""The terminal chat: what the model reads at each turn, and what is shown of its answers."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from absl.testing import flagsaver
from rich.console import Console

from pal_jax.commands.chat import talk
from pal_jax.commands.talking import SourcesParser, source_of, source_or_run
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.serve.page import PLAIN, Preset
from pal_jax.recipes.rlpa.profiles import render_completion
from pal_jax.run import cli
from pal_jax.types import Completion
from tests import shell

TOKENIZER = byte_tokenizer()
TRAINED = Preset('Note what you learn.', render_completion('{profile}', '{reply}'))


class Scripted:
    """A decoder that answers what it was told to, and keeps what it was asked."""

    def __init__(self, *answers: str):
        self.answers, self.read = list(answers), []

    def __call__(self, requests: Any) -> list[Completion]:
        self.read.append(TOKENIZER.text_of(requests[0].prompt_ids))
        return [Completion(self.answers.pop(0), (), (), 'stop')]


def screen(decoder: Any, preset: Preset, *said: str) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        for answer in talk(decoder, TOKENIZER, preset, said, seed=0):
            console.print(answer)
    return capture.get()


def test_a_trained_policy_shows_its_profile_and_reads_its_last_one():
    first = render_completion('- pet: cat\n', 'A cat! [bold]What[/bold] is its name?')
    decoder = Scripted(first, render_completion('- pet: cat\n- name: Kiki\n', 'Nice.'), 'no blocks', 'no blocks')
    shown = screen(decoder, TRAINED, 'I have a cat', '', 'Kiki', 'and?', '/quit', 'never read')
    assert 'pet: cat' in shown and 'name: Kiki' in shown
    assert '[bold]What[/bold]' in shown  # what a model writes is no markup
    assert 'not in the format' in shown
    assert len(decoder.read) == 3
    assert first in decoder.read[1]
    assert 'pet: cat\n- name' in decoder.read[2] and first not in decoder.read[2]


def test_again_forgets_and_a_plain_model_reads_plain_turns():
    decoder = Scripted('One.', 'Two.', 'Three.')
    shown = screen(decoder, PLAIN, 'a question', 'more', '/again', 'another')
    assert [word for word in shown.split() if word[0].isupper()] == ['One.', 'Two.', 'Three.']
    assert 'One.' in decoder.read[1] and '<profile>' not in decoder.read[1]
    assert 'One.' not in decoder.read[2] and 'a question' not in decoder.read[2]


@pytest.mark.parametrize('preset', [PLAIN, TRAINED])
def test_no_control_character_of_a_model_reaches_the_terminal(preset):
    # Spaces and joiners of other scripts are no control characters.
    answer = 'red\x1b[31m\x07\x9b0m\nand\u3000\u200d\tblue'
    for text in (answer, render_completion(f'- {answer}', answer)):
        seen = screen(Scripted(text), preset, 'hello')
        assert 'red' in seen and 'blue' in seen
        assert all(unicodedata.category(c) != 'Cc' or c == '\n' for c in seen), repr(seen)
        assert '\u3000' in seen and '\u200d' in seen


def test_a_conversation_that_is_too_long_says_so():
    class Full(Scripted):
        def __call__(self, requests):
            raise ValueError('the model has room for 2')

    assert 'room for 2; /again starts anew' in screen(Full(), PLAIN, 'hello')


@pytest.mark.slow
def test_the_command_talks():
    done = shell.run('pal_jax.chat', '--source=random:tiny', '--max_tokens=4', text='hello\n/quit\n')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('random:tiny: /again starts anew')


def test_a_runs_folder_is_a_source(tmp_path):
    for name, config in {'one': '{"recipe": "rlpa"}', 'all/sft': '{"recipe": "sft"}', 'model': '{}'}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'config.json').write_text(config)
    assert source_of(f'{tmp_path}/one') == f'orbax:{tmp_path}/one'
    assert SourcesParser().parse(f'base,{tmp_path}/one') == ['base', f'orbax:{tmp_path}/one']
    (tmp_path / 'exported').mkdir()
    (tmp_path / 'exported' / 'config.json').write_text('{"model_type": "llama"}')
    assert source_of(f'{tmp_path}/exported') == f'hf:{tmp_path}/exported'
    (tmp_path / 'exported' / 'adapter_config.json').write_text('{}')
    assert source_of(f'{tmp_path}/exported') == f'peft:{tmp_path}/exported'
    (tmp_path / 'a.gguf').write_text('')
    assert source_of(f'{tmp_path}/a.gguf') == f'gguf:{tmp_path}/a.gguf'
    for other in ('hf:model', 'orbax:runs/rlpa', 'random:tiny', 'nowhere'):
        assert source_of(other) == other
    with pytest.raises(ValueError, match=r'sft'):
        source_of(f'{tmp_path}/all')
    with pytest.raises(ValueError, match=r'config\.json'):
        source_of(f'{tmp_path}/model')


def test_a_workdir_is_the_run_that_is_talked_with(tmp_path):
    (tmp_path / 'config.json').write_text('{"recipe": "rl"}')
    with flagsaver.as_parsed(workdir=str(tmp_path)):
        assert source_or_run() == f'orbax:{tmp_path}'
        with flagsaver.as_parsed(source='random:tiny'), pytest.raises(cli.Fault, match='--source=random:tiny'):
            source_or_run()
    assert '--workdir=' in shell.refusal('pal_jax', 'export', '--source=runs/mine')
