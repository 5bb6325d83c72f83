"""Settings of runs with a language model: sections of several methods, and the keys that runs of one kind share."""

from __future__ import annotations

import dataclasses

from pal_jax.learners.ppo_settings import PPO
from pal_jax.learners.training import Lora
from pal_jax.models.files.sources import EMBEDDED
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run, StageSettings
from pal_jax.types import Sampling


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A model, its precision and its adapters."""

    # The model: hf:<folder or hub id>, orbax:<folder of a run>, gguf:<file>, peft:<folder of an adapter>, smollm2,
    # gemma or random:tiny.
    source: str = EMBEDDED
    dtype: str = 'auto'  # the type of matrix products: bfloat16 where the machine has it
    # 'full' or 'dots' computes layers again in the backward pass, to save memory.
    remat: str = 'none'
    # Layers are a loop on a CPU too, which compiles in a quarter of the time, but steps take up to a third longer.
    scan_layers: bool = False
    lora: Lora = Lora()


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """The decoder that samples."""

    slots: int = 32  # completions sampled at once
    # The number of tokens that are made in a round trip between device and host.
    stride: int = 4
    # The place that samples: local is this process, and jetstream a server at `address`.
    driver: str = 'local'
    # With driver=jetstream: the host:port of a pal-jax serve --driver=jetstream, or several with commas between, which
    # share the prompts; see docs/serving.md.
    address: str = ''
    reuse: bool = True  # a prompt that begins as an earlier one is not computed again from its start
    int8: bool = False  # sample with weights of eight bits
    # The sampler's log-probs are the trainer's, bit for bit, and `ppo.old_logprobs` is 'sampler'; docs/performance.md
    # says where that is shown and what it costs.
    exact: bool = False
    # The number of decoders, each with its share of devices and prompts; 0: one in each process.
    shares: int = 0


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """The time between the samples of a step and its update."""

    # The number of steps before its update at which a rollout begins. Judges and users behind addresses then answer
    # while the policy is updated; see docs/training.md.
    ahead: int = 0
    # True: sampling waits for the weights of its step, so the same seed gives the same run bit by bit. False: a decode
    # server never waits and takes new weights while it samples.
    lockstep: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """A chat model of an OpenAI-compatible server, for a role that is set to `endpoint:<name>`.

    A role that is set to `local:<source>` reads `temperature`, `max_tokens` and `slots`.
    """

    temperature: float  # of the model's draws; 0 always takes the likeliest token
    max_tokens: int  # the largest number of tokens of an answer
    address: str = ''  # the server's URL, such as http://host:8000/v1
    model: str = ''  # the name of the model at that address
    key_env: str = ''  # the environment variable that holds the key
    concurrency: int = 64  # requests under way at once
    timeout: float = 60.0  # seconds after which a request has failed
    retries: int = 5  # further attempts of a request that failed
    prompt_price: float = 0.0  # the price of a million tokens that the model reads, for the metrics
    completion_price: float = 0.0  # the price of a million tokens that it writes
    slots: int = 16  # completions that a `local:` model decodes at once


# The answers of endpoints, which are not asked again.
ANSWERS = '~/.cache/pal_jax/answers.sqlite'


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings:
    """The rows of a supervised method (formats: `data/readers/formats.py`) and their batches."""

    batch_size: int  # the number of rows, pairs or groups of pairs of an update
    train: str = 'oracle'  # oracle, recall (recipes/rlpa/made), or a file: .jsonl, .json, .csv, .parquet
    # A file of prompts that are not learnt; '': rows of some prompts of train, a fifth at most.
    test: str = ''
    test_rows: int = 64  # the largest number of rows of an evaluation
    max_length: int = 1024  # the largest number of tokens of a row; longer rows are left out
    epochs: float = 1.0  # passes over the rows where total_steps is 0
    micro_rows: int = 2  # rows in a device's memory at once
    # Several rows are packed into one of so many tokens; 0: no packing.
    row_tokens: int = 1024


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """Answers to test prompts, which a report shows before and after training."""

    # The number of test rows whose prompts the policy answers. A device then holds a copy of the weights in the type of
    # decoding (divided by mesh.tensor) while an evaluation samples; 0: no answers and no copy.
    count: int = 0
    max_tokens: int = 64  # the largest number of tokens of an answer

    def __post_init__(self):
        if self.count < 0 or self.max_tokens < 1:
            raise ValueError(f'count={self.count} must be at least 0, and max_tokens={self.max_tokens} at least 1')


@dataclasses.dataclass(frozen=True)
class OracleSettings:
    """The people, all of RLPA's training, whom the oracle answers where `data.train` is 'oracle'."""

    people: int = 240  # the number of people
    facts: int = 4  # facts of each of them
    rounds: int = 3  # turns of a dialogue
    p_spontaneous: float = 1.0  # the chance that a user tells something unasked


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowRun(Run):
    """The keys of a run that learns from rows; `total_steps=0` makes `data.epochs` passes over them."""

    policy: ModelSettings = ModelSettings()
    optimizer: Optimizer
    data: RowSettings
    eval: StageSettings = StageSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedRun(RowRun):
    """The keys of a run that may learn from the answers of the oracle."""

    # A prompt that is a text and its replies are messages of a chat, as prompts.chat of rl has it; False: they are
    # learnt as they are, as in TRL.
    chat: bool = False
    oracle: OracleSettings = OracleSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcedRun(Run):
    """The keys of a run that improves a policy by PPO on its own samples."""

    policy: ModelSettings = ModelSettings()
    optimizer: Optimizer  # of the policy
    critic: Optimizer  # used by the estimator that has a critic (gae)
    ppo: PPO
    sampling: Sampling
    decode: DecodeSettings = DecodeSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutRun(ReinforcedRun):
    """The keys of a run whose rollouts may begin ahead of their updates (`run/ahead.py`)."""

    rollout: RolloutSettings = RolloutSettings()

    @property
    def served_ahead(self) -> bool:
        """True where a decode server samples beside updates."""
        return bool(self.rollout.ahead) and self.decode.driver != 'local'
