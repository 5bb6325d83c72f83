"""Serves a model to OpenAI's clients.

  python -m pal_jax.serve --source=orbax:runs/rlpa                      a run of this package, at http://127.0.0.1:8000
  python -m pal_jax.serve --source=hf:Qwen/Qwen2.5-0.5B-Instruct --port=9000

Options:
  --source=SOURCE     gguf:<file>, hf:<folder or hub id>, orbax:<workdir>, random:tiny; default the embedded model
  --host=ADDRESS      default 127.0.0.1; any other needs PAL_JAX_TOKEN in the environment, which callers must then send
  --port=N            default 8000
  --name=NAME         what the model is called in /v1/models; default the source
  --slots=N           requests decoded at once; default 16
  --line=N            requests that may wait; the next gets 429; default 256
  --max_len=N         tokens of a prompt and its answer; default 2048, or what the model has room for

Answers /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics (Prometheus). SIGTERM ends it once the
answers under way are told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import socket
from pathlib import Path

import uvicorn
from absl import flags

from pal_jax import cli
from pal_jax.decode.driver import Driver
from pal_jax.decode.http import make_app
from pal_jax.decode.local import LocalDecoder
from pal_jax.models import sources
from pal_jax.recipes.recipe import Context, open_run
from pal_jax.runtime import devices

SOURCE = flags.DEFINE_string('source', sources.EMBEDDED, 'The model.')
HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on.')
PORT = flags.DEFINE_integer('port', 8000, 'Port to listen on.')
NAME = flags.DEFINE_string('name', None, 'Name of the model; the source by default.')
SLOTS = flags.DEFINE_integer('slots', 16, 'Requests decoded at once.', lower_bound=1)
LINE = flags.DEFINE_integer('line', 256, 'Requests that may wait.', lower_bound=0)
MAX_LEN = flags.DEFINE_integer('max_len', 2048, 'Tokens of a prompt and its answer.', lower_bound=2)
CACHE = '~/.cache/pal_jax/compiled'
TOKEN = 'PAL_JAX_TOKEN'


def main() -> None:
    listener, token = cli.faults(listen, HOST.value, PORT.value)
    with contextlib.closing(listener):
        app = cli.faults(load, SOURCE.value, NAME.value or SOURCE.value, token)
        print(f'serving {SOURCE.value} at http://{HOST.value}:{listener.getsockname()[1]}/v1', flush=True)
        config = uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=60)
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """The socket, taken before a weight is read, and the token that callers must send.

    Raises:
      ValueError: an address others can reach and no token.
      OSError: the port is taken.
    """
    token = os.environ.get(TOKEN, '')
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if not token and not ipaddress.ip_address(address[0]).is_loopback:
        raise ValueError(f'--host={host} can be reached by others; set {TOKEN} to a secret that callers must send')
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        raise OSError(f'cannot listen on {host}:{port} ({error.strerror}); choose another --port') from error
    return listener, token


def load(source: str, name: str, token: str):
    """The application, its model read and its driver running."""
    devices.initialize(Path(CACHE).expanduser())
    mesh = devices.make_mesh()
    found = sources.resolve(
        source, open_run=lambda run: open_run(run, Context(mesh, lambda _: contextlib.nullcontext()))
    )
    cfg = devices.for_platform(found.config)
    cfg = dataclasses.replace(cfg, max_len=min(cfg.max_len, MAX_LEN.value))
    tokenizer = found.tokenizer()
    decoder = LocalDecoder(cfg, tokenizer, mesh, slots=SLOTS.value)
    decoder.load(found.load(decoder.param_shardings))
    return make_app(Driver(decoder, line=LINE.value), tokenizer, model=name, token=token)


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)
