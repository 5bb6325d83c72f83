"""A checkpoint as a Hugging Face folder, which `AutoModelForCausalLM.from_pretrained` loads.

  python -m pal_jax.export --config=configs/rlpa.py                              the last checkpoint of runs/rlpa
  python -m pal_jax.export --config=configs/rlpa.py --step=30 --output=my_model

Options:
  --config=FILE[:VARIANT]   the config of the run, with the same --config.KEY=VALUE changes
  --workdir=FOLDER          the run; default runs/<name of the config>
  --step=N                  which checkpoint; default the last
  --output=FOLDER           default <workdir>/export
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from pal_jax import cli
from pal_jax.models import hf
from pal_jax.train import load_run

STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the last by default.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder to write; <workdir>/export by default.')


def main() -> None:
    workdir = cli.workdir()
    recipe, state, step, _ = cli.faults(load_run, cli.config(), workdir, STEP.value)
    exports = recipe.exports(state)
    for name, export in exports.items():
        folder = Path(OUTPUT.value) if OUTPUT.value else workdir
        folder = folder / name if len(exports) > 1 or not OUTPUT.value else folder
        cli.faults(hf.save, export.params, export.model, export.tokenizer, folder)
        print(f'step {step} -> {folder}')


if __name__ == '__main__':
    cli.run(main, __doc__ or '')
