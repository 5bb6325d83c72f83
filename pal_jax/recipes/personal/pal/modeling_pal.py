"""PAL's reward model in torch. It loads a folder that `pal.export.save_model` wrote, and pal_jax never imports it.

    from transformers import AutoModel, AutoTokenizer
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model(**tokenizer(texts, padding=True, return_tensors='pt'))                  # [B] rewards, the population's
    model(**tokens, mixture=torch.tensor([0.2, 0.8]))                             # one person's
    model(**replies, prompt_ids=..., prompt_mask=...)                             # variant B reads the prompt as well

The maths is that of `pal_jax/recipes/personal/ideal_point.py` (PAL, arXiv 2406.08469).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

# JAX's gelu is the approximation by tanh.
ACTIVATIONS = {'relu': nn.ReLU, 'gelu': lambda: nn.GELU(approximate='tanh'), 'linear': nn.Identity}
MAX_SCALE = 100.0


class PALConfig(PreTrainedConfig):
    """The config of the model.

    decoder: the config of the model that reads texts.
    pal: variant, rule, scaled, point, width, dim, prototypes, the projector's layers, activation, bias, residual, and
      temperature where it is not 1.
    pool: 'last' or 'mean', the states that make a vector.
    frame: the number of principal coordinates of the vector, or 0 for the vector itself.
    mixture: the mixture of the population.
    """

    model_type = 'pal'

    def __init__(
        self,
        decoder: dict[str, Any] | None = None,
        pal: dict[str, Any] | None = None,
        pool: str = 'last',
        frame: int = 0,
        mixture: tuple[float, ...] = (),
        **rest: Any,
    ):
        self.decoder, self.pal = decoder or {}, pal or {}
        self.pool, self.frame, self.mixture = pool, frame, list(mixture)
        super().__init__(**rest)


class Projector(nn.Module):
    """`layers` affine maps with an activation between them."""

    def __init__(self, wide: int, out: int, layers: int, activation: str, bias: bool, residual: bool):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(out if i else wide, out, bias=bias) for i in range(layers))
        self.activation, self.residual = ACTIVATIONS[activation](), residual

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for i, layer in enumerate(self.maps):
            hidden = layer(self.activation(hidden) if i else hidden)
        return x + hidden if self.residual else hidden


class PALRewardModel(PreTrainedModel):
    """A decoder that reads texts, and PAL's reward of their vectors."""

    config_class = PALConfig

    def __init__(self, config: PALConfig):
        super().__init__(config)
        pal, decoder = config.pal, dict(config.decoder)
        self.model = AutoModel.from_config(AutoConfig.for_model(decoder.pop('model_type'), **decoder))
        width, dim, count = pal['width'], pal['dim'], pal['prototypes']
        shape = pal['layers'], pal['activation'], pal['bias'], pal['residual']
        # Without layers a projector is the identity, and has no weights.
        self.f = Projector(width, dim, *shape)
        if pal['variant'] == 'B':
            self.g = nn.ModuleList(Projector(width, dim, *shape) for _ in range(count))
        else:
            # Parameters of zeros only have the shapes; the folder has the values.
            self.P = nn.Parameter(torch.zeros(count, dim if pal['point'] == 'Pw' and pal['rule'] != 'norm' else width))
        if pal['scaled']:
            self.log_scale = nn.Parameter(torch.zeros(1))
        if config.frame:
            states = self.model.config.hidden_size
            self.frame_mean = nn.Parameter(torch.zeros(states))
            self.frame_basis = nn.Parameter(torch.zeros(states, config.frame))
        self.post_init()

    def vector(self, input_ids: Tensor, attention_mask: Tensor, counted: Tensor | None = None) -> Tensor:
        """The vector of each text, [B, width]. `counted` [B, T] marks the tokens whose states count, by default all."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        # Rewards are made in float32, whatever type the decoder has.
        states = states.float()
        if self.config.pool == 'last':
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            # Padding may stand on either side: the last token is the largest place that is attended to.
            last = (attention_mask * places).argmax(dim=1)
            pooled = states[torch.arange(len(states), device=states.device), last]
        else:
            weight = (attention_mask if counted is None else counted * attention_mask).float()
            pooled = (states * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        return (pooled - self.frame_mean) @ self.frame_basis if self.config.frame else pooled

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        mixture: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        counted: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The rewards [B] of texts for a person with `mixture` [K], or for a person for each text, [B, K]."""
        x = self.vector(input_ids, attention_mask, counted)
        w = torch.tensor(self.config.mixture, device=x.device) if mixture is None else mixture.to(x)
        # One mixture serves all texts, and one for each text stays as it is.
        w = w.expand(len(x), -1)
        if self.config.pal['variant'] == 'B':
            if prompt_ids is None or prompt_mask is None:
                raise ValueError('variant B mixes functions of the prompt; give prompt_ids and prompt_mask')
            prompt = self.vector(prompt_ids, prompt_mask)
            u = torch.stack([w[:, k, None] * g(prompt) for k, g in enumerate(self.g)]).sum(0)
        else:
            u = self.point(w)
        reward = self.reward(u, x) / self.config.pal.get('temperature', 1.0)
        return reward * self.log_scale.exp().clamp(max=MAX_SCALE) if self.config.pal['scaled'] else reward

    def point(self, w: Tensor) -> Tensor:
        """The points of people with mixtures `w` [B, K], by PAL-A's formula."""
        match self.config.pal['point']:
            case 'f(Pw)':
                return self.f(w @ self.P)
            case 'f(P)w':
                return w @ self.f(self.P)
            case '|f(P)|w':
                return w @ nn.functional.normalize(self.f(self.P), dim=-1)
        return w @ self.P

    def reward(self, u: Tensor, x: Tensor) -> Tensor:
        """The unscaled rewards [B] of texts with vectors `x` for people at points `u`."""
        unit = nn.functional.normalize
        match self.config.pal['rule']:
            case 'norm':
                return -self.f(x - u).norm(dim=-1)
            case 'dist':
                return -(self.f(x) - u).norm(dim=-1)
            case 'normalized_dist':
                return -(unit(self.f(x), dim=-1) - unit(u, dim=-1)).norm(dim=-1)
            case 'angle':
                return (unit(self.f(x), dim=-1) * unit(u, dim=-1)).sum(-1)
        return (self.f(x) * u).sum(-1)
