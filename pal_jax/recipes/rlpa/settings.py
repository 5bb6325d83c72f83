"""Settings of runs whose policy talks with users: the people, their judges, and the evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pal_jax.run.language import ANSWERS, EndpointSettings, RolloutRun
from pal_jax.run.settings import Run


@dataclasses.dataclass(frozen=True)
class DialogueSettings:
    """The people, their users, and the conversations of a step."""

    profiles: str = 'embedded'  # 'embedded': made-up people; or a JSONL file of people
    input_key: str = 'input'  # the key of the first message in such a file
    label_key: str = 'profile'  # the key of the profile
    max_samples: int = 0  # the largest number of people of a file; 0: all
    # A JSONL file of free texts; one of them goes with each person, as in ALOE.
    personalities: str = ''
    # Brings people of a file from free text into ten slots: endpoint:<name> or local:<source>.
    slotter: str = 'none'
    shuffle: bool = False  # people in another order in every episode
    people: int = 240  # the number of embedded people to learn from
    facts: int = 4  # the number of facts of each embedded person
    system: str = 'embedded'  # the system prompt: 'embedded', a text, or file:<path>
    profile_format: Literal['lines', 'json'] = 'lines'  # the format that the embedded prompt asks for
    # Who plays the people: scripted, endpoint:<name>, local:<source> or FILE.py:NAME.
    user: str = 'scripted'
    p_spontaneous: float = 1.0  # chance that a scripted user tells something unasked
    use_multiturn: bool = True  # False: dialogues have one turn
    max_rounds: int = 3  # turns of a dialogue
    n_samples_per_prompt: int = 4  # answers to each prompt
    # The number of answers to a prompt that are learnt, the best ones and the worst; 0: all of them.
    learnt_per_prompt: int = 0
    # Dialogues that read the same, such as after one greeting, get the same answers, which are learnt once.
    share_alike: bool = False
    rollout_batch_size: int = 8  # prompts a step
    # The largest number of tokens of a prompt; of a longer one the oldest exchanges are left out; 0: no limit.
    prompt_max_len: int = 0
    # > 0: depth-first, < 0: breadth-first; less than a batch mixes rounds.
    round_batch_size: int = 5
    shown: int = 4  # samples a step kept for the report
    # Above 0: rewards of later turns reach earlier ones; a step then plays whole dialogues.
    turn_gamma: float = 0.0

    @property
    def rounds(self) -> int:
        """The number of turns of a dialogue."""
        return self.max_rounds if self.use_multiturn else 1

    @property
    def learnt(self) -> int:
        """The number of answers to a prompt that are learnt."""
        return self.learnt_per_prompt or self.n_samples_per_prompt


@dataclasses.dataclass(frozen=True)
class TurnRewardSettings:
    """The judge of a turn, and the weights of rewards."""

    # Counts a profile's facts: exact, embedding, endpoint:<name>, local:<source>, FILE.py:NAME.
    matcher: str = 'exact'
    shuffled: bool = False  # the control: score predictions against another person's profile
    # Scores replies: rule, endpoint:<name>, local:<source> or FILE.py:NAME.
    judge: str = 'rule'
    # With the rule judge; 'model': the untrained model reads replies, too.
    naturalness: Literal['rules', 'model'] = 'rules'
    # The judge's score that pays: in degrees, or 1 where all criteria are met and else 0.
    response: Literal['graded', 'strict'] = 'graded'
    # What pays for the profile: its F1, or the gain of a frozen model's belief in the true profile, in nats.
    profile: Literal['f1', 'belief'] = 'f1'
    profile_weight: float = 1.0  # times what pays for the profile
    response_weight: float = 1.0  # times the judge's score of the reply
    # Functions of your own that pay, too: FILE.py:NAME, several with commas between.
    function: str = ''
    weights: tuple[float, ...] = ()  # their weights, in their order; (): 1 for each
    # 'sum': the rewards of an answer are added. 'each': every reward is standardised within the prompt first (GDPO).
    normalise: Literal['sum', 'each'] = 'sum'
    # With normalise=each: rewards of a prompt that deviate less are taken for noise.
    floor: float = 0.05
    # A step whose rewards deviate less makes no update: whitened, they would be noise.
    min_std: float = 0.0
    max_failed: float = 0.1  # share of samples without a reward at which a run stops


@dataclasses.dataclass(frozen=True)
class DialogueEvaluationSettings:
    """Dialogues with people on whom the policy is never trained."""

    people: int = 64  # the number of people of each split
    profiles: str = ''  # a JSONL file of people of another schema: the Extended setting
    rounds: int = 0  # 0: as many as max_rounds
    every: int = 0  # 0: before, after the warm-up and at the end
    base: bool = True  # an evaluation before the first step, too
    shown: int = 3  # dialogues that a report shows
    # Made-up people of scripted dialogues, which measure restraint; 0: there are none.
    restraint: int = 0


ENDPOINTS = {  # language models that play users, and those that judge
    'user': EndpointSettings(temperature=1.0, max_tokens=120),
    'matcher': EndpointSettings(temperature=0.0, max_tokens=512),
    'judge': EndpointSettings(temperature=0.0, max_tokens=512),
    'slotter': EndpointSettings(temperature=0.0, max_tokens=512),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogues(RolloutRun):
    """The keys of a run that improves a policy in dialogues."""

    # True: the published code's visibility, aggregation and flat updates.
    reference_compatible: bool = False
    dialogue: DialogueSettings = DialogueSettings()
    reward: TurnRewardSettings = TurnRewardSettings()
    endpoints: Mapping[str, EndpointSettings] = dataclasses.field(default_factory=lambda: ENDPOINTS)
    answers: str = ANSWERS  # the file that keeps answers of endpoints, which are not asked twice; '': no file
    eval: DialogueEvaluationSettings = DialogueEvaluationSettings()


def of_dialogues(settings: Run) -> Dialogues:
    """The settings of a method with dialogues. Raises ValueError where the method has none."""
    if not isinstance(settings, Dialogues):
        raise ValueError(f'recipe={settings.recipe!r} has no dialogues; give a config of rlpa')
    return settings
