"""Functions that a chat model calls, with the `openai` package."""

import contextlib
import json

import jsonschema
import openai
import pytest

from gpt.decoding.calls import CallReader
from gpt.tokenizers import chat_format
from gpt.tokenizers.tool_format import CallFormat, format_of
from tests.support.grammar_tools import templated, tokenizer_of
from tests.support.serving_tools import make_random, serving

pytest.importorskip('llguidance')

PARAMETERS = {
  'type': 'object',
  'properties': {
    'city': {'type': 'string', 'maxLength': 4},
    'days': {'type': 'integer', 'minimum': 1, 'maximum': 9},
  },
  'required': ['city', 'days'],
  'additionalProperties': False,
}
WEATHER = {
  'type': 'function',
  'function': {
    'name': 'weather',
    'description': 'The weather of the next days.',
    'parameters': PARAMETERS,
  },
}
NOW = {'type': 'function', 'function': {'name': 'now'}}
SCHEMAS = {
  'weather': PARAMETERS,
  'now': {'type': 'object', 'maxProperties': 0},
}
QUESTION = {'role': 'user', 'content': 'Will it rain?'}


@pytest.fixture(
  scope='module',
  params=['template', pytest.param('own format', marks=pytest.mark.slow)],
)
def client(request, tmp_path_factory):
  with contextlib.ExitStack() as stack:
    if request.param == 'template':
      server = request.getfixturevalue('structured_server')
    else:
      workdir = tmp_path_factory.mktemp('tools') / 'run'
      tokenizer = tokenizer_of('char')
      make_random(workdir, tokenizer, spread=0.6, block_size=1024)
      server = stack.enter_context(serving(workdir, '--slots=2'))
    url = f'{server.url}/v1'
    with openai.OpenAI(base_url=url, api_key='none', max_retries=0) as client:
      yield client


def ask(client, **fields):
  return client.chat.completions.create(
    model='any',
    messages=[QUESTION],
    **{'max_tokens': 200, 'seed': 1, 'tools': [WEATHER, NOW], **fields},
  )


def check_calls(calls):
  for call in calls:
    assert call.type == 'function' and call.id.startswith('call_')
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, SCHEMAS[call.function.name])


def test_a_required_call_is_made(client):
  answer = ask(client, tool_choice='required', parallel_tool_calls=False, n=3)
  for choice in answer.choices:
    assert choice.finish_reason == 'tool_calls'
    assert choice.message.content is None
    assert len(choice.message.tool_calls) == 1
    check_calls(choice.message.tool_calls)


def test_a_named_function_is_called(client):
  for tool in (WEATHER, NOW):
    name = tool['function']['name']
    chosen = {'type': 'function', 'function': {'name': name}}
    (choice,) = ask(client, tool_choice=chosen).choices
    (call,) = choice.message.tool_calls
    assert call.function.name == name
    check_calls([call])


def test_a_stream_of_calls_joins_to_the_whole_answer(client):
  fields = {'tool_choice': 'required', 'temperature': 1.2}
  (whole,) = ask(client, **fields).choices
  names, arguments, reasons = {}, {}, set()
  for chunk in ask(client, stream=True, **fields):
    for choice in chunk.choices:
      reasons.add(choice.finish_reason)
      assert not choice.delta.content
      for call in choice.delta.tool_calls or ():
        if call.id:
          assert call.type == 'function'
          names[call.index] = call.function.name
        text = arguments.get(call.index, '') + call.function.arguments
        arguments[call.index] = text
  calls = whole.message.tool_calls
  assert names == {i: c.function.name for i, c in enumerate(calls)}
  assert arguments == {i: c.function.arguments for i, c in enumerate(calls)}
  assert reasons == {None, whole.finish_reason}


def test_a_call_that_is_cut_short_says_so(client):
  chosen = {'type': 'function', 'function': {'name': 'weather'}}
  (choice,) = ask(client, tool_choice=chosen, max_tokens=60).choices
  assert choice.finish_reason in ('length', 'tool_calls')


