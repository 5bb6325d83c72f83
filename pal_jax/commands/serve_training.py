"""Trains adapters for clients of `tinker`, whose loops run elsewhere in plain Python.

  pal-jax serve-training                                              at http://127.0.0.1:8123
  TINKER_BASE_URL=http://127.0.0.1:8123 TINKER_API_KEY=tml-local python my_loop.py

Options:
  --model=NAME        a Hugging Face folder or hub id, gguf:<file>, random:tiny; default the embedded model
  --host=ADDRESS      default 127.0.0.1; any other needs PAL_JAX_TOKEN=tml-... in the environment, which clients must
                      then send as TINKER_API_KEY
  --port=N            default 8123
  --workdir=FOLDER    where weights are saved, below tinker/, and tokenizers of other sources than folders and hub ids,
                      below bases/; default runs/training_server
  --dtype=NAME        of matrix products: float32, bfloat16 or auto, the best of this machine; default auto
  --max_len=N         tokens of a sequence; default 2048, or what the model has room for
  --max_rank=N        the largest rank of adapters, which sets the memory of --bank; default 32
  --rows=N            sequences in a device's memory at once when training; default 4
  --slots=N           samples decoded at once; default 32
  --bank=N            models whose samples are decoded in one batch; each makes a step a little slower; default 4
  --line=N            sampling requests that may wait; the next gets 429; default 8192
  --train_share=X     the share of time that training gets while samples wait too; default 0.5
  --body_mib=N        the largest request; default 256
  --scan_layers       loop over layers: programs are compiled sooner, and run slower on a CPU
  --coordinator=HOST:PORT --processes=N --process=I
                      one server of several processes, as `pal-jax train --help` says; process 0 has the clients, and
                      all processes need the same --workdir

Needs the client for its messages: pip install 'pal_jax[tinker]'. SIGTERM ends the server. Saved weights stay usable,
and unsaved models are gone with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import uvicorn
from absl import flags
from fastapi import FastAPI

from pal_jax.commands.talking import CACHE
from pal_jax.decode.choose import TOKEN
from pal_jax.decode.serve.listening import HttpServer, listen
from pal_jax.models.files import sources
from pal_jax.run import checkpoint, cli, devices, processes, stores
from pal_jax.run.processes import host_port

if TYPE_CHECKING:
    from pal_jax.data.tokenizer import Tokenizer
    from pal_jax.training_server.worker import Worker

MODEL = flags.DEFINE_string('model', sources.EMBEDDED, 'The base.')
HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on.')
PORT = flags.DEFINE_integer('port', 8123, 'Port to listen on.', lower_bound=0, upper_bound=65535)
DTYPE = flags.DEFINE_string('dtype', 'auto', 'Of matrix products.')
MAX_LEN = flags.DEFINE_integer('max_len', 2048, 'Tokens of a sequence.', lower_bound=2)
MAX_RANK = flags.DEFINE_integer('max_rank', 32, 'The largest rank of adapters.', lower_bound=1)
ROWS = flags.DEFINE_integer('rows', 4, 'Sequences in memory at once.', lower_bound=1)
SLOTS = flags.DEFINE_integer('slots', 32, 'Samples decoded at once.', lower_bound=1)
BANK = flags.DEFINE_integer('bank', 4, 'Models in one batch of samples.', lower_bound=1)
LINE = flags.DEFINE_integer('line', 8192, 'Sampling requests that may wait.', lower_bound=1)
TRAIN_SHARE = flags.DEFINE_float('train_share', 0.5, 'Share of time.', lower_bound=0.01, upper_bound=0.99)
BODY_MIB = flags.DEFINE_integer('body_mib', 256, 'The largest request.', lower_bound=1)
SCAN_LAYERS = flags.DEFINE_bool('scan_layers', False, 'Loop over layers.')


def main() -> None:
    """Serve until a signal ends the server."""
    cli.faults(check_extra)
    # The number of this process may be known only once all have come.
    cli.faults(devices.initialize, Path(CACHE).expanduser(), cli.faults(cli.place))
    if processes.joined() and jax.process_index():
        cli.faults(follow)
        return
    listener, key = cli.faults(listen, HOST.value, PORT.value)
    with contextlib.closing(listener):
        cli.faults(check_key, key)
        print(f'loading {MODEL.value}; clients may start, and wait until it is served', flush=True)
        app, name = cli.faults(make, key)
        # The socket listens before its address is told: who calls from now on waits and is not refused.
        cli.faults(listener.listen, 2048)
        address = f'http://{host_port(HOST.value, listener.getsockname()[1])}'
        print(f'serving {name}: TINKER_BASE_URL={address} TINKER_API_KEY=tml-...', flush=True)
        config = uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=5, timeout_keep_alive=75)
        # The server of uvicorn raises the signal again once it has drained.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with contextlib.suppress(SystemExit) if processes.joined() else contextlib.nullcontext():
            HttpServer(config).run(sockets=[listener])


def check_extra() -> None:
    """Raise RuntimeError where the client, which has the messages, is not installed."""
    for package in ('tinker', 'zstandard'):
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(f"package {package} is not installed; run pip install 'pal_jax[tinker]'")


def check_key(key: str) -> None:
    """Raise ValueError where the client would refuse the key."""
    if key and not key.startswith('tml-'):
        raise ValueError(f'{TOKEN} is no key that the client sends; let it begin with tml-')


def make(key: str) -> tuple[FastAPI, str]:
    """The HTTP application, with its model loaded and its executor running, and the base's name for clients."""
    from pal_jax.training_server.app import make_app
    from pal_jax.training_server.service import Service

    worker, tokenizer = load()
    service = Service(worker, tokenizer, line=LINE.value, share=TRAIN_SHARE.value)
    return make_app(service, key=key, body_limit=BODY_MIB.value << 20), service.base_name


def follow() -> None:
    """Do what process 0, which has the clients, tells this process to do, until it ends."""
    from pal_jax.training_server.executor import Executor

    worker, _ = load()
    # From now on, a signal to all processes ends process 0, which ends the others.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    Executor(worker, share=TRAIN_SHARE.value).join()
    worker.close()


def load() -> tuple[Worker, Tokenizer]:
    """The model on the mesh of all processes' devices, and its tokenizer."""
    from pal_jax.training_server.start import make_worker

    stores.check_local(workdir := Path(cli.WORKDIR.value or 'runs/training_server'), '--workdir')
    flagged = MODEL, DTYPE, MAX_LEN, MAX_RANK, ROWS, SLOTS, BANK, SCAN_LAYERS
    options: dict[str, Any] = {flag.name: flag.value for flag in flagged}
    if processes.joined():
        checkpoint.check_processes(options)
        if not jax.process_index():
            workdir.mkdir(parents=True, exist_ok=True)
        checkpoint.check_seen(workdir)
    return make_worker(options.pop('model'), workdir, devices.make_mesh(), **options)


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)
