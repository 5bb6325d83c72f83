"""Requests of many lengths over few slots, all there from the start, against as many of equal lengths: what continuous
batching makes of a crowd, and how long one of it waits for tokens.

A token counts as told when the step that sampled it returns. A step tells several of a request's tokens at once: each
of them counts as an equal part of the time since the last.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import contest
from benchmarks.contest import Contestant, Result
from benchmarks.contestant import Round
from benchmarks.decoders import ask, local_decoder
from benchmarks.shapes import SHAPES

PROMPTS, NEW = (16, 512), (8, 256)  # tokens, from and to


class Lengths(NamedTuple):
    """The tokens of each request's prompt, and the new ones."""

    prompt: np.ndarray
    new: np.ndarray


def mixed(requests: int) -> Lengths:
    rng = np.random.default_rng(0)
    return Lengths(*(rng.integers(low, high + 1, requests) for low, high in (PROMPTS, NEW)))


def equal(requests: int) -> Lengths:
    """Lengths of as many requests, all the mean of the mixed ones."""
    return Lengths(*(np.full(requests, round(x.mean())) for x in mixed(requests)))


def make_traffic(model: str, dtype: str, slots: int, requests: int, lengths: str) -> Round:
    """All requests added at once, the longest first as in a call of `LocalDecoder`, and steps until each has ended;
    prompts are new in every round."""
    decoder = local_decoder(model, dtype, slots)
    drawn = {'mixed': mixed, 'equal': equal}[lengths](requests)
    order = np.argsort(-drawn.new, kind='stable')
    drawn = Lengths(drawn.prompt[order], drawn.new[order])
    rng = np.random.default_rng(1)

    def decode() -> dict[str, float]:
        before, start = decoder.counters.slot_steps, time.perf_counter()
        for prompt, new in zip(*drawn, strict=True):
            decoder.add(ask(rng.integers(1, SHAPES[model].vocab, prompt).tolist(), int(new)))
        arrivals: dict[int, list[tuple[float, int]]] = {}  # by request: when, and how many tokens
        left = requests
        while left:
            progress = decoder.step()
            now = time.perf_counter() - start
            for part in progress:
                arrivals.setdefault(part.number, []).append((now, len(part.tokens)))
                left -= part.completion is not None
        tokens = int(drawn.new.sum())
        occupied = tokens / (decoder.counters.slot_steps - before)
        return {'tokens': tokens, 'slots_occupied': occupied} | latency(list(arrivals.values()))

    return decode


def latency(arrivals: list[list[tuple[float, int]]]) -> dict[str, float]:
    """Percentiles over requests of the seconds to the first token, and over tokens of those between two, from when how
    many tokens of each request were told."""
    first = [times[0][0] for times in arrivals]
    between = [
        (now - before) / count
        for times in arrivals
        for (before, _), (now, count) in itertools.pairwise(times)
        for _ in range(count)
    ]
    return {
        f'{name}_p{percent}': float(np.percentile(values, percent))
        for name, values in (('first_token_s', first), ('between_tokens_s', between))
        for percent in (50, 99)
        if values
    }


def measure(model: str, dtype: str, slots: int, requests: int, rounds: int) -> dict[str, Any]:
    settings = {'model': model, 'dtype': dtype, 'slots': slots, 'requests': requests}
    crowds = {
        lengths: Contestant('benchmarks.traffic:make_traffic', settings | {'lengths': lengths})
        for lengths in ('mixed', 'equal')
    }
    return {'slots': slots, 'requests': requests} | compare(contest.race(crowds, rounds).results)


def compare(results: dict[str, Result]) -> dict[str, Any]:
    """Numbers of each crowd's fastest round, and the rate of the mixed one as a share of the other's."""
    report: dict[str, Any] = {name: summary(result) for name, result in results.items()}
    times = contest.ratios(results['mixed'], results['equal'])
    share = results['mixed'].first['tokens'] / results['equal'].first['tokens']
    return report | {'mixed_over_equal': {name: round(share * value, 2) for name, value in times.items()}}


def summary(result: Result) -> dict[str, Any]:
    fastest = result.best()
    figures = {name: round(value, 4) for name, value in fastest.items() if name != 'tokens'}
    return {'tokens_per_s': round(fastest['tokens'] / min(result.seconds), 1), **figures, **result.startup()}
