"""The training loop of every method.

  pal-jax train --config=rlpa                                           train, or go on where the run stopped
  pal-jax train --config=rlpa:smoke                                     a variant of the file
  pal-jax train --config=rlpa --config.ppo.kl_coef=0.1 --workdir=runs/kl

Options:
  --config=FILE[:VARIANT]   what to train: a name or a file, which shows all that a variant changes
  --config.KEY=VALUE        change one value; --config=FILE --help lists every key, and so does config.json of a run
  --changed=KEY             go on although the own function of this key has changed, as in --changed=reward.function
  --workdir=FOLDER          where checkpoints, metrics, report and export go; default runs/<name of the config>
  --coordinator=HOST:PORT --processes=N --process=I
                            one of N commands that train together, numbered from 0, which is on HOST; Slurm's tasks and
                            pods on GKE need none of the three, hosts of a TPU VM --coordinator=auto alone

The same command again resumes, also after SIGTERM or Ctrl-C, which save a checkpoint first; a larger
--config.total_steps goes on from a finished run. The folder then holds report.html, summary.json, *.jsonl,
tensorboard/, checkpoints/, kept/ (docs/pods.md), export/ (Hugging Face).
"""

from __future__ import annotations

from absl import flags

from pal_jax.run import cli

CHANGED = flags.DEFINE_list('changed', [], 'Keys of own functions that have changed since the run began.')


def main() -> int:
    """Train, and return the exit status: 0, or that of a process ended by a signal where a signal stopped the run."""
    # A wrong key or name is told before the libraries that training alone needs are imported, which takes seconds.
    from pal_jax.run.loop import train_all

    return train_all(cli.settings(), cli.workdir(), cli.faults(cli.place), cli.name(), CHANGED.value)


if __name__ == '__main__':
    cli.run(main, __doc__ or '')
