"""The world of a policy in dialogues, from the settings: people, the model that plays them, and the judges."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pal_jax.data import holdouts
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.functions import check_failed
from pal_jax.judges.language import make_judge, make_matcher, make_user
from pal_jax.judges.sharing import share_matcher, share_reward, share_user
from pal_jax.learners.ppo import Estimate
from pal_jax.recipes.rlpa import dialogue as env
from pal_jax.recipes.rlpa import personalization, restraint
from pal_jax.recipes.rlpa.belief import belief_gains, make_potential
from pal_jax.recipes.rlpa.criteria import judge_by_rules
from pal_jax.recipes.rlpa.early import EarlyQuestions, open_early
from pal_jax.recipes.rlpa.frozen import BELIEF, MODEL, open_frozen, open_naturalness, reads_in_training, who_judged
from pal_jax.recipes.rlpa.matcher import open_matcher
from pal_jax.recipes.rlpa.naturalness import make_natural_judge, open_before
from pal_jax.recipes.rlpa.own import open_role
from pal_jax.recipes.rlpa.own_rewards import make_estimate, with_own
from pal_jax.recipes.rlpa.people import SLOTS, Split, content, load_people, make_people, place_of
from pal_jax.recipes.rlpa.personalization import Respond
from pal_jax.recipes.rlpa.profiles import match_exactly, split_fact
from pal_jax.recipes.rlpa.rewards import make_reward, swapped_people
from pal_jax.recipes.rlpa.settings import Dialogues
from pal_jax.recipes.rlpa.slotting import Slotter, make_slotter, slot_people, with_personalities
from pal_jax.recipes.rlpa.users import CountingUser, make_scripted_user
from pal_jax.run import files
from pal_jax.run.forecast import counted
from pal_jax.run.models import SYSTEM
from pal_jax.run.processes import ALONE, Shares
from pal_jax.types import Dialogue, Metrics, Person, ProfileMatcher, RewardFn, Sample, Turn, UserSimulator


class Splits(NamedTuple):
    """People in parts that share no person's facts."""

    # People to train on.
    train: list[Person]
    # People never trained on, by the name of their split.
    tests: dict[str, list[Person]]
    # The topics of a profile.
    topics: tuple[str, ...]
    # The number of people who were moved to another part, or left out, because somebody else has their facts.
    moved: int


@dataclasses.dataclass(frozen=True)
class World:
    """The people of the dialogues, with the user, the matcher and the judge that answer for them."""

    train: list[Person]
    tests: dict[str, list[Person]]  # people never trained on, by the name of their split
    guess: tuple[str, ...]  # the constant profile that suits the training people best
    topics: tuple[str, ...]  # the topics of a profile
    system: str
    user: UserSimulator
    matcher: ProfileMatcher
    reward: RewardFn
    # The reward in evaluations: without a control, by a judge who knows the person.
    score: RewardFn
    # `estimate` makes advantages from the parts of the rewards; None: `ppo.estimator`.
    estimate: Estimate | None
    # Asks about each answer while others are decoded; None: all judges are on this machine.
    early: EarlyQuestions | None
    models: ChatModels
    max_failed: float
    # Figures of an evaluation about its judge; the memory of the judge's model is freed.
    judged: Callable[[], Metrics]
    moved: int = 0  # see `Splits`
    scripts: restraint.Scripts | None = None  # scripted dialogues of an evaluation

    @property
    def told(self) -> str:
        """The split of the people, in a line."""
        tested = ', '.join(f'{len(people)} {split}' for split, people in self.tests.items())
        moved = f' ({counted(self.moved, "person")} with the facts of another)' if self.moved else ''
        return f'{counted(len(self.train), "person")} to learn from; to test on, with other facts: {tested}{moved}'

    def evaluate(self, answer: Respond, *, rounds: int) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
        """Figures and dialogues of a policy with the people never trained on, and the usage of endpoints so far.

        Raises:
          RuntimeError: more than `max_failed` of the turns of a split have no answer of a user or of a judge.
        """

        def respond(dialogues: Sequence[Dialogue], seed: int) -> list[Sample]:
            return self.score(answer(dialogues, seed), seed)

        record, dialogues = personalization.evaluate(
            respond,
            self.user,
            self.tests,
            rounds=rounds,
            guess=self.guess,
            matcher=self.matcher,
        )
        for number, (split, people) in enumerate(self.tests.items()):
            failed, turns = record[f'{split}_unanswered' if number else 'unanswered'], rounds * len(people)
            fault = f'turns with {split} people have no answer of a user or of a judge'
            self._check(failed, turns, fault, 'dialogue.user and the judge')
        if self.scripts:
            figures, ends, scripted = restraint.evaluate(respond, self.scripts)
            record |= figures | {'intervals': record['intervals'] | ends}
            dialogues += scripted
        return record | {'people_moved': self.moved} | self.models.usage | self.judged(), dialogues

    def check_answers(self, samples: Sequence[Sample], user: CountingUser) -> None:
        """Raises RuntimeError where too many samples of a step have no reward, or too many users gave no answer."""
        self._check(sum(not sample.ok for sample in samples), len(samples), 'samples got no reward', 'the judge')
        self._check(user.silent, user.asked, 'users gave no answer', 'dialogue.user')

    def _check(self, failed: int, total: int, what: str, whom: str) -> None:
        check_failed(failed, total, what, whom, self.max_failed, self.models.last_error)


