"""Exports of a trained PAL on texts for transformers: one person's reward as a classifier, or everybody's as a model
with its own code.

    save_classifier('runs/pal', 'ana', user='ana')
    save_model('runs/pal', 'everybody')
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from pal_jax.models.files import families, hf
from pal_jax.models.params import Params
from pal_jax.recipes.personal.pal.reward import TrainedPAL, open_pal, rewards
from pal_jax.recipes.personal.pal.text import Decoder

CODE = Path(__file__).with_name('modeling_pal.py')


def decoder_of(run: TrainedPAL) -> Decoder:
    """The decoder that reads the texts of a run. Raises ValueError where none does."""
    if run.reading is None or not isinstance(run.reading.model, Decoder):
        raise ValueError(
            f'text.source={run.settings.text.source!r} is no decoder, and only a decoder is exported; take '
            'load_pal_reward_model'
        )
    return run.reading.model


def linear_head(run: TrainedPAL, w: Array) -> np.ndarray:
    """The reward as a linear head `[D]` on the state of a reply's last token; the two differ by a constant.

    Raises:
      ValueError: the reward is no linear head: a rule other than dot, a projector with an activation, prototypes that
        are functions of the prompt, or states that are means over tokens.
    """
    pal, reading = run.pal, run.reading
    if reading is None or pal.rule != 'dot' or pal.variant != 'A' or pal.parsed_projector.layers > 1:
        raise ValueError(
            f'rule={pal.rule}, variant={pal.variant}, projector={pal.projector}: only rule dot of variant A with an '
            'affine projector is a linear head; serve load_pal_reward_model instead'
        )
    if run.settings.text.pool != 'last':
        raise ValueError(
            f'text.pool={run.settings.text.pool!r}: transformers reads the last token; train with text.pool=last'
        )

    def reward(x: Array) -> Array:
        return rewards(run, w, x[None], None)[0]

    # The derivative of a linear function anywhere is its slope; a frame turns it back into the decoder's states.
    slope = np.asarray(jax.grad(reward)(jnp.zeros(pal.width)), np.float64)
    return slope if run.kept.frame is None else run.kept.frame.basis @ slope


def save_classifier(
    workdir: str,
    folder: str | Path,
    *,
    user: str | int | None = None,
    mix: ArrayLike | None = None,
    split: int | None = None,
) -> None:
    """Write a person's reward as a Hugging Face folder for `AutoModelForSequenceClassification`, with one label.

    Where the reward is `linear_head`, the logits are the rewards but for a constant, of the texts as the run reads
    them.

    Raises:
      ValueError: the reward is no linear head, see `linear_head`; or transformers has no classifier for the family.
    """
    run = open_pal(workdir, split)
    decoder, head = decoder_of(run), linear_head(run, run.mixture(user=user, mix=mix))
    assert run.reading
    # A classifier of one label has one column.
    hf.save(run.reading.weights, decoder.cfg, decoder.tokenizer, folder, head=head[:, None])


def save_model(workdir: str, folder: str | Path, *, split: int | None = None) -> None:
    """Write everybody's reward as a Hugging Face folder, for any rule.

    `AutoModel` loads it with its own code, `recipes/personal/pal/modeling_pal.py`, which says how to ask it. Without a
    mixture it takes the population's.

    Raises:
      ValueError: the run is on vectors, or its users are points of their own.
    """
    run = open_pal(workdir, split)
    pal, reading = run.pal, run.reading
    if not reading or pal.mixture in ('own', 'free'):
        raise ValueError(
            f'{workdir}: only a run on texts whose users mix prototypes is a model for transformers; of others take '
            'load_pal_reward_model'
        )
    decoder, frame, projector = decoder_of(run), run.kept.frame, pal.parsed_projector
    # transformers finds a text's last token by its padding, which must be no token of the text.
    tokenizer = decoder.tokenizer.padding_apart()
    of_pal = {key: getattr(pal, key) for key in ('variant', 'rule', 'scaled', 'point', 'width', 'prototypes')}
    of_pal |= {} if pal.temperature == 1 else {'temperature': pal.temperature}
    of_pal |= {key: getattr(projector, key) for key in ('layers', 'activation', 'bias', 'residual')}
    config = {
        'model_type': 'pal',
        'architectures': ['PALRewardModel'],
        'auto_map': {'AutoConfig': 'modeling_pal.PALConfig', 'AutoModel': 'modeling_pal.PALRewardModel'},
        'decoder': families.config_to_hf(decoder.cfg, tokenizer, 'float32'),
        'pal': of_pal | {'dim': pal.dim or pal.width},
        'pool': run.settings.text.pool,
        'frame': 0 if frame is None else pal.width,
        'mixture': run.mixture().tolist(),
        'dtype': 'float32',
    }
    beside = torch_names(run.state.params, pal.prototypes)
    if frame is not None:
        # The frame goes with the weights, for the decoder of the folder gives plain states.
        beside |= {'frame_mean': frame.mean.astype(np.float32), 'frame_basis': frame.basis.astype(np.float32)}
    hf.write(reading.weights, decoder.cfg, tokenizer, folder, config, beside=beside, code=CODE)


def torch_names(params: Params, K: int) -> dict[str, np.ndarray]:
    """PAL's parameters with the names and the orientation that `modeling_pal.py` gives them."""
    named = {name: np.asarray(params[name]) for name in ('P', 'log_scale') if name in params}
    for i, layer in enumerate(params.get('f', [])):
        # A linear layer of torch has its weight as outputs by inputs.
        named |= {f'f.maps.{i}.{part}': np.asarray(x).T for part, x in layer.items()}
    for i, layer in enumerate(params.get('g', [])):
        named |= {f'g.{k}.maps.{i}.{part}': np.asarray(x[k]).T for part, x in layer.items() for k in range(K)}
    return named
