"""Events -> OpenAI's JSON, whole or in chunks."""

import dataclasses
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from gpt.tokenizers import Tokenizer
from serving.engine.events import Delta, Event, Finished, Scored, Token
from serving.engine.jobs import Job
from serving.engine.notices import Notice
from serving.http.responses import (
  ChatLogprobs,
  CompletionChoice,
  CompletionLogprobs,
  TokenLogprob,
  Usage,
)
from serving.http.timings import prompt_progress, timings

MIN_LOGPROB = -9999.0  # JSON has no minus infinity


class Reply:
  """The part that both OpenAI routes share; one object per request.

  Args:
    job: read while it runs; it may still be empty now.
    model: the name to answer with.
    include_usage: end a stream with a usage chunk.
    progress: begin a stream with chunks about the prompt.
    timed: every chunk has timings; else those that end a stream do.
  """

  prefix = whole_object = chunk_object = ''
  end = b'data: [DONE]\n\n'  # of a stream

  def __init__(
    self,
    job: Job,
    model: str,
    tokenizer: Tokenizer,
    include_usage: bool = False,
    *,
    progress: bool = False,
    timed: bool = False,
  ) -> None:
    self.job = job
    self.tokenizer = tokenizer
    self._include_usage = include_usage
    self._progress = progress
    self._timed = timed
    self._finished = 0
    self._head = {
      'id': f'{self.prefix}-{secrets.token_hex(12)}',
      'object': self.whole_object,
      'created': int(time.time()),
      'model': model,
      # The seed in use, so that a random text can be reproduced.
      'seed': job.sampling.seed,
    }
    self._opened: set[int] = set()
    self.scored: dict[int, list[Token]] = {}  # by prompt
    self._prompts: dict[int, str] = {}

  def usage(self) -> Usage:
    prompt, completion = self.job.prompt_tokens, self.job.completion_tokens
    return {
      'prompt_tokens': prompt,
      'completion_tokens': completion,
      'total_tokens': prompt + completion,
      'prompt_tokens_details': {'cached_tokens': self.job.cached_tokens},
    }

  def head(self) -> dict[str, Any]:
    weights = self.job.weights
    fingerprint = weights.fingerprint if weights else None
    head = {**self._head, 'system_fingerprint': fingerprint}
    dropped = self.job.tokens_dropped
    return {**head, 'tokens_dropped': dropped} if dropped else head

  def whole(self, events: Iterable[Event]) -> dict[str, Any]:
    """The answer to a request without streaming."""
    deltas, reasons = self._merge(events)
    choices = [
      self.whole_choice(index, *self._opening(index, *deltas[index]), reason)
      for index, reason in sorted(reasons.items())
    ]
    answer = {**self.head(), 'choices': choices, 'usage': self.usage()}
    answer['timings'] = timings(self.job)
    return answer | warnings_of(self.job.notices)

  def chunks(self, events: Iterable[Event]) -> list[dict[str, Any]]:
    """Chunks to stream for a batch of events; a choice's text is joined."""
    deltas, reasons = self._merge(events)
    out, opening = [], not self._opened
    for index in sorted(deltas.keys() | reasons.keys()):
      text, tokens = deltas.get(index, ('', []))
      first = index not in self._opened
      self._opened.add(index)
      if first:
        text, tokens = self._opening(index, text, tokens)
        out += self.first_choices(index)
      if text or tokens:
        out.append(self.chunk_choice(index, text, tokens))
      if index in reasons:
        out.append(self.last_choice(index, reasons[index]))
    chunks = [self._chunk([choice]) for choice in out]
    self._finished += len(reasons)
    ended = self._finished == len(self.job.sequences)
    for chunk in chunks if self._timed else chunks[-1:] if ended else []:
      chunk['timings'] = timings(self.job)
    if self._progress:
      self._progress = not self.job.first
      about = {'prompt_progress': prompt_progress(self.job)}
      chunks = [self._chunk([]) | about, *chunks]
    if chunks and opening:
      chunks[0] |= warnings_of(self.job.notices)
    return chunks

  def last_chunks(self) -> list[dict[str, Any]]:
    if not self._include_usage:
      return []
    return [{**self._chunk([]), 'usage': self.usage()}]

  def _chunk(self, choices: list) -> dict[str, Any]:
    chunk = {**self.head(), 'object': self.chunk_object, 'choices': choices}
    if self._include_usage:
      chunk['usage'] = None
    return chunk

  def _merge(
    self, events: Iterable[Event]
  ) -> tuple[dict[int, tuple[str, list[Token]]], dict[int, str]]:
    """({index: (text, tokens)}, {index: finish reason}) of a batch."""
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[Token]] = {}
    reasons: dict[int, str] = {}
    for event in events:
      if isinstance(event, Scored):
        self.scored[event.prompt] = event.tokens
      elif isinstance(event, Delta):
        texts.setdefault(event.index, []).append(event.text)
        tokens.setdefault(event.index, []).extend(event.tokens)
      elif isinstance(event, Finished):
        reasons[event.index] = event.reason
        texts.setdefault(event.index, [])
    deltas = {i: (''.join(t), tokens.get(i, [])) for i, t in texts.items()}
    return deltas, reasons

  def _opening(
    self, index: int, text: str, tokens: list[Token]
  ) -> tuple[str, list[Token]]:
    """A choice's first text and tokens, after whatever precedes them."""
    return text, tokens

  def whole_choice(
    self, index: int, text: str, tokens: list[Token], reason: str
  ) -> Any:
    raise NotImplementedError

  def first_choices(self, index: int) -> list:
    return []

  def chunk_choice(self, index: int, text: str, tokens: list[Token]) -> Any:
    raise NotImplementedError

  def last_choice(self, index: int, reason: str) -> Any:
    raise NotImplementedError

  def prompt_logprobs(self, number: int) -> dict[str, Any]:
    """The entry of that name for a prompt, as vLLM has it; or none.

    A rank is known only among the reported alternatives.
    """
    wanted = self.job.sampling.prompt_logprobs
    if wanted is None:
      return {}
    out: list[dict | None] = []
    for token in self.scored.get(number, ()):
      if token.logprob is None:
        out.append(None)
        continue
      pairs: dict[int, tuple[float, int | None]] = {
        id: (p, i + 1) for i, (id, p) in enumerate(token.top[:wanted])
      }
      pairs.setdefault(token.id, (token.logprob, None))
      out.append(
        {
          str(id): {
            'logprob': finite(logprob),
            'rank': rank,
            'decoded_token': self.token_text(id),
          }
          for id, (logprob, rank) in pairs.items()
        }
      )
    return {'prompt_logprobs': out}

  def token_text(self, id: int) -> str:
    return token_text(self.tokenizer, id)


