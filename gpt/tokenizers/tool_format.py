"""Functions that a model may call: shown to it, and calls as it writes them.

A chat template that takes `tools` shows them itself and knows how calls are
written; a probe finds that out. For other models a system text describes the
functions, a call is a JSON object, and a result is a turn of the user.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpt.errors import UserError
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.chat_template import template_of

# A function in OpenAI's form: {type: function, function: {name, description,
# parameters}}.
Tool = Mapping[str, Any]
INTRODUCTION = 'You can call these functions, described in JSON Schema:'
INSTRUCTION = (
  'To call one, answer with nothing but a JSON object '
  '{"name": its name, "arguments": {its arguments}}.'
)
RESULT = 'Result of {name}:\n{content}'
PROBE_NAME, PROBE_ARGUMENT = 'probe_name', 'probe_argument'
PROBE_CALL = {
  'id': 'call_0',
  'type': 'function',
  'function': {'name': PROBE_NAME, 'arguments': {PROBE_ARGUMENT: 1}},
}
PROBE_TOOL = {
  'type': 'function',
  'function': {
    'name': PROBE_NAME,
    'description': 'A function.',
    'parameters': {
      'type': 'object',
      'properties': {PROBE_ARGUMENT: {'type': 'integer'}},
    },
  },
}


@dataclasses.dataclass(frozen=True)
class CallFormat:
  """The form of a call in a text: before, a JSON object, after.

  Attributes:
    before, after: text around the object, such as '<tool_call>\\n'.
    name, arguments: keys of the object.
    by_template: the chat template shows the tools.
  """

  before: str = ''
  after: str = ''
  name: str = 'name'
  arguments: str = 'arguments'
  by_template: bool = False

  def opening(self, name: str) -> str:
    """The text of a call up to its arguments."""
    key, value = json.dumps(self.name), json.dumps(name, ensure_ascii=False)
    return f'{self.before}{{{key}: {value}, {json.dumps(self.arguments)}: '

  @property
  def closing(self) -> str:
    """The text of a call after its arguments."""
    return '}' + self.after


@functools.lru_cache(8)
def _probed(tokenizer: Tokenizer, source: str) -> CallFormat:
  if not re.search(r'\btools\b', source):
    return CallFormat()
  question = {'role': 'user', 'content': 'question'}
  call = {'role': 'assistant', 'content': '', 'tool_calls': [PROBE_CALL]}
  template = template_of(tokenizer)
  try:
    text = template.reply([question], call, [PROBE_TOOL])
  except UserError:
    return CallFormat()
  for match in re.finditer(r'\{', text):
    try:
      found, end = json.JSONDecoder().raw_decode(text, match.start())
    except ValueError:
      continue
    keys = {json.dumps(value): key for key, value in found.items()}
    name = keys.get(json.dumps(PROBE_NAME))
    arguments = keys.get(json.dumps({PROBE_ARGUMENT: 1}))
    if name and arguments and list(found) == [name, arguments]:
      before, after = text[: match.start()], text[end:]
      if any(token in before + after for token in template.silent):
        return CallFormat(by_template=True)
      return CallFormat(before, after.rstrip(), name, arguments, True)
  return CallFormat()


def format_of(tokenizer: Tokenizer) -> CallFormat:
  """How the model of this tokenizer sees tools and writes calls."""
  return _probed(tokenizer, tokenizer.chat_template)


def as_plain_turns(
  messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> list[dict[str, Any]]:
  """Messages without tools, calls and results, which have become text.

  Args:
    messages: `tool_calls` have arguments as objects or as text.
    tools: functions to describe; none: a conversation that may hold calls.
  """
  turns: list[dict[str, Any]] = []
  names: dict[str, str] = {}
  for message in messages:
    role, content = message['role'], message['content']
    if calls := message.get('tool_calls'):
      names |= {call.get('id', ''): call['function']['name'] for call in calls}
      content = '\n'.join([*filter(None, [content]), *map(call_text, calls)])
    if role == 'tool':
      id = message.get('tool_call_id', '')
      name = message.get('name') or names.get(id, 'the function')
      text = RESULT.format(name=name, content=content)
      if turns and turns[-1].get('results'):  # Turns must alternate.
        turns[-1]['content'] += '\n' + text
      else:
        turns.append({'role': 'user', 'content': text, 'results': True})
    else:
      turns.append({'role': role, 'content': content})
  plain = [{'role': t['role'], 'content': t['content']} for t in turns]
  if not tools:
    return plain
  lines = [json.dumps(tool['function'], ensure_ascii=False) for tool in tools]
  shown = '\n'.join([INTRODUCTION, *lines, INSTRUCTION])
  if plain and plain[0]['role'] == 'system':
    first, *rest = plain
    text = '\n\n'.join(filter(None, [first['content'], shown]))
    return [{**first, 'content': text}, *rest]
  return [{'role': 'system', 'content': shown}, *plain]


def call_text(call: Mapping[str, Any]) -> str:
  """A call as a model without a template for tools writes it."""
  function, arguments = call['function'], call['function']['arguments']
  if not isinstance(arguments, str):
    arguments = json.dumps(arguments, ensure_ascii=False)
  plain = CallFormat()
  return plain.opening(function['name']) + arguments + plain.closing
