from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence

import gguf
import pytest
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from pal_jax.data import tokenizer
from pal_jax.data.tokenizer import Tokenizer, byte_tokenizer

ALPHABET = sorted(ByteLevel.alphabet())  # one character for every byte; Ġ is the space
CONTROL, NORMAL, USER_DEFINED = 3, 1, 4


def write_gguf(path, pre: str, merges: list[str], extra: Sequence[str] = (), model: str = 'gpt2') -> None:
    """A GGUF file that holds nothing but a byte-level tokenizer and a template with a default system message."""
    specials = ['<|end|>', '<tool>']
    tokens = ALPHABET + [merge.replace(' ', '') for merge in merges] + [*extra, *specials]
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([NORMAL] * (len(tokens) - 2) + [CONTROL, USER_DEFINED])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index('<|end|>'))
    writer.add_chat_template("{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|end|>' }}{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def from_gguf(tmp_path, pre: str, merges: list[str], extra: Sequence[str] = (), model: str = 'gpt2') -> Tokenizer:
    write_gguf(tmp_path / 't.gguf', pre, merges, extra, model)
    return tokenizer.from_gguf(gguf.GGUFReader(tmp_path / 't.gguf'))


def pieces(tok: Tokenizer, text: str) -> list[str]:
    """The tokens of `text` as text. Only for ASCII: other characters may be several tokens."""
    return [tok.decode([i]) for i in tok.encode(text)]


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_bytes_come_back_whatever_they_are():
    tok, rng = byte_tokenizer(), random.Random(0)
    for _ in range(50):
        text = ''.join(chr(rng.choice([rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(20))
        ids = tok.encode(text)
        assert len(ids) == len(text.encode()) and max(ids) < 256
        assert tok.decode(ids) == tok.text_of(ids) == text


def test_the_byte_template_is_chatml():
    tok = byte_tokenizer()
    ids = tok.chat([{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': ' {{hé}}\n'}])
    assert tok.decode(ids) == (
        '<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n {{hé}}\n<|im_end|>\n<|im_start|>assistant\n'
    )
    assert tok.text_of(ids) == 'system\nBe kind.\nuser\n {{hé}}\n\nassistant\n'
    without = tok.chat([{'role': 'user', 'content': 'x'}], add_generation_prompt=False)
    assert tok.decode(without) == '<|im_start|>user\nx<|im_end|>\n'


def test_stop_pad_and_size():
    tok = byte_tokenizer()
    assert [tok.decode([i]) for i in tok.stop_ids] == ['<|im_end|>', '<|endoftext|>']
    assert tok.decode([tok.pad_id]) == '<|pad|>'
    assert tok.vocab_size == 264 and tok.pad_id not in tok.stop_ids


def test_a_reply_continues_exactly_the_prompt_it_was_sampled_from():
    tok = byte_tokenizer()
    messages = [{'role': 'user', 'content': 'Hi'}]
    for reply, question in (('Hello!', 'Who are you?'), ('Nobody.', 'Nice.'), ('', '')):
        prompt = tok.chat(messages)
        sampled = [*tok.encode(reply), tok.stop_ids[0]]
        messages += [{'role': 'assistant', 'content': reply}, {'role': 'user', 'content': question}]
        assert tok.chat(messages)[: len(prompt) + len(sampled)] == prompt + sampled


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tok = byte_tokenizer()
    tok.save(tmp_path)
    again = tokenizer.from_folder(tmp_path)
    messages = [{'role': 'user', 'content': 'naïve 文字 <|im_end|>'}]
    assert again.chat(messages) == tok.chat(messages)
    assert (again.stop_ids, again.pad_id, again.vocab_size) == (tok.stop_ids, tok.pad_id, tok.vocab_size)
    config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
    assert config['tokenizer_class'] == 'PreTrainedTokenizerFast'


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match='no tokenizer.json in'):
        tokenizer.from_folder(tmp_path)


def test_without_a_template_or_an_end_it_says_so():
    fast = byte_tokenizer().fast
    fast.chat_template = None
    with pytest.raises(ValueError, match='no chat template'):
        Tokenizer(fast).chat([{'role': 'user', 'content': 'x'}])
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={'a': 0}, merges=[]))
    with pytest.raises(ValueError, match='no eos_token'):
        Tokenizer(PreTrainedTokenizerFast(tokenizer_object=bare))


# Gemma 2 refuses a system message and two messages of one role; other templates leave a system message out.
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ m['role'] + ':' + m['content'] + '|' }}{% endfor %}"
)
LEAVES_OUT = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + ':' + m['content'] + '|' }}{% endfor %}"
SYSTEM, USER, BOT = (
    {'role': role, 'content': text} for role, text in (('system', 'Be kind.'), ('user', 'Hi'), ('assistant', 'Yes?'))
)


def templated(template: str) -> Tokenizer:
    fast = byte_tokenizer().fast
    fast.chat_template = template
    return Tokenizer(fast)


