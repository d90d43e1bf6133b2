"""Bytes on raw sockets: heads, lengths and numbers that no HTTP client sends.

Each of these was found by an attack.
"""

import json
import socket

import pytest

from tests.support.serving_tools import PATIENCE

MEGABYTE = 1 << 20


def exchange(server, *pieces: bytes) -> tuple[bytes, dict]:
  """(status line and headers, JSON body) of the answer, until the end."""
  with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
    for piece in pieces:
      sock.sendall(piece)
    answer = b''
    while data := sock.recv(1 << 16):
      answer += data
  head, _, body = answer.partition(b'\r\n\r\n')
  return head, json.loads(body)


@pytest.mark.parametrize('size', [MEGABYTE // 8, 5 * MEGABYTE])
@pytest.mark.parametrize(
  'line', [b'GET /livez HTTP/1.1\r\nHost: localhost\r\n', b'GET /']
)
def test_a_head_that_is_too_large_is_a_431_that_arrives(server, size, line):
  filler = b'x-filler: ' if b'Host' in line else b''
  head, body = exchange(server, line + filler, b'a' * size)
  assert head.startswith(b'HTTP/1.1 431 ')
  assert b'connection: close' in head.lower()
  assert body['error']['code'] == 'headers_too_large'
  assert '65536 bytes' in body['error']['message']


@pytest.mark.parametrize('length', [0, 2, 40])
def test_two_lengths_of_a_body_end_the_connection(server, length):
  """What follows is not taken for a request: it may be part of the body."""
  request = (
    f'POST /tokenize HTTP/1.1\r\nHost: localhost\r\n'
    f'Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n'
    '0\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n'
  )
  head, body = exchange(server, request.encode())
  assert head.startswith(b'HTTP/1.1 400 ') and head.count(b'HTTP/1.1') == 1
  assert b'connection: close' in head.lower()
  assert 'Content-Length and Transfer-Encoding' in body['error']['message']


def test_two_different_lengths_end_the_connection(server):
  lines = 'Content-Length: 2\r\nContent-Length: 3\r\n'
  request = f'POST /tokenize HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{{}}'
  head, _ = exchange(server, request.encode())
  assert head.startswith(b'HTTP/1.1 400 ') and b'close' in head


def test_invalid_http_with_megabytes_behind_it_gets_its_answer(server):
  head, body = exchange(server, b'\0 / nothing\r\n\r\n', b'x' * 4 * MEGABYTE)
  assert head.startswith(b'HTTP/1.1 400 ')
  assert body['error']['message'] == 'The request is not valid HTTP.'


def test_a_client_that_never_stops_sending_is_cut_off(server):
  with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
    sock.sendall(b'\0 / nothing\r\n\r\n')
    with pytest.raises(ConnectionError):
      while True:
        sock.sendall(b'x' * MEGABYTE)


def test_the_words_for_numbers_are_those_of_json(server):
  with server.client() as http:

    def message(content):
      response = http.post('/v1/completions', content=content)
      assert response.status_code == 400
      return response.json()['error']['message']

    long = message(b'{"prompt": "a", "seed": ' + b'9' * 5000 + b'}')
    assert long == (
      'The body is not valid JSON: a number has more than 4300 digits, the '
      'most allowed.'
    )
    assert message(b'[' * 100_000) == (
      'The body is not valid JSON: it is nested too deeply.'
    )
    assert 'it is not UTF-8' in message(b'\xff')
    assert 'NaN is not JSON' in message(b'{"prompt": "a", "top_p": NaN}')
    seed = message(b'{"prompt": "a", "seed": 1.5}')
    assert seed.startswith('seed must be an integer from -9223372036854775808')
    assert seed.endswith(', not 1.5.')
    assert message(b'{"prompt": "a", "n": 2.5}') == (
      'n must be an integer from 1 to 8, not 2.5.'
    )


@pytest.mark.parametrize(
  'path, body', [('/v1/completions', {'prompt': 'a'}), ('/reload', {})]
)
@pytest.mark.parametrize('site', ['same-site', 'cross-site', 'odd', ''])
def test_pages_of_other_origins_may_not_change_anything(
  server, path, body, site
):
  """A page on another port of this host is of the same site."""
  own = f'http://127.0.0.1:{server.port}'
  other = {'origin': 'http://127.0.0.1:1', 'sec-fetch-site': site}
  with server.client() as http:
    refused = http.post(path, json=body, headers=other)
    assert refused.status_code == 403
    assert refused.json()['error']['code'] == 'cross_site'
    for headers in (
      {'origin': own, 'sec-fetch-site': 'same-origin'},
      {'sec-fetch-site': 'none'},
    ):
      assert http.post(path, json=body, headers=headers).status_code == 200