def make_world(settings: Dialogues, shares: Shares = ALONE, kept: Path | None = None) -> World:
    """The people, their simulator and the reward, from the sections `dialogue` and `reward`.

    `kept` is that of a run's context.
    """
    dialogue, rewards = settings.dialogue, settings.reward
    models, system = make_models(settings), read_system(dialogue.system)
    train, tests, topics, moved = make_splits(settings, models, shares)
    system = env.actor_prompt(topics, dialogue.profile_format) if system is None else system
    choose = functools.partial(models.choose, of_file=open_role)
    matchers = {'exact': lambda: match_exactly, 'embedding': open_matcher}
    matcher = choose('reward.matcher', rewards.matcher, make_matcher, **matchers)
    # In evaluations the judge knows the person's profile.
    judge, score = (
        choose('reward.judge', rewards.judge, functools.partial(make_judge, golden=golden), rule=lambda: judge_by_rules)
        for golden in (False, True)
    )
    # One model reads for the naturalness and for the belief.
    frozen = functools.cache(functools.partial(open_frozen, settings, kept))
    natural = open_naturalness(settings, frozen)
    if natural:
        score = make_natural_judge(score, natural)
        judge = make_natural_judge(judge, natural) if rewards.naturalness == MODEL else judge
    read = system if settings.reference_compatible else ''  # the judge reads it
    reward = functools.partial(
        make_reward,
        matcher,
        system=read,
        response=rewards.response,
        profile_weight=rewards.profile_weight,
        response_weight=rewards.response_weight,
    )
    if rewards.shuffled:
        # The control needs people with different facts, which is checked before training.
        swapped_people(train)
    paid = with_own(settings, system)
    belief = None
    if rewards.profile == BELIEF:
        # Without credit across turns the discount from turn to turn is 1.
        potential, gamma = make_potential(frozen().logprobs, topics), dialogue.turn_gamma or 1.0
        belief = functools.partial(belief_gains, potential, gamma=gamma)
    training = paid(reward(judge, shuffled=rewards.shuffled, known=train, belief=belief))
    # The control takes another person of the same call, so it has to see all of them; rollouts that are ahead of
    # their updates are judged beside other work anyway.
    early = None
    if not rewards.shuffled and not settings.rollout.ahead:
        early = open_early(models, rewards.matcher, rewards.judge, read)
    user = choose(
        'dialogue.user',
        dialogue.user,
        make_user,
        scripted=lambda: make_scripted_user(p_spontaneous=dialogue.p_spontaneous),
    )
    return World(
        train=train,
        tests=tests,
        guess=personalization.most_common_facts(train),
        topics=topics,
        system=system,
        # Every process asks simulator and judge for its own share and receives the others' answers.
        user=share_user(user, shares),
        matcher=share_matcher(matcher, shares),
        reward=open_before(
            share_reward(early.then(training) if early else training, shares, together=rewards.shuffled),
            frozen().open if reads_in_training(rewards) else None,
        ),
        score=open_before(share_reward(paid(reward(score, informed=True)), shares), natural and natural.open),
        estimate=make_estimate(settings),
        early=early,
        models=models,
        max_failed=rewards.max_failed,
        judged=functools.partial(who_judged, natural, rewards),
        moved=moved,
        scripts=open_scripts(settings),
    )


