"""A SentencePiece BPE model as a Hugging Face tokenizer.json: the same ids.

SentencePiece joins the two neighbours whose joint piece has the best score, the
leftmost first; byte pair encoding joins by the order of its merges. So the
merges are all ways to split a piece in two, the best scores first.
"""

import dataclasses
import importlib
import json
from typing import Any

from gpt.errors import UserError
from gpt.tokenizers.hf_parts import added_token
from gpt.tokenizers.sentencepiece import SPACE

# SentencePiece's types of pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclasses.dataclass
class Pieces:
  """The vocabulary of a SentencePiece BPE model; lists are by id.

  Attributes:
    texts, scores, types: of each piece; types as in SentencePiece's protobuf.
    bos, eos, unknown: ids; -1: none.
    dummy_prefix: a space is put before each text.
  """

  texts: list[str]
  scores: list[float]
  types: list[int]
  bos: int
  eos: int
  unknown: int
  dummy_prefix: bool = True

  def name(self, id: int) -> str | None:
    """The text of a piece; None for -1."""
    return self.texts[id] if id >= 0 else None


def read_pieces(model: bytes) -> Pieces:
  """The pieces of a tokenizer.model.

  Raises:
    UserError: not a SentencePiece model, not BPE, or one that changes text.
  """
  pb: Any = importlib.import_module('sentencepiece.sentencepiece_model_pb2')
  try:
    proto = pb.ModelProto.FromString(model)
  except Exception as e:  # protobuf's own exception.
    raise UserError(f'not a SentencePiece model: {e}') from e
  trained, normalizer = proto.trainer_spec, proto.normalizer_spec
  problem = ''
  if not proto.pieces:
    raise UserError('not a SentencePiece model: it has no pieces')
  if trained.model_type != pb.TrainerSpec.BPE:
    kind = pb.TrainerSpec.ModelType.Name(trained.model_type)
    problem = f'is not BPE but {kind}'
  elif normalizer.precompiled_charsmap:
    problem = f'changes the text first ({normalizer.name})'
  elif normalizer.remove_extra_whitespaces:
    problem = 'removes white space (remove_extra_whitespaces)'
  elif trained.treat_whitespace_as_suffix:
    problem = 'puts the space behind words (treat_whitespace_as_suffix)'
  if problem:
    raise UserError(
      f'this SentencePiece model {problem}: only lossless BPE can be read'
    )
  return Pieces(
    [piece.piece for piece in proto.pieces],
    [piece.score for piece in proto.pieces],
    [piece.type for piece in proto.pieces],
    trained.bos_id,
    trained.eos_id,
    trained.unk_id,
    normalizer.add_dummy_prefix,
  )


def merges_by_score(pieces: Pieces) -> list[tuple[str, str]]:
  """All splits of a piece into two pieces, in the order of application."""
  usable = (NORMAL, USER_DEFINED)
  score = {
    text: (score, -id)
    for id, (text, score, kind) in enumerate(
      zip(pieces.texts, pieces.scores, pieces.types, strict=True)
    )
    if kind in usable
  }
  found = [
    (*score[text], -cut, text[:cut], text[cut:])
    for text in score
    for cut in range(1, len(text))
    if text[:cut] in score and text[cut:] in score
  ]
  return [(left, right) for *_, left, right in sorted(found, reverse=True)]


def to_tokenizer_json(pieces: Pieces) -> bytes:
  """The bytes of a tokenizer.json.

  Raises:
    UserError: two pieces have the same text.
  """
  vocab = {text: id for id, text in enumerate(pieces.texts)}
  if len(vocab) != len(pieces.texts):
    raise UserError('this SentencePiece model has two pieces of the same text')
  special = (UNKNOWN, CONTROL)
  marks = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': SPACE}
  prefix = {'type': 'Prepend', 'prepend': SPACE}
  steps = [
    {'type': 'Replace', 'pattern': {'String': SPACE}, 'content': ' '},
    {'type': 'ByteFallback'},
    {'type': 'Fuse'},
  ]
  strip = {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}
  spec = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      added_token(id, pieces.texts[id], kind in special)
      for id, kind in enumerate(pieces.types)
      if kind in (*special, USER_DEFINED)
    ],
    'normalizer': {
      'type': 'Sequence',
      'normalizers': [prefix, marks] if pieces.dummy_prefix else [marks],
    },
    'pre_tokenizer': None,
    'post_processor': None,
    'decoder': {
      'type': 'Sequence',
      'decoders': [*steps, strip] if pieces.dummy_prefix else steps,
    },
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': pieces.name(pieces.unknown),
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': True,
      'byte_fallback': BYTE in pieces.types,
      'ignore_merges': False,
      'vocab': vocab,
      'merges': [list(pair) for pair in merges_by_score(pieces)],
    },
  }
  return json.dumps(spec, ensure_ascii=False).encode()
