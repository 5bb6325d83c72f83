"""The source of PAL's pairs of texts, and the vectors that a frozen decoder or encoder of sentences makes of them.
PAL-Tiny's items are these vectors, and PAL-Large, whose decoder learns, begins with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from pal_jax.data import records, shards, texts, tokenizer
from pal_jax.data.comparisons import Comparisons, PairBatch
from pal_jax.data.readers import opinions, votes
from pal_jax.data.texts import Spans, Text, TextPairs
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.models import bert, states
from pal_jax.models.bert import BertConfig
from pal_jax.models.files import packages
from pal_jax.models.params import Params, decoder_specs
from pal_jax.models.states import Frame
from pal_jax.recipes.personal.pal.settings import Settings, TextSettings
from pal_jax.run import devices, files, inputs, sharding
from pal_jax.run.forecast import counted
from pal_jax.run.models import Policy, make_source
from pal_jax.run.processes import exchange
from pal_jax.run.recipe import Context

Decoder = Policy  # a decoder that reads, cut to the layers that are used
# Stands before the name in `models/files/packages.py` of an encoder of sentences, or before its folder.
ENCODER = 'encoder:'
# An encoder has learnt no chats, so it reads messages as lines.
MESSAGES = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"


class Encoder(NamedTuple):
    """An encoder of sentences that reads, cut to the layers that are used."""

    cfg: BertConfig
    tokenizer: Tokenizer
    weights: bert.Weights


class TextData(NamedTuple):
    """Pairs of texts with their vectors.

    Attributes:
      items: the pairs by the vectors of whole texts, as the frozen decoder makes them, in the coordinates of `frame`.
      spans: the states of all tokens, where `text.span` asks for them.
    """

    pairs: TextPairs
    items: Comparisons
    frame: Frame | None
    spans: Spans | None

    def by_token(self, batch: PairBatch, where: np.ndarray) -> PairBatch:
        """The pairs at `where` with the states of all their tokens, and the weight of each token."""
        assert self.spans
        chosen, rejected, weight = self.spans.take(self.pairs.chosen[where], self.pairs.rejected[where])
        columns: Any = {'chosen': chosen, 'rejected': rejected, 'weight': weight}
        return batch.replace(**columns)


def check(settings: Settings) -> None:
    """Raises ValueError for everything that can be wrong before a file is read."""
    text = settings.text
    if '{}' not in text.template or text.pairs < 1:
        raise ValueError(
            f'text.pairs={text.pairs} must be at least 1, and text.template={text.template!r} needs {{}} where a '
            'statement goes'
        )
    if text.span and text.pool != 'last':
        raise ValueError(f"text.span={text.span!r} judges by the last token, so text.pool={text.pool!r} must be 'last'")
    if text.source.startswith(ENCODER) and (text.span or text.pool != 'mean' or settings.baselines.context):
        raise ValueError(
            f'text.source={text.source!r} is an encoder of sentences, whose vector is the mean over a text; set '
            "text.span to '', text.pool to 'mean' and baselines.context to 0"
        )
    if settings.standardize or settings.baselines.majority or settings.baselines.mixed_logit:
        raise ValueError(
            'standardize, baselines.majority and baselines.mixed_logit are for attributes; where text.source is given '
            'set them to False'
        )


def open_reader(text: TextSettings, ctx: Context, seed: int) -> Decoder | Encoder:
    """The model that reads texts, which the section `text` names; `seed` is that of the run.

    Raises:
      ValueError, RuntimeError: the model cannot be had.
    """
    if text.source.startswith(ENCODER):
        return open_encoder(text)
    # No weights are read.
    source = make_source(text.source, ctx, seed, 'text')
    cfg = states.first_layers(devices.for_platform(source.config, text.dtype), text.layers)
    # A tied embedding asks for no output matrix, which a reader does not need.
    return Decoder(dataclasses.replace(cfg, tie_embed=True), source.tokenizer(), source)  # nothing is unembedded


def open_encoder(text: TextSettings) -> Encoder:
    """The encoder of sentences that the section `text` names. Raises ValueError or RuntimeError where there is none."""
    folder = packages.encoder_folder(text.source.removeprefix(ENCODER))
    cfg, weights = bert.load(folder)
    words = tokenizer.from_folder(folder).with_template(MESSAGES)
    return Encoder(states.first_layers(cfg, text.layers), words, weights)


def read_pairs(settings: Settings, tokenizer: Tokenizer, drop: records.Drop | None = None) -> TextPairs:
    """The pairs of the file, of the public set (`opinions.read`) or of the votes that `data` names.

    `drop` takes a line about wrong rows, which are left out; None: they are refused.

    Raises:
      ValueError: a row is wrong, or prototypes are to be functions of prompts that are missing or always the same.
    """
    data, text, alone = settings.data, settings.text, settings.model.variant == 'B'
    # Exports of votes, and all that is neither a public set nor a table of choices, are read as votes.
    tabular = all(files.format_of(file) in shards.KINDS for file in shards.files_of(data))
    if not opinions.is_source(data) and (votes.is_export(data) or not tabular):
        if drop:
            raise ValueError("wrong_rows='drop' is for files of pairs, and votes are counted; give wrong_rows='refuse'")
        if alone:
            raise ValueError(
                "model.variant='B' needs prompts, and statements that are voted on have none; use variant A"
            )
        voted = votes.read(data)
        return texts.from_votes(voted, tokenizer, template=text.template, most=text.pairs, seed=settings.seed)
    if drop and opinions.is_source(data) and not data.startswith('choices:'):
        raise ValueError(f"wrong_rows='drop' is for files of your own, and data={data!r} is a public set")
    pairs = choices_of(data, tokenizer, text.template, alone, drop=drop)
    if alone and (pairs.prompt is None or len(np.unique(pairs.prompt)) == 1):
        prompts = 'none' if pairs.prompt is None else 'the same for all'
        raise ValueError(f"model.variant='B' makes prototypes of prompts, and {data} has {prompts}, which is variant A")
    return pairs


def choices_of(
    data: str,
    tokenizer: Tokenizer,
    template: str,
    alone: bool,
    *,
    answered: bool = True,
    drop: records.Drop | None = None,
) -> TextPairs:
    """The pairs of a file or of a public set; `alone`, `answered` and `drop` are those of `texts.read`."""
    how: Any = {'alone': alone, 'template': template}
    if data.startswith('choices:'):
        choices = records.read(data.removeprefix('choices:'), answered=answered, drop=drop)
        return texts.from_choices(choices, tokenizer, **how, name=data)
    if opinions.is_source(data):
        return texts.from_choices(opinions.read(data), tokenizer, **how, name=data)
    return texts.read(data, tokenizer, **how, answered=answered, drop=drop)


def read(settings: Settings, ctx: Context, reader: Decoder | Encoder, frame: Frame | None = None) -> TextData:
    """The pairs by the vectors of their texts, which the frozen reader computes once; they are kept in `text.folder`.

    The vectors are in the coordinates of `frame`, or in those that the first process computes for them.
    """
    text = settings.text
    pairs = read_pairs(settings, reader.tokenizer, ctx.log if settings.wrong_rows == 'drop' else None)
    pool: states.Pool = 'tokens' if text.span else text.pool
    starts = states.token_starts(pairs.texts)
    lengths = np.array([len(sequence.tokens) for sequence in pairs.texts])

    def compute() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if isinstance(reader, Encoder):
            return states.sentence_vectors(reader.weights, reader.cfg, ctx.mesh, pairs.texts)
        return states.hidden_states(load(reader, ctx), reader.cfg, ctx.mesh, pairs.texts, pool=pool)

    longest = reader.cfg.max_len if isinstance(reader, Encoder) else np.inf
    if cut := sum(len(sequence.before) + len(sequence.tokens) > longest for sequence in pairs.texts):
        ctx.log(f'{counted(cut, "text")} of more than {longest} tokens, which is what the encoder reads, are shortened')
    # A change of any of these makes other states, so it names another file.
    made_by = {'source': text.source, 'layers': reader.cfg.layers, 'pool': pool, 'dtype': reader.cfg.dtype}
    if place := inputs.path_of(text.source):  # other weights under one name make other states
        made_by |= inputs.hashes(place)
    # With spans the table has a row for each token, else one for each text.
    rows = int(lengths.sum()) if text.span else len(pairs.texts)
    table = states.stored(text.folder, pairs.texts, made_by, compute, (rows, reader.cfg.width))
    # Where the table has all tokens, the state of a text is that of its last one.
    ends = starts + lengths - 1
    # One process computes the axes: their signs depend on the machine.
    if text.width and frame is None:
        axes = states.frame(table[ends] if text.span else table, text.width) if jax.process_index() == 0 else None
        frame = Frame(*map(np.array, exchange('frame', axes and [x.tolist() for x in axes])[0]))
    table = states.in_frame(table, frame) if frame else table
    spans = Spans(table, starts, pairs.texts, text.span) if text.span else None
    return TextData(pairs, pairs.in_states(table[ends] if text.span else table), frame, spans)


def sentence_reader(encoder: Encoder, mesh: Mesh, frame: Frame | None) -> Callable[[Sequence[Text]], np.ndarray]:
    """A function that gives the vectors of texts by an encoder of sentences, in the coordinates of `frame`."""

    def read(given: Sequence[Text]) -> np.ndarray:
        table = np.zeros((len(given), encoder.cfg.width), np.float32)
        for numbers, vectors in states.sentence_vectors(encoder.weights, encoder.cfg, mesh, given):
            table[numbers] = vectors
        return states.in_frame(table, frame) if frame else table

    return read


def load(decoder: Decoder, ctx: Context) -> Params:
    """The decoder's weights, up to the layers that are used."""
    shardings = sharding.param_shardings(decoder_specs(decoder.source.config), ctx.mesh)
    return states.first_weights(decoder.source.load(shardings), decoder.cfg)