class CompletionReply(Reply):
  """POST /v1/completions."""

  prefix = 'cmpl'
  whole_object = chunk_object = 'text_completion'

  def _opening(
    self, index: int, text: str, tokens: list[Token]
  ) -> tuple[str, list[Token]]:
    s = self.job.sampling
    if not s.echo:
      return text, tokens
    prompt = self._prompt_text(index // s.n)
    shift = len(prompt)
    shifted = [
      Token(t.id, t.start + shift, t.end + shift, t.logprob, t.top)
      for t in tokens
    ]
    scored = [
      dataclasses.replace(t, top=t.top[: s.logprobs])
      for t in self.scored.get(index // s.n, ())
    ]
    return prompt + text, scored + shifted

  def _prompt_text(self, number: int) -> str:
    if number not in self._prompts:
      tokens = self.job.prompts[number]
      self._prompts[number] = self.tokenizer.decode(tokens)
    return self._prompts[number]

  def _choice(
    self, index: int, text: str, tokens: list[Token], reason: Any
  ) -> CompletionChoice:
    return {
      'index': index,
      'text': text,
      'logprobs': self._logprobs(tokens),
      'finish_reason': reason,
    }

  def whole_choice(
    self, index: int, text: str, tokens: list[Token], reason: str
  ) -> CompletionChoice:
    choice: Any = self._choice(index, text, tokens, reason)
    return choice | self.prompt_logprobs(index // self.job.sampling.n)

  def chunk_choice(
    self, index: int, text: str, tokens: list[Token]
  ) -> CompletionChoice:
    return self._choice(index, text, tokens, None)

  def last_choice(self, index: int, reason: Any) -> CompletionChoice:
    return {
      'index': index,
      'text': '',
      'logprobs': None,
      'finish_reason': reason,
    }

  def _logprobs(self, tokens: list[Token]) -> CompletionLogprobs | None:
    if self.job.sampling.logprobs is None:
      return None
    return {
      'tokens': [self.token_text(t.id) for t in tokens],
      'token_logprobs': [finite(t.logprob) for t in tokens],
      'top_logprobs': [self._top(t) for t in tokens],
      'text_offset': [t.start for t in tokens],
    }

  def _top(self, token: Token) -> dict[str, float | None] | None:
    """The most probable tokens and the sampled one."""
    if token.logprob is None:
      return None
    pairs = [*token.top, (token.id, token.logprob)]
    return {self.token_text(id): finite(logprob) for id, logprob in pairs}


class ChatReply(Reply):
  """POST /v1/chat/completions."""

  prefix = 'chatcmpl'
  whole_object = 'chat.completion'
  chunk_object = 'chat.completion.chunk'

  def whole(self, events: Iterable[Event]) -> dict[str, Any]:
    return super().whole(events) | self.prompt_logprobs(0)

  def whole_choice(
    self, index: int, text: str, tokens: list[Token], reason: str
  ) -> dict[str, Any]:
    return {
      'index': index,
      'message': {'role': 'assistant', 'content': text, 'refusal': None},
      'logprobs': self._logprobs(tokens),
      'finish_reason': reason,
    }

  def _delta(
    self,
    index: int,
    delta: dict[str, Any],
    tokens: Sequence[Token] = (),
    reason: str | None = None,
  ) -> dict[str, Any]:
    return {
      'index': index,
      'delta': delta,
      'logprobs': self._logprobs(tokens) if tokens else None,
      'finish_reason': reason,
    }

  def first_choices(self, index: int) -> list[dict[str, Any]]:
    return [self._delta(index, {'role': 'assistant', 'content': ''})]

  def chunk_choice(
    self, index: int, text: str, tokens: list[Token]
  ) -> dict[str, Any]:
    return self._delta(index, {'content': text}, tokens)

  def last_choice(self, index: int, reason: str) -> dict[str, Any]:
    return self._delta(index, {}, reason=reason)

  def _logprobs(self, tokens: Sequence[Token]) -> ChatLogprobs | None:
    if self.job.sampling.logprobs is None:
      return None
    return {
      'content': [
        {
          **self._entry(t.id, t.logprob),
          'top_logprobs': [self._entry(*pair) for pair in t.top],
        }
        for t in tokens
        if t.id not in self.job.stop_ids
      ],
      'refusal': None,
    }

  def _entry(self, id: int, logprob: float | None) -> TokenLogprob:
    return {
      'token': self.token_text(id),
      'logprob': finite(logprob),
      'bytes': list(self.tokenizer.token_bytes(id)),
    }


def token_text(tokenizer: Tokenizer, id: int) -> str:
  """A token as text; an incomplete character as 'bytes:\\xf0'."""
  data = tokenizer.token_bytes(id)
  if not data:
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    return names.get(id, '')
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError:
    return 'bytes:' + ''.join(f'\\x{b:02x}' for b in data)


def warnings_of(notices: Iterable[Notice]) -> dict[str, list[dict[str, str]]]:
  """The entry `warnings` of an answer; absent if there are none."""
  found = [notice.as_json() for notice in notices]
  return {'warnings': found} if found else {}


def finite(logprob: float | None) -> float | None:
  return None if logprob is None else max(logprob, MIN_LOGPROB)
