"""Fields of a config.json, read one by one with a check, and the list of known fields.

Every error names its field and the value in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pal_jax.models.config import LinearScaling, RopeScaling

Config = Mapping[str, Any]  # a config.json

# Fields that are read for every family.
READ = (
    'architectures', 'model_type', 'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
    'intermediate_size', 'rope_scaling', 'rope_parameters', 'original_max_position_embeddings',
)  # fmt: skip
# Fields on which no forward pass depends: names, training, labels, defaults of generation.
IDLE = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _from_model_config _name_or_path attention_dropout
    attn_implementation auto_map base_model_ep_plan base_model_pp_plan base_model_tp_plan begin_suppress_tokens
    bos_token_id cache_implementation chunk_size_feed_forward dtype early_stopping embd_pdrop eos_token_id
    finetuning_task id2label initializer_range is_decoder is_llama_config keys_to_ignore_at_inference
    label2id length_penalty max_length max_sequence_length max_window_layers min_length model_max_length num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states pad_token_id prefix pretraining_tp
    problem_type repetition_penalty resid_pdrop return_dict sep_token_id sliding_window_size task_specific_params
    temperature tokenizer_class top_k top_p torch_dtype transformers.js_config transformers_version typical_p
    unsloth_fixed unsloth_version use_cache z_loss_weight
    """.split()
)


def neutral(value: Any) -> bool:
    """True for null, false and empty values, which leave out the feature that their key names."""
    return value is None or value is False or value in ('', [], {})


def check_known(config: Config, known: Collection[str], architecture: str) -> None:
    """Raise ValueError for a field that is not known here and may change what a model computes.

    A `neutral` value counts as a missing field.
    """
    for key, value in config.items():
        if not neutral(value) and key not in known and key not in IDLE and key not in READ:
            raise ValueError(
                f'{architecture} with {key}={value!r} is not supported; if {key} changes nothing of what the model '
                'computes, take it out of config.json'
            )


def need(config: Config, *keys: str) -> Any:
    """The value of the first of these fields that is not null. Raises ValueError where there is none."""
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    raise ValueError(f'config.json has no {" or ".join(keys)}; is it the config of a causal language model?')


def size(config: Config, *keys: str, least: int = 1) -> int:
    """The first of these fields that is not null, a whole number of at least `least`. Raises ValueError for others."""
    value = need(config, *keys)
    # `isinstance` would take true for 1.
    if type(value) is not int or value < least:
        key = next(key for key in keys if config.get(key) is not None)
        raise ValueError(f'config.json has {key}={value!r}; it has to be a whole number of at least {least}')
    return value


def number(config: Config, key: str) -> float:
    """The number in a field, above 0. Raises ValueError for any other value."""
    value = need(config, key)
    if type(value) not in (int, float) or not value > 0:
        raise ValueError(f'config.json has {key}={value!r}; it has to be a number above 0')
    return value


def maybe_number(config: Config, key: str) -> float | None:
    """The number in a field, above 0, or None where the field is null."""
    return None if config.get(key) is None else number(config, key)


def window(config: Config) -> int | None:
    """The number of positions that a token sees, or None for all of them."""
    return None if config.get('sliding_window') is None else size(config, 'sliding_window')


def by_layer(config: Config, key: str, default: Sequence[Any]) -> Sequence[Any]:
    """The list in a field with a value for each layer, or `default`. Raises ValueError for another number of values."""
    values = default if config.get(key) is None else config[key]
    if not isinstance(values, Sequence) or len(values) != len(default):
        raise ValueError(f'config.json has {key}={values!r}; it has to have a value for each of {len(default)} layers')
    return values


def mapping(config: Config, key: str) -> Config:
    """The object in a field, empty where the field is missing. Raises ValueError where it has no object."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f'config.json has {key}={value!r}; it has to be an object')
    return value


# The numbers that each kind of scaling needs.
ROTARY: Mapping[str, tuple[str, ...]] = {
    'default': (),
    'linear': ('factor',),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
}


def rotary(rope: Config, config: Config) -> tuple[float, RopeScaling | LinearScaling | None]:
    """The base and scaling of the frequencies that an object of rotary settings names. Raises ValueError for others."""
    kind = rope.get('rope_type', rope.get('type')) or 'default'
    if kind not in ROTARY:
        raise ValueError(f'rope_type={kind} is not supported; use a model with default, linear or llama3')
    lengths = 'original_max_position_embeddings'
    rope = {lengths: config['max_position_embeddings'], **rope}
    # The length at the top of the config comes before that of the rotary settings.
    rope |= {lengths: config[lengths]} if config.get(lengths) is not None else {}
    for key in ('rope_theta', *ROTARY[kind]):
        if type(rope.get(key)) not in (int, float) or not rope[key] > 0:
            raise ValueError(
                f'rotary settings of config.json have {key}={rope.get(key)!r}; {kind} needs a number above 0'
            )
    for key, value in rope.items():
        recognised = key in (lengths, 'rope_theta', 'rope_type', 'type', *ROTARY[kind])
        if not recognised and value is not None and not (key == 'partial_rotary_factor' and value == 1):
            raise ValueError(f'rotary settings with {key}={value!r} and rope_type={kind} are not supported')
    theta, numbers = float(rope['rope_theta']), [rope[key] for key in ROTARY[kind]]
    return theta, {'default': lambda: None, 'linear': LinearScaling, 'llama3': RopeScaling}[kind](*numbers)
