"""Samples from many snapshots of weights with one decoder, which holds the adapters of a few of them at a time.

A `Sampler` is used by the executor's thread alone.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.programs import programs_of
from pal_jax.decode.requests import ALTERNATIVES, Alternatives, PromptLogprobs, Request
from pal_jax.models import lora, soups
from pal_jax.models.params import Params, decoder_specs
from pal_jax.run import sharding
from pal_jax.training_server import wire
from pal_jax.training_server.futures import Answer, Outcome, UserFault, outcome
from pal_jax.training_server.trainer import Base, Shape
from pal_jax.types import Completion, Sampling

# Seconds after which a snapshot that waits for a place gets the next one.
TURN = 20.0


@dataclasses.dataclass(eq=False)
class Snapshot:
    """Frozen weights to sample from. `read` gives their adapters on the base, and `path` is their file, if any."""

    read: Callable[[], Params]
    is_base: bool = False
    path: Path | None = None

    def put_aside(self, folder: Path) -> None:
        """Move the adapters from memory to a file in a folder, from which `read` reads them."""
        leaves, tree = jax.tree.flatten(self.read())
        places, path = [leaf.sharding for leaf in leaves], folder / f'{uuid.uuid4().hex}.npz'
        np.savez(path, *sharding.to_every_host(leaves, places[0].mesh))

        def read() -> Params:
            with np.load(path) as arrays:
                return tree.unflatten(sharding.put([arrays[name] for name in arrays.files], places))

        self.read, self.path = read, path


class Weights(NamedTuple):
    """The name of weights to sample from.

    Attributes:
      name: the path of saved weights, or the sampling session for which a model's weights are held; '' for the base.
      saved: the time at which saved weights were saved, since weights that are saved anew under an old name are others.
    """

    name: str
    saved: float | None = None


BASE = Weights('')


@dataclasses.dataclass(eq=False)
class SampleJob:
    """Samples after one prompt.

    Attributes:
      wishes: the parts of the answer that are about the prompt.
      snapshot: what the weights stand for, once the job is in line.
      started: the number of requests that the decoder has taken.
      over: True where no more samples are wanted.
    """

    request_id: str
    weights: Weights
    requests: Sequence[Request]
    wishes: wire.PromptWishes = wire.PromptWishes()
    snapshot: Snapshot | None = None
    started: int = 0
    over: bool = False
    completions: dict[int, Completion] = dataclasses.field(default_factory=dict)
    likeliest: defaultdict[int, list[Alternatives]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    prompt: PromptLogprobs | None = None

    @property
    def answer(self) -> Answer | None:
        """The answer; None until all samples are there."""
        if len(self.completions) < len(self.requests):
            return None
        completions = [self.completions[i] for i in range(len(self.requests))]
        likeliest = [self.likeliest[i] for i in range(len(self.requests))]
        return wire.sample_answer(completions, likeliest, self.requests[0].alternatives, self.prompt, self.wishes)


class Bank:
    """Places in a decoder's weights for the adapters of snapshots, which are then sampled from in one batch.

    A snapshot that is sampled from keeps its place. The least recently used one of the others gives its place up.

    Args:
      decoder: a decoder of the base's shape.
      size: the number of places.
      rank: the largest rank of adapters.
    """

    def __init__(self, decoder: LocalDecoder, base: Base, *, size: int, rank: int):
        self.decoder, self.size = decoder, size
        specs = lora.lora_specs(decoder_specs(base.cfg), **Shape(rank, True, True, True).lora.shape)
        empty = soups.bank(base.params, lora.split(specs)[0], size, rank, sharding.replicated(base.mesh))
        programs = programs_of(decoder.cfg, decoder.mesh, slots=decoder.slots, int8=False)
        self._weights = programs.publish(empty)
        decoder.use(self._weights)
        # Snapshots by the time of their last use, the latest last.
        self._places: dict[Snapshot, int] = {}

    def seat(self, snapshot: Snapshot, busy: Collection[Snapshot | None]) -> bool:
        """True where the snapshot has a place, or gets one that no snapshot of `busy` has."""
        if snapshot.is_base:
            return True
        place = self._places.pop(snapshot, None)
        if place is None:
            place = self._free(busy)
            if place is None:
                return False
            self._weights = soups.put(self._weights, snapshot.read(), place)
            self.decoder.use(self._weights)
        self._places[snapshot] = place
        return True

    def _free(self, busy: Collection[Snapshot | None]) -> int | None:
        if len(self._places) < self.size:
            return next(place for place in range(self.size) if place not in self._places.values())
        idle = next((snapshot for snapshot in self._places if snapshot not in busy), None)
        return None if idle is None else self._places.pop(idle)

    def forget(self, snapshots: Collection[Snapshot]) -> None:
        """Give up the places of snapshots that nobody will sample from."""
        self._places = {snapshot: place for snapshot, place in self._places.items() if snapshot not in snapshots}

    def mixture(self, snapshot: Snapshot) -> tuple[float, ...] | None:
        """The weights of the places for a request of this snapshot; None for the base."""
        if snapshot.is_base:
            return None
        return tuple(float(place == self._places[snapshot]) for place in range(self.size))


class Sampler:
    """A decoder and its lines of jobs, one for each snapshot, which take turns of several samples.

    Args:
      bank: the places of a decoder whose tokenizer ends no text (see `never_ending`).
    """

    def __init__(self, bank: Bank):
        self.bank, self.decoder = bank, bank.decoder
        # Snapshots in the order in which they get their turns.
        self._lines: dict[Snapshot, deque[SampleJob]] = {}
        self._live: dict[int, tuple[SampleJob, int]] = {}
        self._ended: list[tuple[str, Outcome]] = []
        # The samples of a turn, so that the snapshots in the bank fill the slots together.
        self._turn = max(self.decoder.slots // bank.size, 1)
        # Snapshots that wait for a place, and since when.
        self._since: dict[Snapshot, float] = {}

    def put(self, job: SampleJob, snapshot: Snapshot) -> None:
        """Put a job in the line of a snapshot."""
        job.snapshot = snapshot
        self._lines.setdefault(snapshot, deque()).append(job)

    @property
    def busy(self) -> bool:
        """True while there is anything to decode."""
        return bool(self._lines or self._live)

    def samples(self, snapshot: Snapshot) -> bool:
        """True where samples of a snapshot are in line or under way."""
        return snapshot in self._lines or any(job.snapshot is snapshot for job, _ in self._live.values())

    def advance(self, cancelled: Collection[str], now: float) -> list[tuple[str, Outcome]]:
        """Take jobs that wait, score a prompt at most, and decode a few tokens of all samples under way.

        Args:
          cancelled: the request ids of jobs to take back.
          now: the time in seconds.
        Returns:
          the request ids of jobs that have ended, with their answers or errors.
        """
        self._ended = []
        self._take_back(cancelled)
        while self.decoder.free > 0 and self._feed(now):
            pass
        if not self._live:
            return self._ended
        progress = outcome(self.decoder.step)
        if isinstance(progress, Exception):
            # A step that raised leaves the caches in an unknown state.
            self.decoder.reset()
            for job, _ in self._live.values():
                self._end(job, progress)
            self._live.clear()
            return self._ended
        for news in progress:
            job, place = self._live[news.number]
            job.likeliest[place] += news.alternatives
            if news.completion is not None:
                del self._live[news.number]
                job.completions[place] = news.completion
                if (answer := job.answer) is not None:
                    self._end(job, answer)
        return self._ended

    def _end(self, job: SampleJob, result: Outcome) -> None:
        """End a job, unless it has ended. No more of its samples start."""
        if not job.over:
            job.over = True
            self._ended.append((job.request_id, result))

    def _feed(self, now: float) -> bool:
        """Start samples of the first job in line whose snapshot has a place. False where nothing more is to start."""
        busy = {job.snapshot for job, _ in self._live.values()}
        for snapshot, line in list(self._lines.items()):
            seated = outcome(functools.partial(self.bank.seat, snapshot, busy))
            if isinstance(seated, Exception):
                for job in self._lines.pop(snapshot):
                    self._end(job, seated)
                continue
            if not seated:
                # Who has waited for long gets the next place, since nobody behind starts samples.
                if now - self._since.setdefault(snapshot, now) > TURN:
                    return False
                continue
            self._since.pop(snapshot, None)
            scored = self._start(snapshot, line)
            # The next turn is that of another snapshot.
            del self._lines[snapshot]
            if line:
                self._lines[snapshot] = line
            # Samples under way wait for one prompt at most.
            return not scored
        return False

    def _start(self, snapshot: Snapshot, line: deque[SampleJob]) -> bool:
        """Start samples of the first jobs of a line for one turn, and take the jobs out whose samples have all started.
        True where a prompt was scored."""
        mixture, scored, started = self.bank.mixture(snapshot), False, 0
        while line and not scored and started < self._turn and self.decoder.free > 0:
            job = line[0]
            if (job.wishes.logprobs or job.wishes.likeliest) and job.prompt is None:
                scored = True
                asked = dataclasses.replace(job.requests[0], mixture=mixture, alternatives=job.wishes.likeliest)
                prompt = outcome(functools.partial(self._scored, asked))
                if isinstance(prompt, Exception):
                    self._end(job, prompt)
                else:
                    job.prompt = prompt
            while not job.over and job.started < len(job.requests) and self.decoder.free > 0:
                request = dataclasses.replace(job.requests[job.started], mixture=mixture)
                number = outcome(functools.partial(self.decoder.add, request))
                if isinstance(number, Exception):
                    self._end(job, number)
                else:
                    self._live[number] = job, job.started
                    job.started, started = job.started + 1, started + 1
            if job.over or job.started == len(job.requests):
                line.popleft()
        return scored

    def _scored(self, request: Request) -> PromptLogprobs:
        pieces = [*self.decoder.score(request)]
        logprobs = itertools.chain.from_iterable(piece.logprobs for piece in pieces)
        alternatives = itertools.chain.from_iterable(piece.alternatives for piece in pieces)
        return PromptLogprobs(tuple(logprobs), tuple(alternatives), pieces[0].version)

    def waits(self, job: SampleJob) -> bool:
        """True where the snapshot of a job waits for a place."""
        return job.snapshot in self._since

    def _take_back(self, cancelled: Collection[str]) -> None:
        """End the jobs of these request ids, and take the samples of all jobs that are over out of line and slots."""
        for job in [*itertools.chain.from_iterable(self._lines.values()), *(job for job, _ in self._live.values())]:
            if job.request_id in cancelled:
                self._end(job, UserFault('cancelled'))
        for snapshot, line in list(self._lines.items()):
            self._lines[snapshot] = deque(job for job in line if not job.over)
            if not self._lines[snapshot]:
                del self._lines[snapshot]
                self._since.pop(snapshot, None)
        for number, (job, _) in list(self._live.items()):
            if job.over:
                self.decoder.cancel(number)
                del self._live[number]


def never_ending(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without tokens that end a text: a request names those that end it."""
    endless = copy.copy(tokenizer)
    endless.stop_ids = ()
    return endless


