"""A model's Jinja chat template: conversations as token ids.

The ids are those of transformers' `apply_chat_template`, except that the text
of a message never becomes a control token (see control_tokens.py). Which tokens
are the assistant's, and which of them ends its turn, is found by rendering.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.base import replace_surrogates
from gpt.tokenizers.control_tokens import ControlTokens, broken

# 'role' (system, user, assistant, tool) and 'content', both str; perhaps more.
Message = Mapping[str, Any]
# The keys of a message that templates see; others are ignored.
FIELDS = ('role', 'content', 'reasoning_content')
CALL_FIELDS = ('tool_calls', 'tool_call_id', 'name')
PROBE = (
  {'role': 'user', 'content': 'question'},
  {'role': 'assistant', 'content': 'answer'},
  {'role': 'user', 'content': 'again'},
)
Span = tuple[int, int]


class ChatTemplate:
  """The chat template of a tokenizer.

  Args:
    tokenizer: has a `chat_template`.

  Raises:
    UserError: jinja2 is missing, or the template is wrong.
  """

  def __init__(self, tokenizer: Tokenizer) -> None:
    try:
      from gpt.tokenizers import jinja_sandbox
    except ImportError as e:
      raise UserError(
        'a chat template needs the `jinja2` library: pip install '
        "'rgpt[hf]' (or: pip install jinja2)"
      ) from e
    self._jinja = jinja_sandbox
    self._eos_id = tokenizer.eos_id
    self._controls = controls = ControlTokens(tokenizer)
    source = tokenizer.chat_template
    self._template = jinja_sandbox.compile_template(
      source, lambda text: controls.with_names(text, controls.special)
    )
    self._marks_generation = jinja_sandbox.writes_generation(source)
    self._constants = {
      'bos_token': controls.name(tokenizer.bos_id),
      'eos_token': controls.name(tokenizer.eos_id),
      'documents': None,
    }
    # Unguessable texts: inside of imitated control tokens, around what the
    # assistant writes, at the place where a prompt is cut.
    self._break = controls.sign('x')
    self.silent = tuple(controls.special)
    self._opening, self._closing = controls.sign('y'), controls.sign('z')
    self._cut = controls.sign('w')

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """Ids that end an assistant's turn: the template's own, and EOS."""
    ends = {self._turn_end, self._eos_id} - {-1}
    return tuple(sorted(ends, key=lambda id: id != self._turn_end))

  @functools.cached_property
  def _turn_end(self) -> int:
    """The control token after an assistant's text; -1 if there is none."""
    turns = [{**PROBE[0]}, {'role': 'assistant', 'content': self._cut}]
    system = {'role': 'system', 'content': 'system'}
    for messages in (turns, [system, *turns]):
      try:
        text = self._render(messages, prompt=False)
      except UserError:
        continue
      if self._cut in text:
        special = set(self._controls.special.values())
        start = text.index(self._cut)
        return self._controls.find(text, special, start)[0]
    return -1

  @functools.cached_property
  def _builds_tokens(self) -> bool:
    """Whether it joins control tokens from parts, as '<|' + role + '|>'."""
    try:
      text = self._render_once(PROBE, prompt=True)
    except UserError:
      return False
    named = self._controls.with_names(text, self._controls.special)
    return named != text

  def ids(
    self,
    messages: Sequence[Message],
    prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> list[int]:
    """Ids of a conversation.

    Args:
      prompt: whether the assistant's next turn is opened.
      tools: functions in OpenAI's form, for templates that show them.

    Raises:
      UserError: the template refuses the messages or fails.
    """
    text = self._render(messages, prompt, tools=tools)
    return self._controls.encode(text).ids.tolist()

  def reply(
    self,
    messages: Sequence[Message],
    answer: Message,
    tools: Sequence[Mapping[str, Any]],
  ) -> str:
    """The text of the assistant's `answer` to messages, without its end.

    Raises:
      UserError: as `ids`; or the template writes a prompt in another way.
    """
    prompt = self._render(messages, True, tools=tools)
    text = self._render([*messages, answer], False, tools=tools)
    if not text.startswith(prompt):
      raise UserError('the chat template writes prompts and replies unlike')
    end = self._controls.find(text, {self._turn_end}, len(prompt))[1]
    name = self._controls.name(self._turn_end)
    text = text[len(prompt) : end - len(name)] if end >= 0 else text
    return self._controls.with_contents(text)

  def continued_ids(
    self,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> list[int]:
    """Ids of a conversation whose last message is left open, to be continued.

    Raises:
      UserError: as `ids`; or the template does not write the last message.
    """
    *rest, last = messages
    # The space after it shows whether the template trims the text.
    text = self._render(
      [*rest, {**last, 'content': last['content'] + self._cut + ' '}],
      False,
      tools=tools,
    )
    before, cut, after = text.rpartition(self._cut)
    if not cut:
      raise UserError(
        'the chat template does not write the message to be continued'
      )
    if not after.startswith(' '):
      before = before.rstrip()
    return self._controls.encode(before).ids.tolist()

  def conversation(
    self, messages: Sequence[Message]
  ) -> tuple[list[int], list[bool]]:
    """(ids of a whole conversation, which of them the assistant writes).

    The assistant's are the tokens of its texts and the one that ends its turn.
    {% generation %} marks them; without it they follow from the prompts of its
    turns. A token counts if any of its characters does, as in transformers.

    Raises:
      UserError: as `ids`; or the assistant's text cannot be told from the rest.
    """
    if self._marks_generation:
      text, spans = self._marked(messages)
    else:
      text = self._render(messages, prompt=False)
      spans = self._spans_by_prompt(messages, text)
    encoded = self._controls.encode(text)
    mask = np.zeros(len(encoded.ids), bool)
    for start, end in spans:
      mask |= (encoded.starts < end) & (encoded.ends > start)
    return encoded.ids.tolist(), mask.tolist()

  def _marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """The conversation, and the parts inside of {% generation %}."""
    marked = self._render(messages, prompt=False, generation=True)
    text, spans = '', []
    for i, part in enumerate(marked.split(self._opening)):
      if not i:
        text = part
        continue
      inside, _, after = part.partition(self._closing)
      start = len(text)
      text += inside
      spans.append((start, len(text)))
      text += after
    end = self._turn_end
    name = self._controls.name(end) if end >= 0 else ''
    # The end of the turn is the assistant's, even if the tag leaves it out.
    return text, [
      (a, b + len(name) if name and text.startswith(name, b) else b)
      for a, b in spans
    ]

  def _spans_by_prompt(
    self, messages: Sequence[Message], text: str
  ) -> list[Span]:
    """The text after the prompt of each assistant's turn, up to its end."""
    spans: list[Span] = []
    for i, message in enumerate(messages):
      if message['role'] == 'assistant':
        start = self._start_of(messages, i, text)
        spans.append((start, self._end_of(messages, i, text, start)))
    return spans

  def _start_of(self, messages: Sequence[Message], i: int, text: str) -> int:
    """The index in `text` at which the assistant's message i begins.

    That is the end of the prompt for it. Some templates write early turns
    otherwise than a prompt: then it is where the content stands, or, if the
    template leaves out part of the content, where text and prompt part.
    """
    prompt = self._prompt_of(messages, i)
    if prompt and text.startswith(prompt):
      return len(prompt)
    place = self._place_of(messages, i, text, prompt=False)
    if place < 0 and prompt:
      before = self._place_of(messages[:i], i - 1, prompt, prompt=True)
      parted = len(os.path.commonprefix([text, prompt]))
      parted = self._controls.before_name(text, parted)
      end = before + len(messages[i - 1]['content'].strip())
      if before >= 0 and end <= parted:
        place = parted
    if place < 0:
      raise UserError(
        "the chat template does not show which part is the assistant's: put "
        'it between {% generation %} and {% endgeneration %}'
      )
    return place

  def _prompt_of(self, messages: Sequence[Message], i: int) -> str:
    """The prompt for turn i; '' if the template refuses it."""
    try:
      return self._render(messages[:i], prompt=True) if i else ''
    except UserError:
      return ''

  def _place_of(
    self, messages: Sequence[Message], i: int, text: str, prompt: bool
  ) -> int:
    """The index in `text` at which the content of message i begins; or -1."""
    content = messages[i]['content']
    space = len(content) - len(content.lstrip())
    signed = content[:space] + self._cut + content[space:]
    marked = self._render(
      [*messages[:i], {**messages[i], 'content': signed}, *messages[i + 1 :]],
      prompt,
    )
    before, cut, after = marked.partition(self._cut)
    return len(before) if cut and before + after == text else -1

  def _end_of(
    self, messages: Sequence[Message], i: int, text: str, start: int
  ) -> int:
    """The index in `text` at which the turn that begins at `start` ends."""
    if self._turn_end >= 0:
      _, end = self._controls.find(text, {self._turn_end}, start)
      if end >= 0:
        return end
    # Without such a token: all that the turn adds.
    whole = self._render(messages[: i + 1], prompt=False)
    if text.startswith(whole) and len(whole) >= start:
      return len(whole)
    core = messages[i]['content'].strip()
    found = text.find(core, start)
    return len(text) if found < 0 else found + len(core)

  def _render(
    self,
    messages: Sequence[Message],
    prompt: bool,
    generation: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> str:
    """The text of a conversation; control tokens have unguessable names.

    Args:
      prompt: whether the assistant's next turn is opened.
      generation: whether what {% generation %} encloses is marked.
    """
    controls = self._controls
    messages = [self._checked(message) for message in messages]
    texts = [self._without_marks(message) for message in messages]
    shown = self._inert(list(tools))
    text = self._render_once(texts, prompt, generation, shown)
    if self._builds_tokens:
      text = self._with_built_tokens(texts, prompt, generation, text, shown)
    return controls.with_names(text, controls.marks).replace(self._break, '')

  def _checked(self, message: Message) -> dict[str, Any]:
    """The part of a message that a template may see."""
    texts = {
      name: replace_surrogates(str(message[name]))
      for name in FIELDS
      if isinstance(message.get(name), str)
    }
    calls = {k: message[k] for k in CALL_FIELDS if message.get(k)}
    return texts | self._inert(calls)

  def _inert(self, value: Any) -> Any:
    """JSON whose strings do not spell control tokens or marks."""
    controls = self._controls
    names = {**controls.special, **controls.marks}

    def safe(text: str) -> str:
      return broken(replace_surrogates(text), names, self._break)

    return mapped(value, safe)

  def _without_marks(self, message: dict[str, Any]) -> dict[str, Any]:
    """A message in which only the assistant's text may hold marks."""
    if message['role'] == 'assistant':
      return message
    marks = self._controls.marks
    return {
      k: broken(v, marks, self._break) if k in FIELDS else v
      for k, v in message.items()
    }

  def _render_once(
    self,
    messages: Sequence[Message],
    prompt: bool,
    generation: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> str:
    variables = {
      **self._constants,
      'messages': [dict(message) for message in messages],
      'add_generation_prompt': prompt,
      'tools': list(tools) or None,
    }
    if generation:
      variables['generation_marks'] = self._opening, self._closing
    return self._jinja.render(self._template, variables)

  def _with_built_tokens(
    self,
    messages: Sequence[Message],
    prompt: bool,
    generation: bool,
    text: str,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> str:
    """The rendered `text` with names for control tokens joined from parts.

    It is rendered again with a stand-in for each text, so that all the rest is
    the template's. That this gives the same text is checked.
    """
    controls = self._controls
    stand_ins: dict[str, str] = {}

    def replaced(value: str) -> str:
      core = value.strip()
      if not core:
        return value
      sign = controls.sign(f'v{len(stand_ins)}')
      stand_ins[sign] = core
      at = value.index(core)
      return value[:at] + sign + value[at + len(core) :]

    hidden = [
      {
        k: replaced(v) if k in FIELDS and k != 'role' else v
        for k, v in message.items()
      }
      for message in messages
    ]
    result = self._render_once(hidden, prompt, generation, tools)
    result = controls.with_names(result, controls.special)
    for sign, core in stand_ins.items():
      result = result.replace(sign, core)
    same = controls.with_contents
    if same(result) != same(text):
      raise UserError(
        'the chat template joins control tokens from parts and changes the '
        'texts: which of them are text cannot be told'
      )
    return result


def mapped(value: Any, fn: Callable[[str], str]) -> Any:
  """JSON with fn of each of its strings, keys included."""
  if isinstance(value, str):
    return fn(value)
  if isinstance(value, Mapping):
    return {fn(str(k)): mapped(v, fn) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [mapped(v, fn) for v in value]
  return value


@functools.lru_cache(4)
def _cached(tokenizer: Tokenizer, source: str) -> ChatTemplate:
  del source  # Part of the key: the template of a tokenizer may be changed.
  return ChatTemplate(tokenizer)


def template_of(tokenizer: Tokenizer) -> ChatTemplate:
  """The tokenizer's chat template, compiled once."""
  return _cached(tokenizer, tokenizer.chat_template)
