"""Serves a model to OpenAI's clients.

  pal-jax serve --source=runs/rlpa                                      a run of this package, at http://127.0.0.1:8000
  pal-jax serve --source=hf:Qwen/Qwen2.5-0.5B-Instruct --port=9000
  pal-jax serve --source=runs/rlpa --driver=jetstream --port=9000                   gRPC

Options:
  --source=SOURCE     a run's folder (--workdir=FOLDER is the same), gguf:<file>, hf:<folder or hub id> or random:tiny;
                      default the embedded model
  --driver=NAME       local: HTTP; jetstream: gRPC, by google-jetstream's protocol; default local
  --host=ADDRESS      default 127.0.0.1; any other needs PAL_JAX_TOKEN in the environment, which callers must then send
  --port=N            default 8000
  --name=NAME         what the model is called in /v1/models; default the source
  --slots=N           requests decoded at once; default 16
  --line=N            requests that may wait; the next gets 429, or RESOURCE_EXHAUSTED; default 256
  --dtype=NAME        of matrix products: float32, bfloat16 or auto, the best of this machine; default auto
  --adapters=A,B,...  folders of PEFT adapters on the source: every request mixes them with weights of its own, in the
                      field `mixture` (numbers with sum 1; without it the source answers alone); HTTP only
  --mixing=KIND       factors: as pal_jax.merge --method=linear; delta: as --method=delta; default factors
  --int8              decode with weights of eight bits: less to read, and a slightly other policy
  --exact             log-probs equal a trainer's bit for bit, with any other requests at once (docs/performance.md); a
                      CPU takes at least 64 slots for it in float32
  --max_len=N         tokens of a prompt and its answer; default 2048, or what the model has room for
  --asking=FOLDER             a finished run of --config=pal: the chat page shows two texts at a time and learns the
                      user's taste from clicks; with --adapters, one for each of the run's prototypes, it mixes the next
                      answer by it; HTTP only
  --questions=FILE    pairs to ask about, as pal_jax.personalize --ask reads them
  --people=FOLDER     where people who save their taste are kept, a file each; default people
  --moderation=FOLDER         a run of --config=moderation judges answers: an unsafe one is drawn again, and at last a
                      fixed refusal is told (finish_reason content_filter); chats and /v1/responses alone are answered,
                      and a stream comes once its answer is judged; HTTP only
  --moderation_draws=N        draws of an answer at most; default 4
  --moderation_threshold=P    an answer is unsafe where the probability of a category is above it, 1: never; default the
                      run's own thresholds, one for each category
  --cors_origins=A,B  web pages that may ask from a browser, as https://page.example or http://localhost:3000; default
                      none but the chat page; HTTP only

HTTP answers /v1/chat/completions, /v1/completions, /v1/responses, /v1/models, /health and /metrics (Prometheus), and
shows a chat page at / to browsers. gRPC has the services jetstream_proto.Orchestrator and pal_jax.Rollout. Both listen
once the weights are loaded. SIGTERM ends the server once the answers under way have ended.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import uvicorn
from absl import flags

from pal_jax.commands.talking import chat_preset, open_model, source_or_run
from pal_jax.decode.choose import check_eight_bits, check_exact
from pal_jax.decode.driver import Driver
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request, RequestProgress
from pal_jax.decode.serve.guard import Guard
from pal_jax.decode.serve.http import make_app
from pal_jax.decode.serve.interviews import make_routes
from pal_jax.decode.serve.listening import HttpServer, listen
from pal_jax.models import lora, soups
from pal_jax.models.config import ModelConfig, exact_config
from pal_jax.models.files import peft
from pal_jax.models.files.sources import Source
from pal_jax.models.params import Params
from pal_jax.recipes.personal.pal.interview import Interview, open_interview
from pal_jax.run import cli, devices, stores
from pal_jax.run.moderator import open_moderator
from pal_jax.run.processes import host_port
from pal_jax.run.recipe import Context
from pal_jax.run.workdir import run_folder
from pal_jax.types import Sampling

DRIVER = flags.DEFINE_enum('driver', 'local', ['local', 'jetstream'], 'HTTP or gRPC.')
HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on.')
PORT = flags.DEFINE_integer('port', 8000, 'Port to listen on.', lower_bound=0, upper_bound=65535)
NAME = flags.DEFINE_string('name', None, 'Name of the model; the source by default.')
SLOTS = flags.DEFINE_integer('slots', 16, 'Requests decoded at once.', lower_bound=1)
LINE = flags.DEFINE_integer('line', 256, 'Requests that may wait.', lower_bound=0)
MAX_LEN = flags.DEFINE_integer('max_len', 2048, 'Tokens of a prompt and its answer.', lower_bound=2)
DTYPE = flags.DEFINE_string('dtype', 'auto', 'Of matrix products.')
ADAPTERS = flags.DEFINE_list('adapters', [], 'Folders of adapters that requests mix.')
MIXING = flags.DEFINE_enum('mixing', 'factors', ['factors', 'delta'], 'What of adapters is mixed.')
INT8 = flags.DEFINE_bool('int8', False, 'Decode with weights of eight bits.')
EXACT = flags.DEFINE_bool('exact', False, 'Round as a trainer does.')
CORS_ORIGINS = flags.DEFINE_list('cors_origins', [], 'Origins of web pages that may ask.')
ASKING = flags.DEFINE_string('asking', '', "A run of PAL that learns the user's taste.")
QUESTIONS = flags.DEFINE_string('questions', '', 'Pairs to ask about.')
PEOPLE = flags.DEFINE_string('people', 'people', 'The folder of people who are kept.')
MODERATION = flags.DEFINE_string('moderation', '', 'A run that judges answers.')
MODERATION_DRAWS = flags.DEFINE_integer('moderation_draws', 4, 'Draws of an answer.', lower_bound=1)
MODERATION_THRESHOLD = flags.DEFINE_float(
    'moderation_threshold', None, 'Above which an answer is unsafe.', lower_bound=0.0, upper_bound=1.0
)
# Seconds that a connection may rest, longer than the minute of most clients and load balancers.
KEEP_ALIVE = 75
# A conversation grows every turn, and each size of the cache is a program to compile.
CACHE_GRAIN = 512
# Seconds that answers under way have when the server is told to stop.
GRACE = 60


def main() -> None:
    """Serve over HTTP or gRPC until a signal ends the server."""
    (serve_grpc if DRIVER.value == 'jetstream' else serve_http)(source_or_run())


def serve_http(source: str) -> None:
    """Serve over HTTP."""
    cli.faults(check_origins, CORS_ORIGINS.value)
    # The port is taken before the weights are read.
    listener, token = cli.faults(listen, HOST.value, PORT.value)
    with contextlib.closing(listener):
        app = cli.faults(make_http, source, token)
        # The socket listens before its address is told: who calls from now on waits and is not refused.
        cli.faults(listener.listen, 2048)
        address = f'http://{host_port(HOST.value, listener.getsockname()[1])}'
        print(
            f'serving {stores.shown(source)} at {address}/v1, and a page to talk with it at {address}',
            flush=True,
        )
        config = uvicorn.Config(
            app, log_level='warning', timeout_graceful_shutdown=GRACE, timeout_keep_alive=KEEP_ALIVE
        )
        # The server of uvicorn raises the signal again once it has drained.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        HttpServer(config).run(sockets=[listener])


def serve_grpc(source: str) -> None:
    """Serve over gRPC. The port is taken before the weights are read, and nobody is let in before they are there."""
    from pal_jax.decode.serve.jetstream.rpc import GrpcServer

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    listener, token = cli.faults(listen, HOST.value, PORT.value)
    # The server of gRPC takes no socket, only the address of a free one, and listens at once.
    with contextlib.closing(listener):
        host, port, *_ = listener.getsockname()
        driver = cli.faults(make_driver, source)
    server = cli.faults(GrpcServer, host, port, requests=SLOTS.value + LINE.value, token=token)
    server.start(driver, NAME.value or source)
    print(f'serving {stores.shown(source)} at {host_port(HOST.value, server.port)} (gRPC)', flush=True)
    stopping.wait()
    server.stop(GRACE)
    driver.close()


def check_origins(origins: Sequence[str]) -> None:
    """Raise ValueError where a text is no origin."""
    for origin in origins:
        parts = urllib.parse.urlsplit(origin)
        # A browser sends scheme, host and port, and compares nothing else.
        if origin != f'{parts.scheme}://{parts.netloc}' or not parts.hostname or '@' in origin or '*' in origin:
            raise ValueError(
                f'--cors_origins={origin} is no origin; give scheme, host and port alone, as https://page.example'
            )


def make_http(source: str, token: str):
    """The HTTP application, with its model loaded, its common programs compiled and its driver running."""
    preset = chat_preset(source)
    model, decoder = open_decoder(source)
    guard, interview, tokenizer = make_guard(), make_interview(), decoder.tokenizer
    decoder.load(with_adapters(model.load(decoder.param_shardings), decoder.cfg))
    driver = Driver(decoder, line=LINE.value)
    # As many tokens as a first message and its frame.
    hello = len(tokenizer.encode(preset.system)) + 40
    # The second goes on from the first, as the next turn does.
    for length in (hello, hello + 40):
        warm_up(driver, length, preset.sampling)
    name, origins = NAME.value or source, CORS_ORIGINS.value
    preset = preset._replace(asks=interview is not None)
    routes = make_routes(interview) if interview else None
    return make_app(
        driver, tokenizer, model=name, token=token, preset=preset, origins=origins, guard=guard, routes=routes
    )


def make_interview() -> Interview | None:
    """The interview of --asking about --questions, or None without --asking.

    Raises:
      ValueError: one of the flags is missing, the run is no finished run of PAL, or it does not fit --adapters.
    """
    if bool(ASKING.value) != bool(QUESTIONS.value):
        raise ValueError(
            f'--asking={ASKING.value} and --questions={QUESTIONS.value} belong together; give a run of --config=pal '
            'and a file of pairs'
        )
    if not ASKING.value:
        return None
    stores.check_local(folder := Path(PEOPLE.value).expanduser(), '--people')
    return open_interview(run_folder(ASKING.value), QUESTIONS.value, folder, adapters=len(ADAPTERS.value))


def make_guard() -> Guard | None:
    """The guard that judges answers on one device, or None without --moderation.

    Raises:
      ValueError, RuntimeError: --moderation_threshold is set without --moderation, or that is no run of moderation.
    """
    threshold = MODERATION_THRESHOLD.value
    if not MODERATION.value:
        if threshold is not None:
            raise ValueError(f'--moderation_threshold={threshold} needs a run that judges; give --moderation=FOLDER')
        return None
    moderator = open_moderator(
        run_folder(MODERATION.value), Context(devices.make_mesh(devices=jax.local_devices()[:1]))
    )
    if threshold is not None:
        # One threshold stands for all categories.
        moderator = moderator._replace(thresholds=np.full_like(moderator.thresholds, threshold))
    # The first call compiles.
    moderator.unsafe(['Hello'], ['Hello'])
    return Guard(moderator.unsafe, MODERATION_DRAWS.value)


def with_adapters(params: Params, cfg: ModelConfig) -> Params:
    """The weights with the adapters of --adapters stacked on them, or the weights alone without the flag.

    Raises:
      ValueError: the adapters name different bases, or do not fit the model.
    """
    bases = dict.fromkeys(peft.read_config(folder).base for folder in ADAPTERS.value)
    if len(bases) > 1:
        raise ValueError(f'--adapters name {" and ".join(bases)} as their base; give adapters of one')
    adapters = [lora.split(peft.attach(params, cfg, folder))[0] for folder in ADAPTERS.value]
    kind = 'delta' if MIXING.value == 'delta' else 'factors'
    return soups.stack(params, adapters, kind) if adapters else params


def make_driver(source: str) -> Driver:
    """The driver of the gRPC server, with its model loaded. Raises ValueError for flags of HTTP alone."""
    if ADAPTERS.value:
        raise ValueError('--adapters are mixed by the HTTP server alone; leave out --driver=jetstream')
    if CORS_ORIGINS.value:
        raise ValueError('--cors_origins are of the HTTP server alone; leave out --driver=jetstream')
    if MODERATION.value:
        raise ValueError('--moderation is of the HTTP server alone; leave out --driver=jetstream')
    if ASKING.value:
        raise ValueError('--asking is of the HTTP server alone; leave out --driver=jetstream')
    model, decoder = open_decoder(source)
    decoder.load(model.load(decoder.param_shardings))
    return Driver(decoder, line=LINE.value)


def open_decoder(source: str) -> tuple[Source, LocalDecoder]:
    """The model, and a decoder of it as the flags say, without weights yet."""
    model, cfg, tokenizer, mesh = open_model(source, DTYPE.value, MAX_LEN.value)
    check_eight_bits('--int8', INT8.value, mesh)
    if EXACT.value:
        check_exact(cfg, mesh, '--exact', int8=INT8.value)
        cfg = exact_config(cfg)
    return model, LocalDecoder(cfg, tokenizer, mesh, slots=SLOTS.value, grain=CACHE_GRAIN, int8=INT8.value)


def warm_up(driver: Driver, length: int, sampling: Sampling) -> None:
    """Compile the programs that a prompt of `length` tokens needs, so that no request waits for them later.

    Raises:
      Exception: what the decoder raised.
    """
    # Nothing happens where the model has no room for the prompt and its answer.
    if not 0 < length <= driver.decoder.cfg.max_len - sampling.max_tokens:
        return
    reports: queue.SimpleQueue[RequestProgress | Exception] = queue.SimpleQueue()
    ticket = driver.submit(Request((0,) * length, sampling, 0), reports.put)
    if isinstance(news := reports.get(), Exception):
        raise news
    # All programs are compiled by the first report, so nobody waits for the answer.
    driver.cancel(ticket)


if __name__ == '__main__':
    cli.run(main, __doc__ or '', needs_config=False)
