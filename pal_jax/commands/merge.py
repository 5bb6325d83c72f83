"""Merges models into one: policies of several preferences into the policy of a person (P-Soups), or any others.

  pal-jax merge --sources=runs/easy,runs/short,runs/kind --output=my_soup
  pal-jax merge --sources=adapter_1,adapter_2 --weights=3/4,1/4 --method=delta --output=my_model

Options:
  --sources=A,B,...   models of one kind: orbax:<workdir> of a run, hf:<folder or hub id>, gguf:<file>, or the folder of
                      a Hugging Face model or of a PEFT adapter; a run that trained an adapter counts as this adapter
  --weights=W,W,...   numbers or fractions with sum 1, one for each source; default equal ones
  --method=NAME       default linear
    linear            the mean of the weights; of adapters that of their factors, which gives an adapter again (P-Soups)
    delta             of adapters the exact mean of their updates, on the base: a model
  --base=SOURCE       the model that all adapters started from, for delta; default what they name
  --output=FOLDER     what is written: a Hugging Face model, or a PEFT adapter, in a new folder

Other merges (TIES, task arithmetic, SLERP) are mergekit's, which reads and writes the same folders.

Models are read and written tensor by tensor, in the precision of the first model, or of the base. A run or a GGUF file
is loaded whole, one at a time, and written to a temporary folder beside --output first. No accelerator is needed
(JAX_PLATFORMS=cpu).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import Progress

from pal_jax.commands.talking import SOURCES
from pal_jax.models.files import folders, hf, peft, sources
from pal_jax.models.files.folders import METHODS, Settings, Watch
from pal_jax.models.merging import checked
from pal_jax.run import cli
from pal_jax.run.outputs import check_folder
from pal_jax.run.trained import folders_read, load_trained

WEIGHTS = flags.DEFINE_list('weights', [], 'One for each source.')
METHOD = flags.DEFINE_enum('method', 'linear', METHODS, 'How they are merged.')
BASE = flags.DEFINE_string('base', None, 'The model that all started from.')


def main() -> None:
    """Merge the models of --sources into the folder of --output."""
    if not SOURCES.value:
        raise cli.Fault('nothing to merge; give models with --sources=A,B')
    output = cli.output()
    if cli.faults(cli.place):
        raise cli.Fault('merging runs in one process; leave out --processes')
    weights = cli.faults(parse_weights, WEIGHTS.value, len(SOURCES.value))
    settings = Settings(METHOD.value, weights)
    cli.faults(merge, SOURCES.value, settings, BASE.value, output)
    print(f'{len(weights)} models by {METHOD.value} -> {output}')


def parse_weights(texts: Sequence[str], count: int) -> list[float]:
    """The weights of `count` sources, read from numbers or fractions; equal weights where `texts` is empty.

    Raises:
      ValueError: one is no number, or their sum is not 1.
    """
    try:
        weights = [float(Fraction(text)) for text in texts] or [1 / count] * count
    except (ValueError, ZeroDivisionError):
        raise ValueError(f'--weights={",".join(texts)} are no numbers; give such as 1/3,1/3,1/3 or 0.5,0.5') from None
    return list(checked(weights, count))


def merge(names: Sequence[str], settings: Settings, base: str | None, out: Path) -> None:
    """Merge the models that these sources name into the folder `out`, as `folders.merge` does.

    `base` is the source of the model that all started from.

    Raises:
      ValueError, RuntimeError: a source that cannot be had, what cannot be merged, or an `out` that is a source or
        somebody else's.
    """
    check_folder(out, [folder for name in [*names, *([base] if base else [])] for folder in read_by(name)])
    out.parent.mkdir(parents=True, exist_ok=True)
    # Models without a folder are written beside the output first.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.merge-') as scratch:
        model_folders = [folder_of(name, Path(scratch) / str(i)) for i, name in enumerate(names)]
        adapters = [folder for folder in model_folders if folders.is_adapter(folder)]
        # Where `base` is None and the method needs one, it is the base that the adapters name.
        if base is None and adapters and settings.method != 'linear':
            base = base_of(adapters)
        if base is not None:
            settings = settings._replace(base=folder_of(base, Path(scratch) / 'base'))
        with progress_bar() as watch:
            folders.merge(model_folders, settings, out, watch)


def read_by(source: str) -> list[Path]:
    """The folders that a source reads: the one that it names, and that of the model that an adapter stands on."""
    return folders_read(source if source.partition(':')[1] else f'peft:{source}')


def folder_of(source: str, scratch: Path) -> Path:
    """The folder of a model or adapter. A model that has no folder is written to `scratch` first.

    Raises:
      ValueError, RuntimeError: there is no such model.
    """
    kind, _, name = source.partition(':')
    if kind == 'orbax' and name:
        return write_run(name, scratch)
    if kind == 'hf' and name:
        return sources.hf_folder(name)
    if kind in ('gguf', 'random'):
        model = sources.resolve(source)
        hf.save(model.load(), model.config, model.tokenizer(), scratch)
        return scratch
    folder = Path(name if kind == 'peft' else source)
    if not folder.is_dir():
        raise ValueError(
            f'there is no folder {folder}; give one, or orbax:<workdir>, hf:<folder or hub id>, gguf:<file>'
        )
    return folder


def write_run(workdir: str, scratch: Path) -> Path:
    """Write the last checkpoint of a run to `scratch`: its adapter, where it has trained one, or else its model."""
    exports, _ = load_trained(workdir)
    export = next(iter(exports.values()))
    if export.adapters is None:
        about: Any = {'head': export.head, 'labels': export.labels, 'more': export.more}
        hf.save(export.params, export.model, export.tokenizer, scratch, **about)
    else:
        peft.save(export.adapters.params, export.model, export.adapters.base, scratch, export.adapters.dropout)
    return scratch


def base_of(adapters: Sequence[Path]) -> str:
    """The source of the model that all adapters name as their base.

    Raises:
      ValueError: the adapters name no base, or several.
    """
    bases = dict.fromkeys(peft.read_config(folder).base for folder in adapters)
    if len(bases) > 1 or not all(bases):
        listed = ' and '.join(name or 'none' for name in bases)
        raise ValueError(f'the adapters name {listed} as their base; give adapters of one, or --base=SOURCE')
    return sources.base_source(next(iter(bases)))


@contextlib.contextmanager
def progress_bar() -> Iterator[Watch]:
    """A progress bar, in a terminal only, for as long as tensors are merged."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task('merging')
        yield lambda done, of: bar.update(task, completed=done, total=of)


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)
