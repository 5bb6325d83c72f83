"""Writes a checkpoint as a Hugging Face folder, which `AutoModelForCausalLM.from_pretrained` loads.

  pal-jax export --workdir=runs/rlpa                                         its last checkpoint
  pal-jax export --workdir=runs/rlpa --step=30 --output=my_model

No accelerator is needed (JAX_PLATFORMS=cpu), on whatever machine the run was trained.

Options:
  --workdir=FOLDER          the run; with --config=FILE[:VARIANT] instead, runs/<name of the config>
  --step=N                  which checkpoint; default the last
  --output=FOLDER           a new folder; default <workdir>/export, which is made anew
  --adapter                 of a run with LoRA: only the adapter, in a folder that the library peft loads; default
                            <workdir>/adapter
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from pal_jax.models.files import peft
from pal_jax.run import cli, stores
from pal_jax.run.loop import initialize
from pal_jax.run.outputs import check_folder
from pal_jax.run.runs import read_settings
from pal_jax.run.settings import to_dict
from pal_jax.run.trained import Export, folders_read, load_trained, write_exports

STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the last by default.')
ADAPTER = flags.DEFINE_bool('adapter', False, 'Only the adapter, as the library peft has it.')


def main() -> None:
    """Write the checkpoint of a run as folders of Hugging Face, or its adapters."""
    if cli.WORKDIR.value is None and cli.CONFIG.value is None:
        raise cli.Fault('no run; give its folder, such as --workdir=runs/rlpa')
    workdir = cli.workdir()
    settings = cli.faults(read_settings, workdir)
    output = cli.output(str(workdir / ('adapter' if ADAPTER.value else 'export')))
    cli.faults(check_folder, output, [workdir, *folders_read(to_dict(settings))])
    cli.faults(initialize, settings, workdir, cli.place())
    exports, step = cli.faults(load_trained, str(workdir), STEP.value)

    # A run of several policies has a folder for each.
    def folder(name: str) -> Path:
        return output / name if len(exports) > 1 else output

    if ADAPTER.value:
        for name, export in exports.items():
            cli.faults(save_adapter, export, folder(name))
    else:
        cli.faults(write_exports, exports, folder)
    for name in exports:
        print(f'step {step} -> {stores.shown(folder(name))}')


def save_adapter(export: Export, folder: Path) -> None:
    """Write the adapter of a run in the format of the library peft. Raises ValueError where the run has no adapter."""
    if export.adapters is None:
        raise ValueError(
            'this run exports no adapter; leave out --adapter, or train a policy with --config.policy.lora.rank=16'
        )
    peft.save(export.adapters.params, export.model, export.adapters.base, folder, export.adapters.dropout)


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)