def open_scripts(settings: Dialogues) -> restraint.Scripts | None:
    """The scripted dialogues of evaluations, by `eval.restraint`. Raises ValueError where people cannot have them."""
    count, dialogue = settings.eval.restraint, settings.dialogue
    if count < 0:
        raise ValueError(f'eval.restraint={count} must be at least 0')
    if not count:
        return None
    if dialogue.profiles != 'embedded' or dialogue.facts < 2:
        made = f'dialogue.profiles={dialogue.profiles!r} and dialogue.facts={dialogue.facts}'
        raise ValueError(
            f'eval.restraint={count}: its people are made up and have two facts or more, not {made}; set it to 0'
        )
    return restraint.make_scripts(make_people(count, seed=0, split='heldout', facts=dialogue.facts))


def make_models(settings: Dialogues) -> ChatModels:
    """The chat models that play and judge."""
    return ChatModels(settings.endpoints, settings.answers, settings.seed)


def make_splits(settings: Dialogues, models: ChatModels, shares: Shares = ALONE) -> Splits:
    """People to train on and to test on, by the sections `dialogue` and `eval`.

    The first of `tests` is the papers' Vanilla setting; `extended` (`eval.profiles`) are people of another schema.
    People with the same facts stand on one side, and nobody of `eval.profiles` who is trained on is left.

    Raises:
      ValueError: a file is wrong, or nobody is left to test on.
    """
    dialogue, tested = settings.dialogue, settings.eval.people
    moved, met = 0, set[str]()
    load = functools.partial(load_people, input_key=dialogue.input_key, label_key=dialogue.label_key)
    if dialogue.profiles == 'embedded':
        train, topics = make_people(dialogue.people, seed=settings.seed, split='train', facts=dialogue.facts), SLOTS
        splits: tuple[Split, ...] = ('heldout', 'unseen')
        tests: dict[str, list[Person]] = {
            split: make_people(tested, seed=0, split=split, facts=dialogue.facts) for split in splits
        }
    else:
        people = load(dialogue.profiles)[: dialogue.max_samples or None]
        if len(people) < 2:
            raise ValueError(f'{dialogue.profiles} has {len(people)} person; give two or more, one is kept for testing')
        contents = list(map(content, people))
        try:
            tested_on = holdouts.held_out(contents, tested, last=True)
        except ValueError as error:
            raise ValueError(f'{dialogue.profiles}: {error}; give people with other facts') from None
        moved = holdouts.repeats(contents)
        met = {facts for facts, held in zip(contents, tested_on, strict=True) if not held}
        if dialogue.personalities:
            people = with_personalities(people, load(dialogue.personalities), seed=settings.seed)
        slotter = models.choose('dialogue.slotter', dialogue.slotter, make_slotter, none=lambda: None)
        # Both parts are cut before anybody is left out, so that nobody changes sides.
        train, heldout = (
            [p for p, held in zip(people, tested_on, strict=True) if held == way] for way in (False, True)
        )
        if slotter:
            slot = functools.partial(slot_all, slotter=slotter, shares=shares, models=models)
            train, heldout = (slot(part, max_failed=settings.reward.max_failed) for part in (train, heldout))
        # Slots may make people equal: whoever now equals somebody to learn from is not tested on.
        met |= set(map(content, train))
        known, heldout = ([p for p in heldout if (content(p) in met) == way] for way in (True, False))
        if not heldout:
            raise ValueError(f'{dialogue.profiles}: all {len(known)} people to test on have facts of others; give more')
        train, moved = [*train, *known], moved + len(known)
        tests = {'heldout': heldout}
        topics = tuple(dict.fromkeys(slot for p in train for slot, _ in map(split_fact, p.facts) if slot))[:12]
    if settings.eval.profiles:
        extended = load(settings.eval.profiles)
        met |= set(map(content, train))
        tests['extended'] = [person for person in extended if content(person) not in met][:tested]
        moved += sum(content(person) in met for person in extended)
        if not tests['extended']:
            raise ValueError(
                f'eval.profiles={settings.eval.profiles}: all {len(extended)} people are trained on; name others'
            )
    return Splits(train, tests, topics, moved)