@pytest.mark.parametrize('template', [REFUSES, LEAVES_OUT])
@pytest.mark.parametrize(
    ('messages', 'text'),
    [
        ([SYSTEM, USER, BOT, USER], 'user:Be kind.\n\nHi|assistant:Yes?|user:Hi|'),
        ([SYSTEM], 'user:Be kind.|'),
        ([SYSTEM, BOT, USER], 'user:Be kind.|assistant:Yes?|user:Hi|'),
        ([{'role': 'system', 'content': ''}, USER], 'user:Hi|'),
        ([USER, BOT], 'user:Hi|assistant:Yes?|'),
    ],
)
def test_a_system_prompt_that_the_template_does_not_take_is_at_the_head_of_the_first_user_message(
    template, messages, text
):
    tok = templated(template)
    assert tok.folds_system
    assert tok.decode(tok.chat(messages)) == text
    assert tok.folded == (messages[0] == SYSTEM)


def test_a_template_that_takes_a_system_prompt_gets_it():
    assert not byte_tokenizer().folds_system
    gemma3 = "{{ messages[0]['content'] + ' ' + messages[1]['content'] if messages[0]['role'] == 'system' else 'x' }}"
    assert not templated(gemma3).folds_system
    assert not templated('').folds_system


@pytest.mark.parametrize(
    ('template', 'message'),
    [
        (REFUSES, 'template of the tokenizer refuses messages of assistant, user: Conversation roles must alternate'),
        ('{% if %}', 'template of the tokenizer refuses messages of assistant, user: Expected an expression'),
        ('{{ a.b.c }}', "template of the tokenizer refuses messages of assistant, user: 'a' is undefined"),
        ("{{ ''.__class__ }}{{ ''.__class__.__mro__ }}", "template of .* refuses .* '__class__' .* is unsafe"),
        ('{{ 1 / 0 }}', 'template of .* refuses .*: division by zero'),
        ('{{ range(10 ** 9) }}', 'template of .* refuses .*: Range too big'),
        ('{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', 'template of .* refuses .*: maximum recursion depth'),
    ],
)
def test_what_a_template_raises_is_one_line(template, message):
    with pytest.raises(ValueError, match=message) as error:
        templated(template).chat([BOT, USER])
    assert '\n' not in str(error.value)


def test_half_a_surrogate_pair_is_no_text():
    for call in (byte_tokenizer().encode, lambda text: byte_tokenizer().chat([{'role': 'user', 'content': text}])):
        with pytest.raises(ValueError, match=r'half of a surrogate pair, \\ud800; delete it'):
            call('a\ud800')


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('tokenizer.json', '{"version": "1.0",', r'tokenizer.json, line 1: not valid JSON'),
        ('tokenizer.json', '{"version": "1.0"}', r'the tokenizer in .* cannot be read'),
        ('tokenizer_config.json', '{"a": ', r'tokenizer_config.json, line 1: not valid JSON'),
        ('chat_template.jinja', b'\xe9', r'chat_template.jinja, line 1: byte 1 of it, 0xe9, is no UTF-8'),
    ],
)
def test_a_damaged_file_of_a_tokenizer_is_named(name, text, message, tmp_path):
    byte_tokenizer().save(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        tokenizer.from_folder(tmp_path)


# --- GGUF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('pre', 'text', 'expected'),
    [
        ('gpt-2', 'a 12  3', ['a', ' 12', ' ', ' 3']),
        ('smollm', 'a 12  3', ['a', ' ', '1', '2', '  ', '3']),
        ('qwen2', 'a 12  3', ['a', ' ', '1', '2', ' ', ' ', '3']),
        ('llama-bpe', 'a 1234', ['a', ' ', '12', '3', '4']),
        ('gpt-2', 'a\n\n\nb', ['a', '\n\n', '\n', 'b']),
        ('qwen2', 'a\n\n\nb', ['a', '\n\n', '\n', 'b']),
        ('qwen2', '(ab', ['(a', 'b']),
        ('gpt-2', '(ab', ['(', 'a', 'b']),
        ('qwen2', "X'LL", ['X', "'LL"]),
        ('gpt-2', "X'LL", ['X', "'", 'LL']),
    ],
)
def test_each_pre_tokenizer_cuts_its_own_way(pre, text, expected, tmp_path):
    merges = ['1 2', 'Ġ 12', 'Ġ 3', 'Ġ Ġ', 'Ċ Ċ', '( a', 'L L', "' LL"]
    assert pieces(from_gguf(tmp_path, pre, merges), text) == expected


def test_only_llama_3_takes_a_whole_word_past_the_merges(tmp_path):
    assert pieces(from_gguf(tmp_path, 'llama-bpe', ['a b'], extra=['abc']), 'abc') == ['abc']
    assert pieces(from_gguf(tmp_path, 'qwen2', ['a b'], extra=['abc']), 'abc') == ['ab', 'c']


def test_only_qwen2_composes_accents(tmp_path):
    decomposed, composed = 'e\u0301', 'é'
    qwen, smollm = from_gguf(tmp_path, 'qwen2', ['a b']), from_gguf(tmp_path, 'smollm', ['a b'])
    assert qwen.encode(decomposed) == qwen.encode(composed)
    assert smollm.decode(smollm.encode(decomposed)) == decomposed


