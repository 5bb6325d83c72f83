"""Damaged files of every kind that is read: what comes of one is a value, or a ValueError of one line that names it."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from pal_jax.data import chats, histories, records, texts, tokenizer
from pal_jax.data.readers import columns, opinions, votes
from pal_jax.models import bert, config
from pal_jax.models.files import families, hf, peft, sources, tensors
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal import tables
from pal_jax.recipes.plus import attributes
from pal_jax.recipes.psoups import annotators, preferences
from pal_jax.recipes.rlpa import people
from pal_jax.run import checkpoint, metrics, piecework
from pal_jax.run.workdir import read_run

TOKENIZER = tokenizer.byte_tokenizer()
Reader = Callable[[Path], Any]  # of a folder


def lines(*rows: Any) -> bytes:
    return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def array(values: Any, dtype: type) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values, dtype))
    return file.getvalue()


def arrays(**values: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **values)
    return file.getvalue()


def parquet(rows: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(rows), file)
    return file.getvalue()


def gguf_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'm.gguf'
        writer = gguf.GGUFWriter(path, 'llama')
        writer.add_block_count(1)
        writer.add_embedding_length(4)
        writer.add_head_count(2)
        writer.add_feed_forward_length(8)
        writer.add_context_length(16)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model('gpt2')
        writer.add_tokenizer_pre('qwen2')
        writer.add_token_list(['a', 'b', 'ab', '<end>'])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_token_merges(['a b'])
        writer.add_eos_token_id(3)
        writer.add_tensor('token_embd.weight', np.zeros((4, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def saved_tokenizer() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        TOKENIZER.save(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


TALK = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Yes?'}]
OTHER = {'role': 'assistant', 'content': 'No.'}
HISTORY = {name: f'{name} {i}' for i, name in enumerate(sum(histories.PARTS.values(), ()))}
RATED = [{'text': name, 'ratings': {'kind': i, 'brief': -i}} for i, name in enumerate(('one', 'two', 'three'))]
POLES = {'dimensions': {'tone': {'kind': {'text': 'Be kind.', 'judge': '+friendly'}, 'cold': {'text': 'Be cold.'}}}}
JUDGE = {
    'judge': {
        'prompt_templates': {'with_inputs': '', 'without_inputs': 'own.txt'},
        'fn_decoder': 'endpoint:judge',
        'decoder_kwargs': {'model_name': 'm', 'max_tokens': 5, 'temperature': 1.0},
        'outputs_to_match': {1: 'a', 2: 'b'},
        'batch_size': 1,
    }
}
MODEL = families.config_to_hf(config.tiny(vocab=TOKENIZER.vocab_size), TOKENIZER)
BERT = {
    'model_type': 'bert', 'hidden_act': 'gelu', 'num_hidden_layers': 1, 'num_attention_heads': 1,
    'layer_norm_eps': 1e-6, 'max_position_embeddings': 8, 'hidden_size': 2,
}  # fmt: skip
TENSOR = save({'x': np.zeros((2, 2), np.float32)})

READERS: dict[str, tuple[dict[str, bytes], Reader]] = {
    'choices.jsonl': (
        {'a.jsonl': lines({'user': 'ana', 'prompt': 'p', 'chosen': 'c', 'rejected': 'r', 'group': 'g'})},
        lambda f: list(records.read(str(f / 'a.jsonl'))),
    ),
    'choices.csv': (
        {'a.csv': b'user,chosen,rejected\r\nana,"c, c",r\r\n2,c,r'},
        lambda f: list(records.read(str(f / 'a.csv'))),
    ),
    'choices.parquet': (
        {'a.parquet': parquet({'user': ['ana', 'bo'], 'chosen': ['c', 'd'], 'rejected': ['r', 's']})},
        lambda f: list(records.read(str(f / 'a.parquet'))),
    ),
    'table.jsonl': (
        {'a.jsonl': lines({'user': 1, 'chosen': {'x': 1}, 'rejected': {'x': 2}, 'situation': 's', 'prompt': [3]})},
        lambda f: tables.load(f / 'a.jsonl'),
    ),
    'pairs.csv': ({'a.csv': b'user,choice,left_x,right_x\nana,left,1,2\n'}, lambda f: tables.load(f / 'a.csv')),
    'options.csv': (
        {'a.csv': b'user,situation,chosen,x\nana,1,1,3\nana,1,0,4\n'}, lambda f: tables.load(f / 'a.csv'),
    ),
    'texts': (
        {'a.jsonl': lines({'user': 'ana', 'prompt': TALK[:1], 'chosen': TALK[1:], 'rejected': [OTHER]})},
        lambda f: texts.read(f / 'a.jsonl', TOKENIZER, alone=False),
    ),
    'imitate': (
        {'a.jsonl': lines({'messages': [{'role': 'system', 'content': 's'}, *TALK]})},
        lambda f: records.read_all(f / 'a.jsonl', lambda each: chats.to_imitate(each, TOKENIZER)),
    ),
    'prefer': (
        {'a.jsonl': lines({'chosen': TALK, 'rejected': [TALK[0], OTHER]})},
        lambda f: records.read_all(f / 'a.jsonl', lambda each: chats.to_prefer(each, TOKENIZER)),
    ),
    'histories': (
        {'a.jsonl': lines(HISTORY | {'user': 'ana', 'kind': 'k', 'context': 'c', 'context_messages': TALK[:1]})},
        lambda f: histories.load(f / 'a.jsonl'),
    ),
    'told': ({'a.jsonl': lines({'user': 'ana', 'context': 'c'})}, lambda f: histories.load_contexts(f / 'a.jsonl')),
    'rated': (
        {'a.jsonl': lines({'prompt': 'p', 'replies': RATED})},
        lambda f: attributes.read(str(f / 'a.jsonl'), max_words=9),
    ),
    'people': (
        {'a.jsonl': lines({'id': 'a', 'facts': {'pet': ['cat', 2]}, 'input': 'Hi'}, 'I row.', {'profile': '- a\n- b'})},
        lambda f: people.load_people(f / 'a.jsonl'),
    ),
    'votes': (
        {
            'a.votes.csv': b'participant,comment_id,vote\n1,1,1\n1,2,-1\n',
            'a.statements.jsonl': lines({'comment_id': 1, 'text': 'x'}, {'comment_id': 2, 'text': 'y'}),
            'a.people.csv': b'participant,group\n1,\n',
        },
        lambda f: votes.read(f / 'a'),
    ),
    'ukp': (
        {
            'arguments.jsonl': lines(*({'id': i, 'debate': 'd', 'stance': 's', 'text': f't{i}'} for i in (1, 2))),
            'judgements.jsonl': lines({'topic': 't', 'arg1': 1, 'arg2': 2, 'worker': 'w', 'choice': 'a1'}),
        },
        lambda f: list(opinions.read(f'ukp:{f}')),
    ),
    'jester': (
        {
            'ratings.csv': b'user,joke,rating\n1,1,2.5\n1,2,-9\n',
            'jokes.jsonl': lines({'joke': 1, 'text': 'x'}, {'joke': 2, 'text': 'y'}),
        },
        lambda f: list(opinions.read(f'jester:{f}')),
    ),
    'movielens': (
        {
            'u.data': b'1\t1\t5\t0\n1\t2\t1\t0\n',
            'u.item': ''.join(f'{i}|F\xe9 {i}||||{"|".join("01" * 9)}|0\n' for i in (1, 2)).encode('latin-1'),
        },
        lambda f: list(opinions.read(f'movielens:{f}')),
    ),
    'recbole': (
        {
            'ml-100k.inter': b'user_id:token\titem_id:token\trating:float\n1\t1\t5\n1\t2\t1\n',
            'ml-100k.item': b'item_id:token\tmovie_title:seq\tclass:seq\n1\tA\tx\n2\tB\ty\n',
        },
        lambda f: list(opinions.read(f'movielens:{f}')),
    ),
    'prism': (
        {
            'conversations.jsonl': lines({'user_id': 'u', 'conversation_history': [
                {'turn': 0, 'role': 'user', 'content': 'q'},
                {'turn': 0, 'role': 'model', 'content': 'a', 'if_chosen': True},
                {'turn': 0, 'role': 'model', 'content': 'b', 'if_chosen': False},
            ]})
        },
        lambda f: list(opinions.read(f'prism:{f}')),
    ),
    'tldr': (
        {
            f'{name}.jsonl': lines({'worker': 'w', 'info': {'post': 'p'}, 'summaries': [
                {'text': 'a', 'policy': 'sup1'}, {'text': 'bb', 'policy': 'sup2'}
            ]}) for name in ('train', 'validation')
        },
        lambda f: list(opinions.read(f'tldr:{f}')),
    ),
    'pictures': (
        {'a.npz': arrays(images=np.eye(2), prompts=np.eye(2), users=[0], prompt=[0], chosen=[0], rejected=[1])},
        lambda f: opinions.pictures(f / 'a.npz'),
    ),
    'columns': (
        {
            'items.npy': array(np.eye(2), np.float32), 'users.npy': array([0, 1], np.int32),
            'chosen.npy': array([0, 1], np.int32), 'rejected.npy': array([1, 0], np.int32), 'names.txt': b'ana\nbo\n',
        },
        columns.load,
    ),
    'preferences': ({'a.yaml': json.dumps(POLES).encode()}, lambda f: preferences.load_preferences(f / 'a.yaml')),
    'annotators': (
        {'a.yaml': json.dumps(JUDGE).replace('"1"', '1').replace('"2"', '2').encode(),
         'own.txt': b'{instruction} {output_1} {output_2}'},
        lambda f: annotators.load_annotators(f / 'a.yaml'),
    ),
    'model': ({'config.json': json.dumps(MODEL).encode()}, hf.read_config),
    'bert': ({'config.json': json.dumps(BERT).encode(), 'model.safetensors': TENSOR}, bert.load),
    'adapter': (
        {'adapter_config.json': json.dumps({'r': 2, 'lora_alpha': 4, 'peft_type': 'LORA'}).encode()}, peft.read_config,
    ),
    'shards': (
        {tensors.INDEX: json.dumps({'weight_map': {'x': 'a.safetensors'}}).encode(), 'a.safetensors': TENSOR},
        lambda f: [tensors.stored(path, name)[()] for name, path in tensors.files(f).items()],
    ),
    'gguf': ({'m.gguf': gguf_file()}, lambda f: sources.from_gguf(f / 'm.gguf').tokenizer()),
    'tokenizer': (saved_tokenizer(), lambda f: tokenizer.from_folder(f).chat(TALK)),
    'steps': ({'a.jsonl': lines({'step': 0, 'a': 1}, {'step': 1})}, lambda f: metrics.read_records(f / 'a.jsonl')),
    'parts': ({'0.jsonl': lines({'id': 'a'}, {'id': 'b'})}, lambda f: piecework.read(f / '0.jsonl')),
    'run': ({'config.json': b'{"recipe": "sft", "seed": 0}'}, read_run),
    'resumed': (
        {'config.json': b'{"seed": 0}', 'metrics.jsonl': lines({'step': 0})},
        lambda f: checkpoint.check_config(f, {'seed': 0}),
    ),
    'mixture': ({'a.json': b'{"mixture": [0.2, 0.8]}'}, lambda f: pal_person.read_person(f / 'a.json')),
}  # fmt: skip

ODD = st.sampled_from([
    None, True, False, 0, -1, 1.5, 10**400, 2**63, 1e39, 1e308, float('nan'), float('inf'), '', ' ', 'x', '\0',
    '\ud800', 'nan', [], [None], [[]], {}, {'a': None}, [1, 'a'], '{', 'é\u2028', {'role': None, 'content': 1}, [0, 0],
])  # fmt: skip


OTHERS = b'', b'\n', b'null', b'[[]]', b'\x1f\x8b', b'\xef\xbb\xbf', b'\xff\xfe{\0}\0', b'[' * 9999


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A file that is cut, has other bytes in it, is of another kind, or has something odd in its JSON."""
    kind = draw(st.sampled_from(['cut', 'bytes', 'whole', 'json', 'json', 'json']))
    if kind == 'whole':
        return draw(
            st.one_of(
                st.binary(max_size=40), st.sampled_from([b'', b'\n', b'null', b'[[]]', b'\x1f\x8b', b'\xef\xbb\xbf'])
            )
        )
    if kind == 'json':
        rows = data.decode('latin-1').splitlines()
        k = draw(st.integers(0, max(len(rows) - 1, 0)))
        try:
            row = json.loads(rows[k])
        except (ValueError, IndexError):
            kind = 'bytes'
        else:
            return '\n'.join([*rows[:k], json.dumps(changed(draw, row)), *rows[k + 1 :], '']).encode('latin-1')
    at = draw(st.integers(0, len(data)))
    if kind == 'cut':
        return data[:at]
    return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + draw(st.integers(0, 8)) :]


def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with something odd in a place of it."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        copy: Any = value.copy()
        key = draw(st.sampled_from(list(copy) if isinstance(copy, dict) else range(len(copy))))
        if draw(st.integers(0, 7)):
            copy[key] = changed(draw, copy[key])
        else:
            del copy[key]
        return copy
    return draw(ODD)


@pytest.mark.parametrize('name', READERS)
@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_a_damaged_file_is_read_or_named_in_one_line(name: str, draw: st.DataObject):
    files, read = READERS[name]
    broken = draw.draw(st.sampled_from(sorted(files)))
    with tempfile.TemporaryDirectory() as folder:
        for file, data in files.items():
            (Path(folder) / file).write_bytes(draw.draw(damaged(data)) if file == broken else data)
        try:
            read(Path(folder))
        except ValueError as error:
            message = str(error)
            assert folder in message, message
            assert '\n' not in message


@pytest.mark.parametrize('name', READERS)
def test_a_whole_file_is_read(name: str, tmp_path: Path):
    files, read = READERS[name]
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    read(tmp_path)
