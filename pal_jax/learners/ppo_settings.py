"""The hyper-parameters of PPO."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from pal_jax.objectives import advantages as adv
from pal_jax.objectives import kl as kl_divergence
from pal_jax.objectives import policy as losses
from pal_jax.objectives.advantages import Discounts, Estimates, EstimatorInputs
from pal_jax.objectives.corrections import CORRECTIONS, Correction
from pal_jax.objectives.policy import ClippedSurrogate
from pal_jax.types import derived


@dataclasses.dataclass(frozen=True)
class PPO:
    """Hyper-parameters under the papers' names; defaults are those of RLPA's published code.

    Raises:
      ValueError: a value is unknown or out of its range, or two values contradict each other.
    """

    # The estimator of advantages: gae, reinforce, rloo, reinforce_baseline, group_norm or dr_grpo.
    estimator: str = 'gae'
    gamma: float = 1.0  # the discount from token to token
    lam: float = 0.95  # lambda of generalised advantage estimation
    clip: float = 0.2  # PPO clips the ratio to 1 - clip, 1 + clip
    clip_high: float = 0.0  # the ratio's upper limit is 1 + clip_high (DAPO: above clip); 0: 1 + clip
    # The largest change of the critic's value in a step, in units of the reward: a value that has come nearer to its
    # return by more gets no gradient.
    value_clip: float = 0.2
    kl_coef: float = 0.01  # weight of the KL penalty; 0: no penalty and no reference model, so the figures have no `kl`
    kl_estimator: kl_divergence.KLEstimator = 'k1'  # Schulman's estimators of the divergence from the reference
    # The place of the KL penalty: in the reward of each token, or in the loss.
    kl_in: Literal['reward', 'loss'] = 'reward'
    kl_target: float = 0.0  # above 0: kl_coef is adapted so that the KL comes to so many nats
    # The KL that is compared with kl_target: the mean of the tokens, or the mean of the samples' sums.
    kl_target_per: Literal['token', 'sample'] = 'token'
    kl_horizon: int = 10_000  # a rollout of n samples changes an adaptive kl_coef by at most 20 % * n / kl_horizon
    reward_clip: tuple[float, float] = (-10.0, 10.0)  # rewards of samples are clipped to this range
    negative_scale: float = 1.0  # negative advantages are multiplied by it
    std_floor: float = (
        0.0  # added to a group's standard deviation (group_norm), so that tiny differences of rewards count little
    )
    loss_agg: losses.Aggregation | Literal[''] = ''  # '' is 'constant' for dr_grpo and else 'seq_mean'
    micro_train_batch_size: int = 4  # samples whose tokens loss_agg='micro_token_mean' takes the mean of
    epochs: int = 1  # passes over the samples of a step
    early_stop_kl: float = 0.0  # above 0: epochs end once approx_kl is above 1.5 times it (P-Soups' target_kl)
    minibatches: int = 1  # updates in each pass
    micro_rows: int = 4  # rows in a device's memory at once
    row_tokens: int = 0  # length of a row that several prompts share, in tokens; 0: every prompt has its own row
    ptx_coef: float = 0.0  # above 0: every update also learns supervised examples, weighted by it
    # The critic alone is trained in the first updates, up to this number, so that it settles first.
    freezing_actor_steps: int = -1
    # The source of the log-probs before the update, the ratio's denominator. 'policy': the policy computes them again.
    # 'sampler': the sampler has them from drawing, which saves a pass, and the ratio then also corrects the difference
    # between sampler and trainer.
    old_logprobs: Literal['policy', 'sampler'] = 'policy'
    # The method (`objectives/corrections.py`) that corrects for the difference in log-probs between the sampler and
    # the policy before the update.
    correction: Literal['none', 'tis', 'icepop', 'cispo', 'gspo'] = 'none'
    correction_bounds: tuple[float, float] = (0.0, 0.0)  # bounds of that method's ratio; two zeros: those of its paper
    # A sample is left out where the log-probs of sampler and policy differ by more than so many nats in the mean; 0: no
    # sample is.
    max_drift: float = 0.0
    temperature: float = derived(1.0)  # the temperature of the samples; log-probs are taken at it, too
    exact: bool = derived(False)  # `decode.exact`: a first minibatch whose ratios are not all 1 is an error

    def __post_init__(self):
        known = {
            'estimator': tuple(adv.ESTIMATORS),
            'kl_estimator': get_args(kl_divergence.KLEstimator),
            'kl_in': ('reward', 'loss'),
            'kl_target_per': ('token', 'sample'),
            'loss_agg': ('', *get_args(losses.Aggregation)),
            'old_logprobs': ('policy', 'sampler'),
            'correction': ('none', *CORRECTIONS),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f'ppo.{name}={getattr(self, name)!r}; use one of {", ".join(values)}')
        self._check_correction()
        self._check_ranges()
        if self.kl_in == 'loss' and self.kl_estimator == 'k1':
            raise ValueError("ppo.kl_estimator='k1' has no gradient as a loss; use k2 or k3, or ppo.kl_in='reward'")
        if self.estimator == 'dr_grpo' and self.aggregation != 'constant':  # arXiv 2503.20783, section 3.2
            raise ValueError(
                f"ppo.loss_agg={self.loss_agg!r} divides by lengths, ppo.estimator='dr_grpo' by a constant alone; set "
                "ppo.loss_agg='constant' or '', or another estimator"
            )
        if self.std_floor and self.estimator != 'group_norm':
            raise ValueError(
                f'ppo.std_floor={self.std_floor} is of a standard deviation that ppo.estimator={self.estimator!r} does '
                "not divide by; set it to 0, or ppo.estimator='group_norm'"
            )
        if self.kl_target and not self.has_reference:
            raise ValueError(
                f'ppo.kl_target={self.kl_target} adapts ppo.kl_coef, which is 0; raise it, or leave it out'
            )

    def _check_ranges(self) -> None:
        if self.row_tokens < 0:
            raise ValueError(f'ppo.row_tokens={self.row_tokens} must be at least 0; 0 gives every prompt a row')
        for name in ('micro_train_batch_size', 'epochs', 'minibatches', 'micro_rows'):
            if getattr(self, name) < 1:
                raise ValueError(f'ppo.{name}={getattr(self, name)} must be at least 1')
        if self.kl_coef < 0:
            raise ValueError(f'ppo.kl_coef={self.kl_coef} must be at least 0; 0 keeps no reference')
        if self.clip <= 0:
            raise ValueError(f'ppo.clip={self.clip} must be above 0; without room for the ratio nothing is learnt')
        if self.clip_high < 0:
            raise ValueError(f'ppo.clip_high={self.clip_high} must be at least 0; 0 takes ppo.clip')

    def _check_correction(self) -> None:
        if self.max_drift < 0:
            raise ValueError(f'ppo.max_drift={self.max_drift} must be at least 0; 0 leaves no sample out')
        low, high = self.correction_bounds
        if not 0 <= low <= high or (high and self.correction == 'none'):
            raise ValueError(
                f'ppo.correction_bounds={self.correction_bounds} have to be a lower and an upper ratio of a '
                f'ppo.correction, which is {self.correction!r}'
            )
        compares = self.max_drift or (self.corrects and self.corrects.of_drift)
        if compares and self.old_logprobs == 'sampler':
            raise ValueError(
                f"ppo.correction={self.correction!r} and ppo.max_drift={self.max_drift} compare the policy's log-probs "
                "with the sampler's; set ppo.old_logprobs='policy', with decode.exact off"
            )

    @property
    def aggregation(self) -> losses.Aggregation:
        """`loss_agg`, or where it is empty the aggregation that suits the estimator."""
        return self.loss_agg or ('constant' if self.estimator == 'dr_grpo' else 'seq_mean')

    @property
    def has_critic(self) -> bool:
        return self.estimator == 'gae'

    @property
    def has_reference(self) -> bool:
        return self.kl_coef != 0

    @property
    def compares(self) -> bool:
        """True where the estimator compares the samples of a prompt with each other."""
        return self.estimator not in ('gae', 'reinforce')

    @property
    def token_loss(self) -> ClippedSurrogate:
        """The clipped surrogate with its correction, and with the KL term where the KL is part of the loss."""
        kl = self.kl_estimator if self.kl_in == 'loss' and self.has_reference else None
        return ClippedSurrogate(self.clip, self.clip_high or None, kl, self.corrects)

    @property
    def corrects(self) -> Correction | None:
        """The correction that the settings name."""
        if self.correction == 'none':
            return None
        correction = CORRECTIONS[self.correction]
        return correction._replace(bounds=self.correction_bounds) if self.correction_bounds[1] else correction

    def estimate(self, rollout: EstimatorInputs) -> Estimates:
        """Advantages and returns by the estimator that the settings name."""
        constants = Discounts(self.gamma, self.lam, self.reward_clip, self.std_floor)
        advantages, returns = adv.ESTIMATORS[self.estimator](rollout, constants)
        return adv.scale_negative(advantages, self.negative_scale), returns
