"""POST /v1/responses with the `openai` package."""

import json

import openai
import pytest

INPUT = 'Hello there'
TURNS = [{'role': 'user', 'content': INPUT}]


@pytest.fixture(scope='module')
def client(server):
  with openai.OpenAI(
    base_url=f'{server.url}/v1', api_key='none', max_retries=0
  ) as client:
    yield client


def respond(client, **fields):
  extra = {'seed': 3, **fields.pop('extra_body', {})}
  fields = {'model': 'any', 'input': INPUT, 'max_output_tokens': 9, **fields}
  return client.responses.create(extra_body=extra, **fields)


def chat_text(client, messages=TURNS, **fields) -> str:
  answer = client.chat.completions.create(
    model='any', messages=messages, max_tokens=9, seed=3, **fields
  )
  return answer.choices[0].message.content


def test_a_response_is_the_reply_of_a_chat(client):
  answer = respond(client, metadata={'a': 'b'})
  assert answer.output_text == chat_text(client)
  assert answer.object == 'response' and answer.model == 'random'
  assert answer.store is False and answer.previous_response_id is None
  assert answer.metadata == {'a': 'b'} and answer.seed == 3
  usage = answer.usage
  assert usage.input_tokens == len(INPUT) + 4
  assert usage.total_tokens == usage.input_tokens + usage.output_tokens
  assert usage.output_tokens_details.reasoning_tokens == 0
  (item,) = answer.output
  assert (item.type, item.role, item.status) == (
    'message',
    'assistant',
    answer.status,
  )
  if answer.status == 'incomplete':
    assert answer.incomplete_details.reason == 'max_output_tokens'


def test_why_a_response_ended(client):
  longer = respond(client, max_output_tokens=500)
  assert longer.status == 'completed' and longer.incomplete_details is None
  cut = respond(client, max_output_tokens=1)
  assert cut.status == 'incomplete' and len(cut.output_text) == 1
  assert cut.incomplete_details.reason == 'max_output_tokens'


def test_instructions_and_every_form_of_a_message(client):
  said = [
    {'role': 'system', 'content': 'Be kind'},
    *TURNS,
    {'role': 'assistant', 'content': 'Hi'},
    {'role': 'user', 'content': '?'},
  ]
  parts = [{'type': 'input_text', 'text': 'Hello '}]
  parts += [{'type': 'input_text', 'text': 'there'}]
  first = respond(client)
  output = first.output[0].model_dump()
  output['content'][0]['text'] = 'Hi'
  answer = respond(
    client,
    instructions='Be kind',
    input=[
      {'type': 'message', 'role': 'user', 'content': parts},
      output,  # As the answer had it.
      {'role': 'user', 'content': '?'},
    ],
  )
  assert answer.output_text == chat_text(client, said)
  assert answer.instructions == 'Be kind'


def test_the_events_of_a_stream(client):
  whole = respond(client, max_output_tokens=60)
  events = list(respond(client, max_output_tokens=60, stream=True))
  kinds = [event.type.removeprefix('response.') for event in events]
  assert kinds[:4] == [
    'created',
    'in_progress',
    'output_item.added',
    'content_part.added',
  ]
  assert kinds[-4:] == [
    'output_text.done',
    'content_part.done',
    'output_item.done',
    whole.status,
  ]
  assert set(kinds[4:-4]) == {'output_text.delta'}
  assert [event.sequence_number for event in events] == [*range(len(events))]
  text = ''.join(e.delta for e in events if e.type.endswith('.delta'))
  assert text == events[-4].text == whole.output_text
  last = events[-1].response
  assert last.usage.model_dump() == whole.usage.model_dump()
  assert last.output_text == text and last.id == events[0].response.id
  assert events[0].response.status == 'in_progress'
  assert events[2].item.id == events[-1].response.output[0].id


def test_the_packages_own_helper_follows_a_stream(client):
  with client.responses.stream(
    model='any', input=INPUT, max_output_tokens=40
  ) as stream:
    deltas = [e.delta for e in stream if e.type == 'response.output_text.delta']
    final = stream.get_final_response()
  assert ''.join(deltas) == final.output_text


def test_the_wire_format_of_a_stream(server):
  body = {'input': INPUT, 'stream': True, 'max_output_tokens': 9}
  with server.client() as http:
    response = http.post('/v1/responses', json=body)
  assert response.headers['content-type'].startswith('text/event-stream')
  *events, rest = response.text.split('\n\n')
  assert rest == '' and '[DONE]' not in response.text
  for event in events:
    name, data = event.split('\n')
    assert json.loads(data.removeprefix('data: '))['type'] == (
      name.removeprefix('event: ')
    )


def test_log_probabilities(client):
  include = ['message.output_text.logprobs']
  answer = respond(client, include=include, top_logprobs=2)
  logprobs = answer.output[0].content[0].logprobs
  assert ''.join(t.token for t in logprobs) == answer.output_text
  assert all(len(t.top_logprobs) == 2 for t in logprobs)


def test_a_conversation_that_is_too_long(client):
  long = [*TURNS * 9, {'role': 'user', 'content': 'the last'}]
  answer = respond(client, input=long, max_output_tokens=2)
  assert answer.tokens_dropped > 50
  with pytest.raises(openai.BadRequestError) as e:
    respond(client, input=long, truncation='disabled')
  assert e.value.code == 'context_length_exceeded'
  warned = respond(client, input='aé')
  assert warned.warnings[0]['code'] == 'characters_dropped'


@pytest.mark.parametrize(
  'fields, param',
  [
    ({'store': True}, 'store'),
    ({'previous_response_id': 'resp_1'}, 'previous_response_id'),
    ({'conversation': 'conv_1'}, 'conversation'),
    ({'background': True}, 'background'),
    ({'prompt': {'id': 'pmpt_1'}}, 'prompt'),
    ({'tools': [{'type': 'web_search'}]}, 'tools'),
    ({'tool_choice': 'required'}, 'tool_choice'),
    ({'include': ['reasoning.encrypted_content']}, 'include'),
    ({'input': [{'type': 'item_reference', 'id': 'a'}]}, 'input'),
    (
      {'input': [{'role': 'user', 'content': [{'type': 'input_image'}]}]},
      'input',
    ),
    ({'text': {'format': {'type': 'xml'}}}, 'text'),
  ],
)
def test_what_it_cannot_do_is_refused_by_name(client, fields, param):
  with pytest.raises(openai.BadRequestError) as e:
    respond(client, **fields)
  assert e.value.code == 'unsupported_parameter', e.value.message
  assert e.value.param == param and param in e.value.message


@pytest.mark.parametrize(
  'fields',
  [
    {'input': []},
    {'input': [{'role': 'tool', 'content': 'a'}]},
    {'input': [{'role': 'user'}]},
    {'input': [3]},
    {'max_output_tokens': 0},
    {'top_logprobs': 21},
    {'truncation': 'never'},
    {'metadata': 'a'},
  ],
)
def test_wrong_values_are_named(client, fields):
  with pytest.raises(openai.BadRequestError) as e:
    respond(client, **fields)
  assert e.value.param == next(iter(fields)), e.value.message


def test_store_false_and_hints_are_accepted(client):
  answer = respond(
    client,
    store=False,
    tools=[],
    tool_choice='auto',
    user='me',
    reasoning={'effort': 'low'},
    service_tier='auto',
  )
  assert answer.output_text == chat_text(client)