def make_system(settings: Dialogues, kept: Path | None = None) -> str:
    """The prompt that a run has kept, or else that of its config; no model is asked for it but a slotter."""
    if kept and (kept / SYSTEM).is_file():
        return (kept / SYSTEM).read_bytes().decode()  # with its line ends
    if (system := read_system(settings.dialogue.system)) is not None:
        return system
    embedded = settings.dialogue.profiles == 'embedded'
    topics = SLOTS if embedded else make_splits(settings, make_models(settings)).topics
    return env.actor_prompt(topics, settings.dialogue.profile_format)


def check_openings(settings: Dialogues, world: World, tokenizer: Tokenizer, max_len: int) -> None:
    """Raises ValueError where a person's first message makes a prompt that is too long for a model of `max_len`
    tokens, or for `dialogue.prompt_max_len`; the error names file, line and id."""
    dialogue, room = settings.dialogue, max_len - settings.sampling.max_tokens
    limit, key = room, f'model has room beside sampling.max_tokens={settings.sampling.max_tokens} for'
    if 0 < dialogue.prompt_max_len < room:
        limit, key = dialogue.prompt_max_len, 'dialogue.prompt_max_len allows'
    # Many people begin with the same words, so each text is measured once.
    sizes: dict[str, int] = {}
    for split, people in {'train': world.train, **world.tests}.items():
        file = settings.eval.profiles if split == 'extended' else dialogue.profiles
        for person in people:
            if person.opening not in sizes:
                messages = env.messages(Dialogue(person, (Turn('user', person.opening),)), world.system)
                sizes[person.opening] = len(tokenizer.chat(messages))
            if (size := sizes[person.opening]) > limit:
                keys = {'input_key': dialogue.input_key, 'label_key': dialogue.label_key}
                place = file if file == 'embedded' else place_of(file, person, **keys)
                why = f'with the system prompt, the first message of {person.id!r} makes a prompt of {size} tokens'
                raise ValueError(f'{place}: {why}, the {key} {limit}; shorten either, or make room')


def slot_all(
    people: Sequence[Person], *, slotter: Slotter, shares: Shares, models: ChatModels, max_failed: float
) -> list[Person]:
    """People in slots; each process asks for its share, and people left out are counted. Raises RuntimeError where more
    than `max_failed` of them are left out."""
    slotted = slot_people(people, lambda texts: shares.gather('slots', texts, lambda _, part: slotter(part)))
    failed = len(people) - len(slotted)
    fault = 'people could not be brought into slots'
    check_failed(failed, len(people), fault, 'dialogue.slotter', max_failed, models.last_error)
    models.counts['people_left_out'] = models.counts.get('people_left_out', 0.0) + failed
    return slotted


def read_system(system: str) -> str | None:
    """The system prompt in `dialogue.system` or in the file that it names; None: the embedded one.

    Raises:
      ValueError: there is no such file.
    """
    if not system.startswith('file:'):
        return None if system == 'embedded' else system
    path = Path(system.removeprefix('file:'))
    if not path.is_file():
        raise ValueError(f'dialogue.system={system!r}: {path} is no file; name one with the text of a system prompt')
    return files.read_text(path).strip()