def requests_of(form: wire.Sample, tokenizer: Tokenizer, decoder: LocalDecoder, seed: int) -> list[Request]:
    """The decoder's requests for a client's.

    The randomness of sample `i` depends on the seed and on `i`, and on nothing else.

    Args:
      seed: the seed where the request has none.
    Raises:
      UserFault: the server cannot meet the request.
    """
    _check_supported(form, min(ALTERNATIVES, decoder.cfg.vocab))
    settings, prompt = form.sampling_params, []
    for chunk in form.prompt.chunks:
        if chunk.type != 'encoded_text':
            raise UserFault(f'prompt has a chunk of type {chunk.type}; text alone is supported')
        prompt += chunk.tokens
    stop = settings.stop
    listed = [stop] if isinstance(stop, str) else stop or []
    texts = tuple(x for x in listed if isinstance(x, str))
    ids = tuple(x for x in listed if isinstance(x, int))
    # An empty list is asked for by name, and ends nothing.
    ends = () if stop == [] else tokenizer.stop_ids
    most = settings.max_tokens
    room = max(decoder.cfg.max_len - len(prompt), 1)
    first = seed if settings.seed is None else settings.seed
    seeds = [np.random.SeedSequence([first % 2**64, i]).generate_state(1, np.uint64) for i in range(form.num_samples)]
    try:
        sampling = Sampling(
            settings.temperature, max(settings.top_k, 0), settings.top_p, room if most is None else most,
            stop=texts, stop_ids=(*ends, *ids),
        )  # fmt: skip
        likeliest = form.topk_sample_logprobs
        requests = [Request(tuple(prompt), sampling, int(state[0]), alternatives=likeliest) for state in seeds]
        decoder.check(requests[0])
    except ValueError as error:
        raise UserFault(str(error)) from None
    return requests


def _check_supported(form: wire.Sample, most: int) -> None:
    """Raise UserFault where a request asks for what this server does not do.

    Args:
      most: the largest number of likeliest tokens.
    """
    if form.num_samples < 1:
        raise UserFault(f'num_samples={form.num_samples}; ask for one or more')
    for key in ('target_prompt_logprobs', 'prompt_alt_tokens_k', 'record_stability_info'):
        if getattr(form, key):
            raise UserFault(f'{key} is not supported; leave it out')
    for key in ('topk_prompt_logprobs', 'topk_sample_logprobs'):
        if not 0 <= getattr(form, key) <= most:
            raise UserFault(f'{key}={getattr(form, key)}; this server gives up to {most}')
    if form.prompt_logprobs_last_n is not None and form.prompt_logprobs_last_n < 1:
        raise UserFault(f'prompt_logprobs_last_n={form.prompt_logprobs_last_n}; give 1 or more')