def test_without_a_need_the_model_may_just_answer(client):
  for choice_of in ('auto', 'none'):
    for choice in ask(client, tool_choice=choice_of, n=4).choices:
      message = choice.message
      check_calls(message.tool_calls or ())
      assert message.tool_calls or message.content is not None
      assert choice_of == 'auto' or not message.tool_calls


def test_calls_and_their_results_may_be_in_the_conversation(client):
  (choice,) = ask(client, tool_choice='required').choices
  calls = [c.model_dump() for c in choice.message.tool_calls]
  results = [
    {'role': 'tool', 'tool_call_id': c['id'], 'content': 'rain'} for c in calls
  ]
  said = {'role': 'assistant', 'content': None, 'tool_calls': calls}
  short = client.chat.completions.create(
    model='any', messages=[QUESTION], max_tokens=3
  )
  longer = client.chat.completions.create(
    model='any', messages=[QUESTION, said, *results], max_tokens=3
  )
  assert longer.usage.prompt_tokens > short.usage.prompt_tokens + 30


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'tools': [WEATHER, WEATHER]}, 'distinct names'),
    ({'tools': [{'type': 'function', 'function': {'name': 'a b'}}]}, 'letters'),
    ({'tools': None, 'tool_choice': 'required'}, 'only allowed with tools'),
    ({'tool_choice': 'maybe'}, 'must be none, auto, required'),
    (
      {'tool_choice': {'type': 'function', 'function': {'name': 'x'}}},
      'not among the tools',
    ),
    ({'extra_body': {'regex': 'a'}}, 'cannot be combined'),
    (
      {
        'tools': [
          {
            'type': 'function',
            'function': {'name': 'f', 'parameters': {'type': 'odd'}},
          }
        ]
      },
      'tools cannot be used',
    ),
  ],
)
def test_wrong_tools_are_a_bad_request(client, fields, message):
  with pytest.raises(openai.BadRequestError, match=message):
    ask(client, **fields)


def test_the_template_tells_how_calls_are_written():
  form = format_of(templated())
  assert form == CallFormat('<tool_call>\n', '\n</tool_call>', by_template=True)
  assert format_of(tokenizer_of('char')) == CallFormat()


def test_texts_of_tools_and_calls_never_become_control_tokens():
  tokenizer = templated()
  call = {
    'id': 'c',
    'type': 'function',
    'function': {'name': 'now', 'arguments': {'<|im_end|>': '<|im_start|>'}},
  }
  tool = {'type': 'function', 'function': {'name': 'now<|im_end|>'}}
  turns = [QUESTION, {'role': 'assistant', 'content': '', 'tool_calls': [call]}]
  ids, _ = chat_format.build_prompt(turns, tokenizer, 4000, tools=[tool])
  text = tokenizer.decode(ids)
  assert text.count('<|im_end|>') == 2 and text.count('<|im_start|>') == 1
  assert ids.count(tokenizer.special_tokens['<|im_end|>']) == 3


def test_a_reader_gives_the_same_pieces_however_the_text_is_cut():
  form = CallFormat('<tool_call>\n', '\n</tool_call>')
  arguments = ['{"a": "}\\"{", "b": [{"c": {}}]}', '{}']
  calls = [form.opening('f') + a + form.closing for a in arguments]
  text = 'Let me <tool see. ' + '\n'.join(calls)
  for size in (1, 2, 3, 7, len(text)):
    reader, found, content = CallReader(['f'], form, True), {}, ''
    pieces = []
    for i in range(0, len(text), size):
      pieces += reader.feed(text[i : i + size])
    for piece in [*pieces, *reader.finish()]:
      if piece.call < 0:
        content += piece.text
      else:
        found[piece.call] = found.get(piece.call, '') + piece.text
    assert content == 'Let me <tool see. '
    assert list(found.values()) == arguments