def test_control_and_user_defined_tokens_stay_whole(tmp_path):
    tok = from_gguf(tmp_path, 'smollm', ['a b'])
    ids = tok.encode('ab<tool>ab<|end|>')
    assert [tok.decode([i]) for i in ids] == ['ab', '<tool>', 'ab', '<|end|>']
    assert tok.text_of(ids) == 'ab<tool>ab'
    assert tok.stop_ids == (ids[-1],) and tok.pad_id == ids[-1]
    assert tok.decode(tok.chat([{'role': 'user', 'content': 'ab'}])) == 'user:ab<|end|>'


def test_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match='tokenizer.ggml.pre=tekken is not supported, only gpt-2, smollm'):
        from_gguf(tmp_path, 'tekken', ['a b'])
    with pytest.raises(ValueError, match='tokenizer.ggml.model=bert is not supported'):
        from_gguf(tmp_path, 'smollm', ['a b'], model='bert')


# --- SentencePiece --------------------------------------------------------------------------------------------------

BYTE, CORPUS = 6, 'the cat sat on the mat and then that hat went to the other end of the street '


def write_sentencepiece(path, space_prefix: bool) -> dict[str, float]:
    """A GGUF file of a SentencePiece tokenizer with random pieces, and their scores."""
    rng, text = random.Random(0), CORPUS.replace(' ', '▁')
    cuts = {text[i : i + rng.randrange(1, 7)] for i in range(len(text)) for _ in range(3)} | set(text)
    pieces = {piece: -float(i) for i, piece in enumerate(rng.sample(sorted(cuts), len(cuts)))}
    tokens = ['<unk>', '<s>', '</s>', '  ', *(f'<0x{i:02X}>' for i in range(256)), *pieces]
    types = [CONTROL] * 3 + [USER_DEFINED] + [BYTE] * 256 + [NORMAL] * len(pieces)
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_tokenizer_model('llama')
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores([-1000.0] * 4 + [0.0] * 256 + list(pieces.values()))
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(space_prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pieces


def joined_by_score(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE: the neighbours whose piece has the highest score are joined, until none make a piece."""
    parts = list(text)
    while found := [(scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]:
        i = -max(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@pytest.mark.parametrize('space_prefix', [False, True])
def test_sentencepiece_joins_the_best_pieces_first(tmp_path, space_prefix):
    scores = write_sentencepiece(tmp_path / 't.gguf', space_prefix)
    tok, rng = tokenizer.from_gguf(gguf.GGUFReader(tmp_path / 't.gguf')), random.Random(1)
    for _ in range(50):
        words = rng.choices(CORPUS.split(), k=6)
        text = ' '.join(words)
        expected = joined_by_score('▁' * space_prefix + text.replace(' ', '▁'), scores)
        assert tok.fast.convert_ids_to_tokens(tok.encode(text)) == expected
        assert tok.decode(tok.encode(text)) == text
    assert tok.stop_ids == (2,)


def test_sentencepiece_spells_unknown_characters_in_bytes_and_matches_runs_of_spaces_whole(tmp_path):
    write_sentencepiece(tmp_path / 't.gguf', space_prefix=False)
    tok = tokenizer.from_gguf(gguf.GGUFReader(tmp_path / 't.gguf'))
    assert tok.fast.convert_ids_to_tokens(tok.encode('é  ')) == ['<0xC3>', '<0xA9>', '  ']
    assert tok.decode(tok.encode('é  ')) == 'é  '


# --- thoughts -------------------------------------------------------------------------------------------------------


def test_special_tokens_that_mark_thoughts_stay_in_the_text():
    tok = byte_tokenizer()
    assert tok.text_of(tok.encode('a<|im_end|>')) == 'a'
    tok.fast.add_special_tokens({'additional_special_tokens': ['[THINK]', '[/THINK]', '<|channel|>', '<|message|>']})
    marked = Tokenizer(tok.fast)
    text = '[THINK]a ferret[/THINK]<|channel|>final<|message|>Hello'
    assert marked.text_of(marked.encode(f'<|im_start|>{text}<|im_end|>')) == text


def test_a_template_that_begins_a_thought_is_seen_in_what_does_not_end_it():
    tok = byte_tokenizer()
    tok.fast.chat_template = f"{tokenizer.CHATML.removesuffix('{% endif %}')}{{{{ '<think>\n' }}}}{{% endif %}}"
    prompt = tok.chat([{'role': 'user', 'content': 'Hi'}])
    assert tok.decode(prompt).endswith('<|im_start|>assistant\n<think>\n')
    assert tok.thinking(prompt, 'a ferret') == '<think>\na ferret'
    assert tok.thinking(prompt, 'a ferret</think>Hello') == 'a ferret</think>Hello'
    assert tok.thinking(tok.encode('Hi'), 'Hello') == 'Hello'
