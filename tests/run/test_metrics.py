"""The files of a run: what is written, and that an interrupted run leaves what an unbroken one leaves."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.run import metrics
from pal_jax.run.metrics import MetricsWriter, read_records
from pal_jax.types import Exhibit

FILES = ('metrics.jsonl', 'evals.jsonl', 'dialogues.jsonl', 'rollouts.jsonl')


def write_steps(workdir: Path, first: int, last: int) -> None:
    with MetricsWriter(workdir, first) as writer:
        for step in range(first, last):
            writer.write(step, 'warm-up' if step < 2 else 'rlpa', {'reward': step / 7, 'kl': 0.5**step})
            writer.rollouts(step, 'rlpa', [{'person': 'p', 'turns': []}] * 2)
            if step % 2:
                writer.evaluation({'step': step, 'stage': 'step', 'f1_by_turn': [0.0, step / 3]})
                writer.dialogues([{'step': step, 'stage': 'step', 'person': 'p', 'facts': [], 'turns': []}] * 2)


def contents(workdir: Path) -> dict[str, str]:
    return {name: (workdir / name).read_text() for name in FILES}


def test_a_step_is_one_line_of_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(3, 'rlpa', {'reward': 0.25, 'seconds_update': 1.5})
        line = (tmp_path / 'metrics.jsonl').read_text()  # before the writer is closed: a kill loses nothing
    assert line == '{"step": 3, "phase": "rlpa", "reward": 0.25, "seconds_update": 1.5}\n'


@pytest.mark.parametrize('killed_at', [1, 2, 3, 4, 5])
def test_a_resumed_run_leaves_the_lines_of_an_unbroken_one(tmp_path, killed_at):
    write_steps(tmp_path / 'whole', 0, 5)
    write_steps(tmp_path / 'broken', 0, killed_at)
    with (tmp_path / 'broken' / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 5, "phase": "rl')  # the kill came in the middle of a line
    write_steps(tmp_path / 'broken', killed_at - 1, 5)
    assert contents(tmp_path / 'broken') == contents(tmp_path / 'whole')


def test_a_run_started_again_from_nothing_drops_every_line(tmp_path):
    write_steps(tmp_path, 0, 4)
    with MetricsWriter(tmp_path, 0):
        pass
    assert contents(tmp_path) == dict.fromkeys(FILES, '')


def test_arrays_become_numbers_and_what_is_not_finite_becomes_null(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, 'rlpa', {'a': jnp.float32(0.5), 'b': np.float64('nan'), 'c': float('inf'), 'd': np.int64(3)})
        writer.evaluation({'step': 0, 'stage': 'base', 'f1_by_turn': np.array([0.25, np.nan])})
    assert read_records(tmp_path / 'metrics.jsonl')[0] == {
        'step': 0, 'phase': 'rlpa', 'a': 0.5, 'b': None, 'c': None, 'd': 3,
    }  # fmt: skip
    assert read_records(tmp_path / 'evals.jsonl')[0]['f1_by_turn'] == [0.25, None]


@pytest.mark.parametrize('text', ['плов', '日本', 'a\u2028b', 'line\nbreak', '\ud800 half a pair', '</script>'])
def test_any_text_survives(tmp_path, text):
    with MetricsWriter(tmp_path) as writer:
        writer.dialogues([{'step': 0, 'turns': [{'content': text}]}])
    write_steps(tmp_path, 1, 2)  # and a rewrite, too
    assert read_records(tmp_path / 'dialogues.jsonl')[0]['turns'] == [{'content': text}]


def test_readable_text_is_stored_readably(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.dialogues([{'step': 0, 'turns': [{'content': 'плов'}]}])
    assert 'плов' in (tmp_path / 'dialogues.jsonl').read_text(encoding='utf-8')


@pytest.mark.parametrize('line', ['{"step": 1', '[1]', '{"reward": 1.0}', '{"step": "1"}', ''])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 0}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(ValueError, match='metrics.jsonl, line 2: .* delete the line'):
        read_records(path)


def test_no_file_is_no_records(tmp_path):
    assert read_records(tmp_path / 'metrics.jsonl') == []


def test_tensorboard_gets_every_scalar(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(7, 'rlpa', {'reward': 0.25, 'seconds_update': 2.0})
        writer.evaluation({'step': 7, 'stage': 'final', 'reward': 0.75, 'f1_by_turn': [0.0]})
    scalars = {(8, 'train/reward', 0.25), (8, 'seconds/update', 2.0), (7, 'eval/reward', 0.75)}
    assert set(tensorboard_scalars(tmp_path / 'tensorboard')) == scalars


def tensorboard_scalars(folder: Path) -> list[tuple[int, str, float]]:
    """Reads event files by their framing: length (8 bytes), checksum (4), event, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    scalars = []
    for path in folder.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from('<Q', data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += 16 + size
    return scalars


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    write_steps(tmp_path / 'run', 0, 3)
    assert not (tmp_path / 'run').exists()


@pytest.mark.skipif(importlib.util.find_spec('wandb') is not None, reason='wandb is installed')
def test_wandb_asked_for_and_missing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="project 'mine', but wandb is missing: pip install wandb"):
        MetricsWriter(tmp_path, wandb='mine')


def test_wandb_gets_the_same_numbers_and_one_identity_for_life(tmp_path, monkeypatch):
    logged, identities = [], []

    class FakeWandb:
        def init(self, *, id, **_):
            identities.append(id)
            return self

        def log(self, scalars, step):
            logged.append((step, scalars))

        def finish(self): ...

    find = importlib.util.find_spec
    # Other modules that are imported meanwhile look for theirs.
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *more: name == 'wandb' or find(name, *more))
    monkeypatch.setitem(sys.modules, 'wandb', FakeWandb())
    for first in (0, 1):
        with MetricsWriter(tmp_path, first, wandb='mine') as writer:
            writer.write(first, 'rlpa', {'reward': 0.5})
    assert logged == [(1, {'train/reward': 0.5}), (2, {'train/reward': 0.5})]
    assert identities[0] == identities[1]


@pytest.mark.slow
def test_importing_it_loads_no_logger_and_starts_no_device():
    code = (
        f'import sys; import {metrics.__name__}; from jax._src import xla_bridge; import json;'
        'print(json.dumps([xla_bridge.backends_are_initialized(), "tensorboardX" in sys.modules]))'
    )
    output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [False, False]


def test_no_picture_replaces_another(tmp_path):
    pictures = [Exhibit(title, picture=b'\x89PNG' + title.encode()) for title in ('Elo ratings', 'Elo, ratings')]
    with MetricsWriter(tmp_path) as writer:
        for _ in range(2):
            writer.exhibits(1, 'final', pictures)
    files = [record['picture'] for record in read_records(tmp_path / metrics.EXHIBITS)]
    assert files[:2] == files[2:] == ['elo_ratings.png', 'elo_ratings_2.png']
    assert [(tmp_path / metrics.PICTURES / file).read_bytes() for file in files[:2]] == [p.picture for p in pictures]
