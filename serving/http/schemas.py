"""JSON in, dataclasses out: every field of every route, checked once.

Each reader names the field, what was given and what is allowed. Fields nobody
knows are ignored, as OpenAI's clients expect; those that ask for something we
do not do are refused, not ignored.
"""

import dataclasses

from serving.http.errors import ApiError, bad_request, unsupported
from serving.http.fields import REQUIRED, Fields, json_type, shorten, wrong

MAX_PROMPTS = 64
MAX_CHOICES = 8
MAX_SAMPLES = 50
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_TOKENS = 1_000_000
MAX_TOP_LOGPROBS = 20
OVERFLOWS = ('slide', 'exact', 'stop', 'error')


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to generate; one for all choices of a request.

  Attributes:
    seed: of choice 0; choice i uses seed + i.
    top_k: 0 is off. stop: strings. stop_token_ids: ids that end a choice.
    logit_bias: id -> value added to the logit.
    logprobs: number of alternatives a token, None for no log-probabilities.
    overflow: what happens at the window's end, one of OVERFLOWS.
    echo: the prompt is part of the text.
  """

  max_tokens: int = 256
  temperature: float = 0.8
  top_p: float = 0.9
  top_k: int = 0
  min_p: float = 0.0
  repetition: float = 1.0
  frequency: float = 0.0
  presence: float = 0.0
  logit_bias: dict = dataclasses.field(default_factory=dict)
  stop: tuple[str, ...] = ()
  stop_token_ids: tuple[int, ...] = ()
  ignore_eos: bool = False
  n: int = 1
  seed: int = 0
  logprobs: int | None = None
  overflow: str = 'slide'
  echo: bool = False


@dataclasses.dataclass(frozen=True)
class Completion:
  """A request of POST /v1/completions, / or /microgpt/v1/generate.

  `prompts` are str or lists of token ids.
  """

  prompts: tuple
  sampling: Sampling
  model: str | None = None
  stream: bool = False
  include_usage: bool = False


@dataclasses.dataclass(frozen=True)
class Chat:
  """A request of a chat route; messages have 'role' and 'content' (str)."""

  messages: tuple
  sampling: Sampling
  model: str | None = None
  stream: bool = False
  include_usage: bool = False


def read_stop(body: dict) -> tuple[str, ...]:
  stop = body.get('stop')
  if stop is None:
    return ()
  stops = [stop] if isinstance(stop, str) else stop
  if (
    not isinstance(stops, list)
    or len(stops) > MAX_STOPS
    or not all(isinstance(s, str) and s for s in stops)
  ):
    raise bad_request(
      f'stop must be a non-empty string or up to {MAX_STOPS} of them.', 'stop'
    )
  longest = max(map(len, stops), default=0)
  if longest > MAX_STOP_LENGTH:
    raise bad_request(
      f'stop has a string of {longest} characters; at most {MAX_STOP_LENGTH} '
      'are allowed.',
      'stop',
    )
  return tuple(dict.fromkeys(stops))


def is_token(value, vocab_size: int) -> bool:
  return type(value) is int and 0 <= value < vocab_size


def read_token_ids(body: dict, name: str, vocab_size: int, default=REQUIRED):
  """A list of ids inside the vocabulary, as a tuple."""
  ids = Fields(body).get(name, list, default, 'an array of token ids')
  for id in ids:
    if not is_token(id, vocab_size):
      given = shorten(id) if isinstance(id, int) else json_type(id)
      raise bad_request(
        f'{name} must hold integers from 0 to {vocab_size - 1}, not {given}.',
        name,
      )
  return tuple(ids)


def read_logit_bias(body: dict, vocab_size: int) -> dict:
  bias = Fields(body).get('logit_bias', dict, {}, 'an object {token id: bias}')
  out = {}
  for key, value in bias.items():
    known = key.isascii() and key.isdigit() and len(key) < 10
    if not known or int(key) >= vocab_size:
      raise bad_request(
        f'logit_bias: {shorten(key)!r} is not a token id from 0 to '
        f'{vocab_size - 1}.',
        'logit_bias',
      )
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not -100 <= value <= 100:
      raise bad_request(
        'logit_bias values must be numbers from -100 to 100.', 'logit_bias'
      )
    out[int(key)] = float(value)
  return out


def refuse_unsupported(body: dict) -> None:
  """400 for what would change the answer and does not exist here."""
  for name in ('tools', 'functions', 'suffix'):
    if body.get(name):
      raise unsupported(name, f'{name} is not supported.')
  form = body.get('response_format')
  if form is not None and form != {'type': 'text'}:
    raise unsupported(
      'response_format', "response_format: only {'type': 'text'} is supported."
    )
  if (Fields(body).integer('best_of', 1, 1, 20) or 1) > 1:
    raise unsupported('best_of', 'best_of above 1 is not supported.')


def read_sampling(
  body: dict, vocab_size: int, overflow: str, least_tokens: int = 1
) -> Sampling:
  """The fields that both OpenAI routes share."""
  f = Fields(body)
  newer = f.integer('max_completion_tokens', None, least_tokens, MAX_TOKENS)
  older = f.integer('max_tokens', None, least_tokens, MAX_TOKENS)
  chosen = newer if newer is not None else older
  return Sampling(
    max_tokens=256 if chosen is None else chosen,
    temperature=f.number('temperature', 0.8, 0, 2),
    top_p=f.number('top_p', 0.9, 0, 1, above=True),
    top_k=max(0, f.integer('top_k', 0, -1, 2**31 - 1)),
    # 1 would be greedy; the sampler wants it below 1.
    min_p=min(f.number('min_p', 0.0, 0, 1), 0.999999),
    repetition=f.number('repetition_penalty', 1.0, 0, 10, above=True),
    frequency=f.number('frequency_penalty', 0.0, -2, 2),
    presence=f.number('presence_penalty', 0.0, -2, 2),
    logit_bias=read_logit_bias(body, vocab_size),
    stop=read_stop(body),
    stop_token_ids=read_token_ids(body, 'stop_token_ids', vocab_size, ()),
    ignore_eos=f.boolean('ignore_eos'),
    n=f.integer('n', 1, 1, MAX_CHOICES),
    seed=f.seed(),
    overflow=f.choice('context_overflow', overflow, OVERFLOWS),
  )


def read_stream(body: dict) -> dict:
  """stream and stream_options.include_usage."""
  f = Fields(body)
  stream = f.boolean('stream')
  options = f.get('stream_options', dict, None, 'an object')
  if options is not None and not stream:
    raise bad_request(
      'stream_options is only allowed with stream: true.', 'stream_options'
    )
  try:
    usage = Fields(options or {}).boolean('include_usage')
  except ApiError as e:
    e.param = 'stream_options'
    raise
  return {'stream': stream, 'include_usage': usage}


def read_prompts(body: dict, vocab_size: int) -> tuple:
  """A string, strings, token ids, or lists of those: a tuple of prompts."""
  prompt = body.get('prompt')
  wanted = 'a string, an array of strings, token ids, or arrays of token ids'
  if prompt is None:
    raise bad_request(
      f'prompt is required: {wanted}.', 'prompt', 'missing_required_parameter'
    )
  if isinstance(prompt, str):
    return (prompt,)
  if not isinstance(prompt, list) or not prompt:
    empty = prompt == []
    raise wrong('prompt', wanted, 'empty' if empty else json_type(prompt))
  if not isinstance(prompt[0], (str, list)):
    return (read_token_ids(body, 'prompt', vocab_size),)
  if len(prompt) > MAX_PROMPTS:
    raise bad_request(
      f'prompt has {len(prompt)} entries; at most {MAX_PROMPTS} are allowed.',
      'prompt',
    )
  kind = type(prompt[0])
  if not all(isinstance(p, kind) for p in prompt):
    raise wrong('prompt', wanted, 'a mixture')
  if kind is str:
    return tuple(prompt)
  return tuple(
    read_token_ids({'prompt': p}, 'prompt', vocab_size) for p in prompt
  )


def read_completion(body: dict, vocab_size: int, overflow: str) -> Completion:
  """POST /v1/completions."""
  refuse_unsupported(body)
  f = Fields(body)
  sampling = dataclasses.replace(
    read_sampling(body, vocab_size, overflow, least_tokens=0),
    logprobs=f.integer('logprobs', None, 0, MAX_TOP_LOGPROBS),
    echo=f.boolean('echo'),
  )
  return Completion(
    read_prompts(body, vocab_size),
    sampling,
    f.text('model', None),
    **read_stream(body),
  )


def read_chat(body: dict, vocab_size: int, overflow: str) -> Chat:
  """POST /v1/chat/completions."""
  refuse_unsupported(body)
  f = Fields(body)
  logprobs = f.boolean('logprobs')
  top = f.integer('top_logprobs', None, 0, MAX_TOP_LOGPROBS)
  if top and not logprobs:
    raise bad_request(
      'top_logprobs is only allowed with logprobs: true.', 'top_logprobs'
    )
  sampling = dataclasses.replace(
    read_sampling(body, vocab_size, overflow),
    logprobs=(top or 0) if logprobs else None,
  )
  return Chat(
    read_messages(body), sampling, f.text('model', None), **read_stream(body)
  )


def read_messages(body: dict) -> tuple:
  """Messages with string contents; developer is an alias of system."""
  messages = Fields(body).get(
    'messages', list, REQUIRED, 'an array of {role, content}'
  )
  if not messages:
    raise bad_request('messages must not be empty.', 'messages')
  out = []
  roles = {'developer': 'system'}
  for i, message in enumerate(messages):
    where = f'messages[{i}]'
    if not isinstance(message, dict):
      raise wrong(where, 'an object', json_type(message))
    role = message.get('role')
    if role not in ('system', 'developer', 'user', 'assistant'):
      raise wrong(
        f'{where}.role',
        'system, developer, user or assistant',
        shorten(repr(role)) if isinstance(role, str) else json_type(role),
      )
    content = read_content(message.get('content'), role, where)
    out.append({'role': roles.get(role, role), 'content': content})
  return tuple(out)


def read_content(content, role: str, where: str) -> str:
  if isinstance(content, str):
    return content
  if content is None and role == 'assistant':
    return ''
  wanted = 'a string or an array of {type: "text", text}'
  if not isinstance(content, list):
    raise wrong(f'{where}.content', wanted, json_type(content))
  for part in content:
    if not isinstance(part, dict) or part.get('type') != 'text':
      raise wrong(f'{where}.content', wanted, 'other parts')
    if not isinstance(part.get('text'), str):
      raise wrong(f'{where}.content', wanted, 'a part without text')
  return ''.join(part['text'] for part in content)


def read_randy(body: dict, overflow: str) -> Completion:
  """RandyGPT's POST /."""
  f = Fields(body)
  sampling = Sampling(
    max_tokens=f.integer('max_tokens', 256, 1, MAX_TOKENS),
    temperature=f.number('temperature', 0.7, 0, 2),
    seed=f.seed(),
    overflow=overflow,
  )
  return Completion((f.text('prompt'),), sampling)


def read_micro_sampling(body: dict, **fields) -> Sampling:
  """What microgpt's two routes share: no filters, a fixed seed."""
  f = Fields(body)
  return Sampling(
    max_tokens=f.integer('max_tokens', MAX_TOKENS, 1, MAX_TOKENS),
    temperature=f.number('temperature', 0.8, 0, 2),
    top_p=1.0,
    seed=f.seed(42),
    overflow='stop',
    **fields,
  )


def read_micro_generate(body: dict) -> Completion:
  """POST /microgpt/v1/generate: from BOS to its end or the window's."""
  count = Fields(body).integer('num_samples', 1, 1, MAX_SAMPLES)
  return Completion(((),), read_micro_sampling(body, n=count))


def read_micro_chat(body: dict) -> Chat:
  """POST /microgpt/v1/chat."""
  return Chat(read_messages(body), read_micro_sampling(body))


def read_tokenize(body: dict) -> str:
  return Fields(body).text('content')


def read_detokenize(body: dict, vocab_size: int) -> tuple[int, ...]:
  return read_token_ids(body, 'tokens', vocab_size)
