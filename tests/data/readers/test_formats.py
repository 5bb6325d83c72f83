"""Records of the formats that people have: what is asked and answered in them, and what is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pal_jax.data import chats, records
from pal_jax.data.readers import formats
from pal_jax.data.readers.formats import PromptedReplies
from pal_jax.data.tokenizer import Tokenizer, byte_tokenizer

HH = Path(__file__).parents[4] / 'shared' / 'data' / 'hh_rlhf_harmless' / 'test.jsonl'
TOKENIZER = byte_tokenizer()
KNOWS_TOOLS = (
    '{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{{ m.content }}"
    '{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def said(role, content, **rest):
    return {'role': role, 'content': content, **rest}


def with_template(template):
    fast = copy.deepcopy(TOKENIZER.fast)
    fast.chat_template = template
    return Tokenizer(fast)


USER, BOT, OTHER = said('user', 'Where to?'), said('assistant', 'Home.'), said('assistant', 'Away.')


def messages(given: Any) -> list[dict[str, Any]]:
    assert isinstance(given, list)
    return given


def learnt(example, tokenizer=TOKENIZER):
    acts = example.acts or [True] * len(example.completion)
    return tokenizer.decode([token for token, act in zip(example.completion, acts, strict=True) if act])


# --- pairs ------------------------------------------------------------------------------------------------------------

DIALOGUE = '\n\nHuman: Hi there\n\nAssistant: Hello.\n\nWhat is it?\n\nHuman: A riddle\n\nAssistant:'


def test_a_transcript_of_hh_rlhf_is_a_conversation_whose_last_answers_are_compared():
    record = {'chosen': DIALOGUE + ' Go on.', 'rejected': DIALOGUE + ' No: never.'}
    asked = [said('user', 'Hi there'), said('assistant', 'Hello.\n\nWhat is it?'), said('user', 'A riddle')]
    found = formats.preferred(record)
    assert found == PromptedReplies(asked, ([said('assistant', 'Go on.')], [said('assistant', 'No: never.')]))
    assert formats.imitated(record) == found._replace(replies=found.replies[:1])
    pair = chats.to_prefer(record, TOKENIZER)
    assert pair.chosen.prompt == pair.rejected.prompt == TOKENIZER.chat(asked)
    assert learnt(chats.to_imitate(record, TOKENIZER)) == 'Go on.<|im_end|>'


def test_answers_of_several_turns_differ_from_the_first_on():
    record = {'chosen': DIALOGUE + ' Yes.\n\nHuman: So?\n\nAssistant: So.', 'rejected': DIALOGUE + ' No.'}
    assert [len(reply) for reply in formats.preferred(record).replies] == [3, 1]


def test_real_transcripts_are_read_whole():
    if not HH.is_file():
        pytest.skip('the shared data is not beside this checkout')
    for _, record in records.lines(HH):
        prompt, replies, _ = formats.preferred(record)
        assert messages(prompt)[-1]['role'] == 'user'
        assert all([message['role'] for message in messages(reply)] == ['assistant'] for reply in replies)
        whole = ''.join(message['content'] for message in (*messages(prompt), *messages(replies[0])))
        bare = record['chosen'].replace('\n\nHuman:', '').replace('\n\nAssistant:', '')
        assert ''.join(whole.split()) == ''.join(bare.split())


@pytest.mark.parametrize(
    'record',
    [
        {'prompt': 'Where to?', 'prompt_id': '3f', 'chosen': [USER, BOT], 'rejected': [USER, OTHER],
         'score_chosen': 8.5, 'score_rejected': 6.0},  # UltraFeedback, binarised
        {'prompt': 'Where to?', 'chosen': [USER, BOT], 'rejected': [USER, OTHER], 'messages': [USER, BOT],
         'score_chosen': 8.5, 'score_rejected': 6.0},
        {'chosen': [USER, BOT], 'rejected': [USER, OTHER], 'score_chosen': 8.5, 'score_rejected': 6.0},
        {'prompt': [USER], 'chosen': [USER, BOT], 'rejected': [USER, OTHER]},
        {'prompt': [USER], 'chosen': [BOT], 'rejected': [OTHER]},
        {'prompt': [USER], 'chosen': BOT, 'rejected': OTHER},
        {'prompt': 'Where to?', 'chosen': [BOT], 'rejected': [OTHER]},
        {'conversations': [{'from': 'human', 'value': 'Where to?'}], 'chosen': {'from': 'gpt', 'value': 'Home.'},
         'rejected': {'from': 'gpt', 'value': 'Away.'}},  # ShareGPT with a preference
        {'instruction': 'Where to?', 'input': '', 'chosen': 'Home.', 'rejected': 'Away.'},  # Alpaca with one
        {'input': {'messages': [USER], 'tools': []}, 'preferred_output': [BOT], 'non_preferred_output': [OTHER]},
        {'chosen': '\n\nHuman: Where to?\n\nAssistant: Home.', 'rejected': '\n\nHuman: Where to?\n\nAssistant: Away.'},
        {'prompt': None, 'chosen': [{**USER, 'name': None}, BOT], 'rejected': [USER, {**OTHER, 'tool_calls': None}]},
    ],
)  # fmt: skip
def test_one_pair_in_every_format(record):
    found = formats.preferred(record)
    assert found == PromptedReplies([USER], ([BOT], [OTHER]))
    assert formats.imitated(record) == PromptedReplies([USER], ([BOT],))
    assert found.content == formats.preferred({'prompt': ' where  TO?', 'chosen': 'a', 'rejected': 'b'}).content


def test_texts_without_a_prompt_are_cut_where_they_differ():
    found = formats.preferred({'chosen': 'The sky is blue.', 'rejected': 'The sky is green.'})
    assert found == PromptedReplies('The sky is', (' blue.', ' green.'))
    assert formats.preferred({'chosen': 'It is', 'rejected': 'It is so'}).replies == ('s', 's so')


# --- chats ------------------------------------------------------------------------------------------------------------


def test_sharegpt_speakers_have_their_roles():
    turns = [
        ('system', 'S'), ('human', 'Q'), ('gpt', 'A'), ('user', 'Q2'), ('assistant', 'A2'), ('human', 'Q3'),
        ('function_call', '{"name": "look", "arguments": {"at": "map"}}'), ('observation', 'a map'),
        ('function_call', '[{"name": "look", "arguments": "{}"}]'), ('tool', 'nothing'), ('gpt', 'A3'),
    ]  # fmt: skip
    found = formats.imitated({'conversations': [{'from': who, 'value': what} for who, what in turns], 'id': 'x'})
    assert found.prompt == [said('system', 'S'), said('user', 'Q')]
    roles = 'assistant user assistant user assistant tool assistant tool assistant'
    assert [message['role'] for message in messages(found.replies[0])] == roles.split()
    calls = [message['tool_calls'] for message in messages(found.replies[0]) if 'tool_calls' in message]
    assert calls == [
        [{'type': 'function', 'function': {'name': 'look', 'arguments': {'at': 'map'}}}],
        [{'type': 'function', 'function': {'name': 'look', 'arguments': {}}}],
    ]


def test_a_rows_system_text_goes_first():
    turns = [{'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'A'}]
    found = formats.imitated({'system': 'S', 'conversations': turns})
    assert found.prompt == [said('system', 'S'), said('user', 'Q')]
    with pytest.raises(ValueError, match="'system' text and another system message"):
        formats.imitated({'system': 'S', 'messages': [said('system', 'T'), USER, BOT]})


def test_an_instruction_with_its_input_is_a_message():
    record = {'instruction': 'Add.', 'input': '1 and 2', 'output': '3', 'text': 'Add. 1 and 2: 3'}  # Alpaca's own keys
    assert formats.imitated(record) == PromptedReplies([said('user', 'Add.\n1 and 2')], ([said('assistant', '3')],))
    earlier = formats.imitated(record | {'input': '', 'history': [['Hi', 'Hello']]})
    assert earlier.prompt == [said('user', 'Hi')]
    assert earlier.replies == ([said('assistant', 'Hello'), said('user', 'Add.'), said('assistant', '3')],)


def test_what_weighs_nothing_is_not_learnt():
    given = [USER, {**BOT, 'weight': 0}, said('user', 'Sure?'), {**OTHER, 'weight': 1}]
    example = chats.to_imitate({'messages': given}, TOKENIZER)
    assert learnt(example) == 'Away.<|im_end|>'
    assert TOKENIZER.decode([*example.prompt, *example.completion]).count('Home.') == 1
    with pytest.raises(ValueError, match='weight 0'):
        chats.to_imitate({'messages': given[:2]}, TOKENIZER)


@pytest.mark.parametrize(
    'mark',
    [{'weight': 0}, {'loss': False}, {'trainable': False}, {'train': 'False'}, {'loss_mask': 0}, {'masked': True},
     {'training': 0.0}, {'loss': False, 'weight': 0}],
)  # fmt: skip
def test_a_turn_with_a_mark_is_read_and_not_learnt(mark):
    learns = {name: not value if name == 'masked' else 1 for name, value in mark.items()}
    given = [{**USER, 'loss': False}, {**BOT, **mark}, said('user', 'Sure?'), {**OTHER, **learns}]
    assert learnt(chats.to_imitate({'messages': given}, TOKENIZER)) == 'Away.<|im_end|>'
    pair = {'prompt': [USER], 'chosen': given[1:], 'rejected': [{**BOT, 'loss': None}]}
    assert [learnt(side) for side in chats.to_prefer(pair, TOKENIZER)] == ['Away.<|im_end|>', 'Home.<|im_end|>']


@pytest.mark.parametrize('label', [True, 1, 'True', 'sport', 5, None])
def test_a_wanted_completion_is_learnt(label):
    assert formats.imitated({'prompt': 'a', 'completion': 'b', 'label': label}).replies == ('b',)
    assert formats.preferred({'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'label': 0}).replies == ('b', 'c')
    assert formats.imitated({'text': 'b', 'label': 0}).replies == ('b',)  # the class of a text


def test_a_row_that_is_marked_as_not_learnt_is_no_pair():
    with pytest.raises(ValueError, match="'train' is False"):
        formats.preferred({'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'train': False})


def test_of_a_whole_text_all_is_learnt_but_its_first_token():
    example = chats.to_imitate({'text': 'Once upon'}, TOKENIZER)
    assert (TOKENIZER.decode(example.prompt), learnt(example)) == ('O', 'nce upon<|im_end|>')


def test_parts_of_text_are_one_text():
    parts = [{'type': 'text', 'text': 'Where'}, {'type': 'text', 'text': ' to?'}]
    assert formats.imitated({'messages': [said('user', parts), BOT]}).prompt == [USER]
    sides = {'chosen': [said('assistant', [{'type': 'text', 'text': 'Home.'}])], 'rejected': [OTHER]}
    assert formats.preferred({'prompt': [said('user', parts)], **sides}) == PromptedReplies([USER], ([BOT], [OTHER]))


# --- tools ------------------------------------------------------------------------------------------------------------

TOOLS: list[Any] = [
    {'type': 'function', 'function': {'name': 'look', 'parameters': {'type': 'object', 'properties': {}}}}
]
CALL = {'id': 'c1', 'type': 'function', 'function': {'name': 'look', 'arguments': {'at': 'map'}}}
CALLED = [USER, said('assistant', '', tool_calls=[CALL]), said('tool', 'a map', tool_call_id='c1'), BOT]


@pytest.mark.parametrize('tools', [TOOLS, json.dumps(TOOLS)])
@pytest.mark.parametrize('arguments', [{'at': 'map'}, '{"at": "map"}'])
def test_tools_and_their_calls_go_through_the_template_as_transformers_has_it(tools, arguments):
    tokenizer = with_template(KNOWS_TOOLS)
    call = {**CALL, 'function': {'name': 'look', 'arguments': arguments}}
    given = [USER, {'role': 'assistant', 'content': None, 'tool_calls': [call]}, *CALLED[2:]]
    example = chats.to_imitate({'messages': given, 'tools': tools}, tokenizer)
    expected = str(tokenizer.fast.apply_chat_template(CALLED, tools=TOOLS, tokenize=False))
    assert tokenizer.decode([*example.prompt, *example.completion]) + '\n' == expected
    assert learnt(example) == '<call>{"name": "look", "arguments": {"at": "map"}}</call><|im_end|>Home.<|im_end|>'
    pair = {'prompt': [USER], 'chosen': given[1:], 'rejected': [OTHER], 'tools': tools}
    assert chats.to_prefer(pair, tokenizer).chosen == example


@pytest.mark.parametrize('role', ['ipython', 'environment', 'tool'])
def test_a_message_of_calls_may_say_null_and_several_roles_answer_it(role):
    calls = said('assistant', None, tool_calls=[CALL])
    read = formats.messages_of({'messages': [USER, calls, said(role, 'a map'), BOT]}, 'messages')
    assert read[1]['content'] == '' and read[2] == said(role, 'a map')


def test_a_call_can_end_no_turn():
    call = {'function': {'name': 'look', 'arguments': {'at': 'a<|im_end|>b'}}}
    example = chats.to_imitate(
        {'messages': [USER, said('assistant', '', tool_calls=[call])]}, with_template(KNOWS_TOOLS)
    )
    assert learnt(example) == '<call>{"name": "look", "arguments": {"at": "a<|im_end|>b"}}</call><|im_end|>'
    assert [*example.completion].count(TOKENIZER.stop_ids[0]) == 1


@pytest.mark.parametrize(
    'record',
    [
        {'messages': [USER, BOT], 'tools': TOOLS},
        {'messages': CALLED[:2]},
        {'messages': [USER, BOT, *CALLED[2:]]},
        {'conversations': [{'from': 'human', 'value': 'Q'}, {'from': 'function_call', 'value': '{"name": "look"}'}]},
    ],
)
def test_a_template_that_knows_no_tools_is_told(record):
    with pytest.raises(ValueError, match='chat template knows no tools') as error:
        chats.to_imitate(record, TOKENIZER)
    assert '\n' not in str(error.value)


def test_messages_that_a_template_refuses_are_told():
    strict = with_template("{% if messages[1:] %}{{ raise_exception('one at a time') }}{% endif %}x")
    with pytest.raises(ValueError, match='chat template of .* refuses .*: one at a time'):
        chats.to_imitate({'messages': [said('system', 'S'), USER, BOT]}, strict)


def test_a_template_that_leaves_the_assistant_out_is_told():
    with pytest.raises(ValueError, match='chat template writes nothing'):
        chats.to_imitate({'messages': [USER, BOT]}, with_template('x'))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'question': 'a', 'answer': 'b'}, 'got keys question, answer'),
        ({'prompt': 'a', 'messages': [USER, BOT], 'completion': 'b'}, 'ambiguous: .*messages.*prompt and completion'),
        ({'messages': [USER, BOT], 'conversations': [USER, BOT]}, 'ambiguous'),
        *(({'prompt': 'a', 'completion': 'b', 'label': label}, "'label' is .* not learnt")
          for label in (False, 0, 0.0, 'False', 'false', '0', 'undesirable')),
        ({'messages': [USER, BOT], 'label': False}, "'label' is False"),
        ({'instruction': 'a', 'output': 'b', 'kto_tag': False}, "'kto_tag' is False"),
        ({'conversations': [USER, BOT], 'kto_tag': 0}, "'kto_tag' is 0"),
        ({'text': 'a', 'kto_tag': 0}, "'kto_tag' is 0"),
        ({'messages': [USER, BOT], 'trainable': False}, "'trainable' is False"),
        ({'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'train': False}, "'train' is False"),
        ({'prompt': 'a', 'completion': 'b', 'completion_mask': [0, 1]}, "'completion_mask' of a row"),
        ({'messages': [USER, said('assistant', [{'type': 'text', 'text': 'a', 'train': False}])]},
         r"messages\[1\].content\[0\]: 'train' of a part"),
        ({'messages': [USER, BOT], 'masked': True}, "'masked' is True"),
        ({'messages': [USER, BOT], 'loss_mask': [0, 0]}, "'loss_mask' of a row is not supported"),
        ({'messages': [USER, {**BOT, 'loss': 0.3}]}, r'messages\[1\]: loss=0.3'),
        ({'messages': [USER, {**BOT, 'loss': True, 'masked': 1}]}, r'messages\[1\]: loss and masked contradict'),
        ({'messages': [{**USER, 'train': True}, BOT]}, r'messages\[0\]: train=True asks to learn a turn of user'),
        ({'messages': [USER, {**BOT, 'train_detail': []}]}, r"messages\[1\]: 'train_detail' is not supported"),
        ({'conversations': [{'from': 'narrator', 'value': 'a'}]}, r'conversations\[0\]: from="narrator" .* human'),
        ({'conversations': [{'from': 'human'}]}, r"conversations\[0\] must have 'role' and 'content'"),
        ({'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'function_call', 'value': 'look()'}]},
         r'conversations\[1\].value is no JSON'),
        ({'messages': [said('user', [{'type': 'image_url', 'image_url': {'url': 'x'}}]), BOT]},
         r'messages\[0\].content\[0\] is of type "image_url"'),
        ({'messages': [said('user', ['a']), BOT]}, r'messages\[0\].content\[0\] is of type "str"'),
        ({'messages': [USER, {**BOT, 'weight': 0.5}]}, r'messages\[1\]: weight=0.5'),
        ({'messages': [{**USER, 'weight': 0}, BOT]}, r'messages\[0\]: weight=0'),
        ({'messages': [USER, {'role': 'assistant', 'function_call': {'name': 'look'}}]}, "'function_call'"),
        ({'messages': [USER, said('assistant', '', tool_calls=[{'id': 'x'}])]}, r'tool_calls\[0\] must have'),
        ({'messages': [USER, BOT], 'tools': '{'}, "'tools' is no JSON"),
        ({'messages': [said('human', 'a'), BOT]}, r'messages\[0\] .*"human".*user'),
        ({'messages': [said('system', 'a'), said('usr', 'b'), BOT]}, r'messages\[1\] .*"usr"'),
        ({'messages': [USER, {'role': 'assistant', 'content': None}]}, r"messages\[1\]: 'content'"),
        ({'messages': [USER, BOT], 'tools': {'name': 'look'}}, "'tools' must be a list"),
        ({'prompt': 'a', 'completion': 'b', 'tools': TOOLS}, "'tools' is for messages"),
        ({'messages': [USER, BOT], 'images': ['x.png']}, "'images'"),
        ({'instruction': 'a', 'input': {}, 'output': 1}, "'output' must be a text, got 1"),
        ({'text': ' '}, "'text' is empty"),
        ({'messages': [USER, BOT], 'system': ['Be kind.']}, "'system' must be a text"),
        ({'instruction': 'a', 'output': 'b', 'history': 5}, "'history' must be a list"),
        ({'conversations': [{'from': ['human'], 'value': 'a'}]}, r'conversations\[0\]: from=\["human"\]'),
        ({'messages': [USER, BOT], 'tools': '[' * 99999}, "'tools' is no JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_imitated_is_told_in_a_line(record, message):
    with pytest.raises(ValueError, match=message) as error:
        formats.imitated(record)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'prompt': 'a', 'responses': ['b', 'c'], 'label': 0}, 'chosen and rejected.*, got keys prompt, responses'),
        ({'prompt': 'a', 'instruction': 'b', 'chosen': 'c', 'rejected': 'd'}, 'ambiguous'),
        ({'prompt': 'Who?', 'chosen': [USER, BOT], 'rejected': [USER, OTHER]}, "'prompt' is not among the messages"),
        ({'question': 'a', 'chosen': 'The cat', 'rejected': 'The dog'}, "'question' stands beside texts"),
        ({'chosen': 'cat', 'rejected': 'dog'}, 'begin differently'),
        ({'chosen': 'The cat', 'rejected': 'The cat'}, 'are the same'),
        ({'prompt': 'a', 'chosen': 'b', 'rejected': 'b'}, 'are the same'),
        ({'chosen': [USER, BOT], 'rejected': [USER, BOT]}, 'are the same'),
        ({'chosen': [USER, BOT, USER], 'rejected': [USER, BOT]}, "chosen reply ends with a user's"),
        ({'chosen': [USER, BOT], 'rejected': [USER, BOT, USER]}, "rejected reply ends with a user's"),
        ({'chosen': DIALOGUE + ' Yes.', 'rejected': DIALOGUE + '  Yes. '}, 'are the same'),
        ({'prompt': [USER], 'chosen': 'b', 'rejected': 'c'}, 'all be texts or all lists'),
        ({'input': 'a', 'preferred_output': [BOT], 'non_preferred_output': [OTHER]}, "'input' must be an object"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_told_in_a_line(record, message):
    with pytest.raises(ValueError, match=message) as error:
        formats.preferred(record)
    assert '\n' not in str(error.value)


# --- files ------------------------------------------------------------------------------------------------------------

PAIRS = [{'prompt': 'Where to?', 'chosen': [USER, BOT], 'rejected': [USER, OTHER]}] * 2


@pytest.mark.parametrize('kind', ['.jsonl', '.json', 'lines.json', '.parquet'])
def test_a_file_of_lines_an_array_and_a_table_are_alike(tmp_path, kind):
    path, lines = tmp_path / f'pairs{kind}', ''.join(json.dumps(record) + '\n' for record in PAIRS)
    if kind == '.parquet':
        pyarrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
        parquet.write_table(pyarrow.Table.from_pylist(PAIRS), path)
    else:
        path.write_text(json.dumps(PAIRS, indent=1) if kind == '.json' else lines)
    assert records.read_all(path, formats.preferred) == [PromptedReplies([USER], ([BOT], [OTHER]))] * 2


def test_a_row_of_a_table_has_no_members_of_other_rows(tmp_path):
    """All objects of a Parquet column have the same members, null where a row has none."""
    pyarrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')

    def row(name, arguments):
        properties = {key: {'type': 'string', 'enum': [value]} for key, value in arguments.items()}
        tool = {'type': 'function', 'function': {'name': name, 'parameters': {'properties': properties}}}
        call = {'type': 'function', 'function': {'name': name, 'arguments': arguments}}
        turns = [USER, said('assistant', '', tool_calls=[call]), said('tool', 'a map'), BOT]
        return {'messages': turns, 'tools': [tool]}

    rows = [row('look', {'at': 'map'}), row('go', {'to': 'x', 'by': 'y'}), row('stop', {})]
    tokenizer = with_template(KNOWS_TOOLS)
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / 'rows.parquet')
    for name, lines in (('rows.jsonl', rows), ('written.jsonl', table.to_pylist())):
        (tmp_path / name).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert 'null' in (tmp_path / 'written.jsonl').read_text()

    def read(name):
        return records.read_all(tmp_path / name, lambda record: chats.to_imitate(record, tokenizer))

    texts = {name: [tokenizer.decode([*row.prompt, *row.completion]) for row in read(name)] for name in
             ('rows.jsonl', 'rows.parquet', 'written.jsonl')}  # fmt: skip
    assert texts['rows.parquet'] == texts['written.jsonl'] == texts['rows.jsonl']
    assert 'null' not in texts['rows.jsonl'][0]
    json_arguments = {'function': {'name': 'look', 'arguments': '{"at": null}'}}
    kept = chats.to_imitate({'messages': [USER, said('assistant', '', tool_calls=[json_arguments])]}, tokenizer)
    assert '"at": null' in tokenizer.decode(kept.completion)


def test_a_fault_in_an_array_is_told_by_its_number(tmp_path):
    path = tmp_path / 'pairs.json'
    path.write_text(json.dumps([*PAIRS, {'prompt': 'a'}]))
    with pytest.raises(ValueError, match=r'pairs.json, record 3: .* got keys prompt'):
        records.read_all(path, formats.preferred)
    for data, message in (
        (b'[{},\n{', 'pairs.json, line 2: not valid JSON'),
        (b'[' * 99999, 'pairs.json, line 1: lists or objects lie too deep'),
        (b'[{"prompt": "\xe9"}]', 'pairs.json, line 1: byte 14 of it, 0xe9, is no UTF-8'),
        (b'\x1f\x8b[]', 'pairs.json is compressed by gzip'),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            records.read_all(path, formats.preferred)


@pytest.mark.parametrize(
    ('text', 'key'),
    [
        ('[' * 10000, 'line 1'),
        ('[\n{"prompt": "a\\ud800", "completion": "b"}]', 'ud800'),
        ('[{"prompt": "a", "prompt": "x", "completion": "b"}]', "'prompt' has two"),
        ('[{"n": ' + '9' * 5000 + '}]', 'line 1'),
    ],
)
def test_an_array_is_read_as_lines_are(tmp_path, text, key):
    path = tmp_path / 'rows.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=rf'rows.json, .*{key}'):
        records.read_all(path, formats.imitated)


def test_an_array_may_have_a_byte_order_mark(tmp_path):
    path = tmp_path / 'rows.json'
    path.write_text('[\n{"prompt": "a", "completion": "b"}]', encoding='utf-8-sig')
    assert [row.prompt for row in records.read_all(path, formats.imitated)] == ['a']
    path.write_text('[]', encoding='utf-16')
    with pytest.raises(ValueError, match='rows.json is in UTF-16'):
        records.read_all(path, formats.imitated)


@pytest.mark.parametrize(
    ('record', 'key'),
    [
        ({'conversations': [{'from': ['human'], 'value': 'a'}, {'from': 'gpt', 'value': 'b'}]}, 'from='),
        ({'messages': [USER, BOT], 'tools': '[' * 100000}, "'tools'"),
        ({'messages': [USER, BOT], 'system': 5}, "'system'"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(record, key):
    with pytest.raises(ValueError, match=key):
        formats.imitated(record)
