"""The server as a command: it starts, answers, ends when told to, and says what is wrong before a weight is read."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest

from pal_jax.commands.talking import chat_preset
from pal_jax.decode.serve.jetstream.engine import protocol, protocol_grpc
from pal_jax.decode.serve.page import PLAIN
from pal_jax.recipes.rlpa.profiles import render_completion
from pal_jax.run.settings import to_dict
from pal_jax.types import Sampling
from tests import configs, shell

pytestmark = pytest.mark.slow  # each starts a process

ROOT = Path(__file__).parents[2]


def serve(*args: str, **env: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != 'PAL_JAX_TOKEN'}
    return subprocess.Popen(
        [sys.executable, '-m', 'pal_jax.serve', '--source=random:tiny', *args],
        cwd=ROOT, env=environment | shell.PLAIN | env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_it_answers_and_ends_what_is_under_way_when_told_to_stop():
    with serve('--port=0', '--name=mine') as process:
        assert process.stdout is not None
        address, page = re.findall(r'http://[^\s,]+', process.stdout.readline())
        assert '<title>' in httpx.get(page).text
        assert httpx.get(f'{address}/models').json()['data'][0]['id'] == 'mine'
        ask = {'prompt': 'Hello', 'max_tokens': 200, 'stream': True}
        with httpx.stream('POST', f'{address}/completions', json=ask, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            place = '127.0.0.1', int(address.split(':')[2].split('/')[0])
            with socket.create_connection(place) as half:  # a body that does not come is no answer under way
                half.sendall(b'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{')
                process.send_signal(signal.SIGTERM)
                assert [line for line in lines if line][-1] == 'data: [DONE]'
                assert process.wait(timeout=30) == 0


@pytest.mark.long
def test_it_speaks_jetstreams_protocol_and_samples_for_a_trainer(tmp_path):
    with serve('--port=0', '--driver=jetstream', '--dtype=float32', PAL_JAX_TOKEN='wonderland') as process:
        assert process.stdout is not None
        (address,) = re.findall(r'at (\S+:\d+)', process.stdout.readline())
        train = [sys.executable, '-m', 'pal_jax.train', '--config=configs/rlpa.py:smoke', '--config.total_steps=2']
        environment = os.environ | shell.PLAIN | {'PAL_JAX_TOKEN': 'wonderland'}
        rewards = {}
        for name, flags in (
            ('here', []),
            ('there', ['--config.decode.driver=jetstream', f'--config.decode.address={address}']),
        ):
            done = subprocess.run(
                [*train, f'--workdir={tmp_path / name}', *flags],
                cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            lines = map(json.loads, (tmp_path / name / 'metrics.jsonl').read_text().splitlines())
            rewards[name] = [line.get('reward') for line in lines]
        assert rewards['here'] == rewards['there']
        with grpc.insecure_channel(address) as channel:
            answers = protocol_grpc.OrchestratorStub(channel).Decode(
                protocol.DecodeRequest(text_content=protocol.DecodeRequest.TextContent(text='Hello'), max_tokens=200),
                metadata=(('authorization', 'Bearer wonderland'),),
            )
            next(answers)
            process.send_signal(signal.SIGTERM)
            list(answers)
            assert answers.code() == grpc.StatusCode.OK
        assert process.wait(timeout=30) == 0


def test_the_page_of_a_run_of_rlpa_has_what_its_training_had(tmp_path):
    config = configs.load('rlpa', '', **{'dialogue.system': 'Note what the user told.'})
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(config)))
    preset = chat_preset(f'orbax:{tmp_path}')
    assert preset.system == 'Note what the user told.'
    assert preset.layout.format(profile='- pet: ferret\n', reply='Hi') == render_completion('- pet: ferret\n', 'Hi')
    assert preset.sampling == Sampling(0.7, max_tokens=72, stop=('</response>',))
    assert chat_preset('random:tiny') == PLAIN


def test_a_run_on_rows_is_talked_with_by_their_system_prompt(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(configs.load('sft'))))
    assert chat_preset(f'orbax:{tmp_path}') == PLAIN
    (tmp_path / 'kept').mkdir()
    (tmp_path / 'kept' / 'system.txt').write_text('You are a pirate.')
    assert chat_preset(f'orbax:{tmp_path}') == PLAIN._replace(system='You are a pirate.')


def test_a_model_of_scores_does_not_talk(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(configs.load('reward'))))
    with pytest.raises(ValueError, match=r'scorer\.reward.*pal-jax score --source='):
        chat_preset(f'orbax:{tmp_path}')


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (['--host=0.0.0.0'], 'set PAL_JAX_TOKEN to a secret'),
        (['--host=0.0.0.0', '--driver=jetstream'], 'set PAL_JAX_TOKEN to a secret'),
        (['--driver=vllm'], 'driver'),
        (['--source=nothing'], "'nothing' is no source of a model"),
        (['--slots=0'], 'slots'),
        (['--cors_origins=https://page.example/chat'], '--cors_origins=https://page.example/chat'),
        (['--cors_origins=https://page.example', '--driver=jetstream'], '--cors_origins'),
        (['--moderation_threshold=0.5'], '--moderation_threshold=0.5'),
        (['--moderation_threshold=1.5', '--moderation=orbax:gone'], 'moderation_threshold'),
        (['--moderation_draws=0', '--moderation=orbax:gone'], 'moderation_draws'),
        (['--moderation=orbax:gone'], 'gone is no run'),
        (['--moderation=orbax:gone', '--driver=jetstream'], '--moderation'),
        (['--prot=9'], 'prot'),
        (['--port=74651'], '--port=74651'),
        (['--port=-1'], '--port=-1'),
        (['--port=true'], '--port=true'),
    ],
)
def test_what_is_wrong_is_one_line(args, told, monkeypatch):
    monkeypatch.delenv('PAL_JAX_TOKEN', raising=False)
    assert told in shell.refusal('pal_jax.serve', '--source=random:tiny', '--port=0', *args)


@pytest.mark.long
@pytest.mark.parametrize('driver', ['local', 'jetstream'])
def test_an_ipv6_address_is_told_in_brackets_and_a_token_may_end_with_a_newline(driver):
    with serve('--port=0', '--host=::1', f'--driver={driver}', PAL_JAX_TOKEN='wonderland\n') as process:
        assert process.stdout is not None
        address = re.search(r' at ((http://)?\[::1\]:\d+)', process.stdout.readline())
        assert address
        key = {'authorization': 'Bearer wonderland'}
        if driver == 'local':
            assert httpx.get(f'{address[1]}/v1/models', headers=key).status_code == 200
        else:
            with grpc.insecure_channel(address[1]) as channel:
                status = channel.unary_unary('/pal_jax.Rollout/Status')
                assert status(b'', metadata=tuple(key.items()), timeout=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


KNOCK = """
import socket
from pal_jax.run import cli
from pal_jax.run.settings import to_dict
from pal_jax.run.settings import to_dict
from pal_jax.commands import serve
from pal_jax.run.settings import to_dict

def make_driver(source):
    place = '127.0.0.1', serve.PORT.value
    for act in (lambda: socket.create_connection(place, 5), lambda: socket.socket().bind(place)):
        try:
            act()
        except OSError as error:
            print(type(error).__name__)
    raise ValueError('that is all')

serve.make_driver = make_driver
cli.run(serve.main, '', needs_config=False)
"""


def test_over_grpc_the_port_is_taken_and_nobody_let_in_before_the_weights_are_there():
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = f'--port={free.getsockname()[1]}'
    done = subprocess.run(
        [sys.executable, '-c', KNOCK, '--driver=jetstream', port],
        cwd=ROOT, env=os.environ | shell.PLAIN, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ['ConnectionRefusedError', 'OSError']
    assert 'that is all' in done.stderr


@pytest.mark.parametrize('driver', ['local', 'jetstream'])
def test_a_port_that_is_taken_is_told(driver):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = f'--port={taken.getsockname()[1]}'
        done = shell.run('pal_jax.serve', '--source=random:tiny', port, f'--driver={driver}')
    assert 'choose another --port' in done.stderr
    assert done.stderr.count('\n') == 1
    assert done.returncode == 1
