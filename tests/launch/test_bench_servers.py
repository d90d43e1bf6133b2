"""launch.bench.serve: servers beside ours, in turns."""

import json
import subprocess
import sys

import pytest

from gpt.errors import UserError
from launch.bench import servers
from tests.support.workdirs import ROOT, launch

# Stands in for llama-server: ready at once, a token for each that is asked for.
FAKE = """#!{python}
import http.server, json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert open(flags['-m'], 'rb').read(4) == b'GGUF'
assert flags['-np'] == '2' and int(flags['-c']) % 2 == 0

class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  def log_message(self, *args): pass
  def do_GET(self):
    self.send_response(200)
    self.send_header('Content-Length', '2')
    self.end_headers()
    self.wfile.write(b'ok')
  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    self.send_response(200)
    self.send_header('Transfer-Encoding', 'chunked')
    self.end_headers()
    event = json.dumps({{'choices': [{{'index': 0, 'text': 'a'}}]}})
    data = f'data: {{event}}\\n\\n'.encode()
    for _ in range(body['max_tokens']):
      self.wfile.write(b'%x\\r\\n' % len(data) + data + b'\\r\\n')
    self.wfile.write(b'0\\r\\n\\r\\n')

place = flags['--host'], int(flags['--port'])
http.server.ThreadingHTTPServer(place, Handler).serve_forever()
"""


def has_git():
  command = ['git', '-C', str(ROOT), 'rev-parse', 'HEAD']
  return not subprocess.run(command, capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.skipif(not has_git(), reason='needs the repository')
def test_another_revision_and_llama_cpp_take_turns_with_ours(
  tmp_path, monkeypatch
):
  binary = tmp_path / 'llama-server'
  binary.write_text(FAKE.format(python=sys.executable))
  binary.chmod(0o755)
  monkeypatch.setenv('LLAMA_CPP', str(binary))
  flags = ['--preset=xs', f'--workdir={tmp_path / "run"}', '--slots=2']
  flags += ['--seconds=0.5', '--rounds=1', '--clients=1,2', '--shares=0.5']
  flags += ['--max_tokens=4', '--scenario=load', '--peer=llama']
  out, _ = launch('bench.serve', *flags, '--before=HEAD')
  line = json.loads(out.splitlines()[-1])
  assert line['machine']['cpu'] and line['exit_code'] == 0
  for peer in ('before', 'llama.cpp'):
    for n in (1, 2):
      mine, theirs = (
        line['rows'][f'{name}closed {n}']['tokens_per_s']
        for name in ('', f'{peer} ')
      )
      ratio = line['ratios'][peer][f'closed {n}']
      assert ratio['tokens_per_s'] == mine / theirs
      assert f'ours / {peer}, closed {n}: ' in out
  assert not any(row['failed'] for row in line['rows'].values())


@pytest.mark.slow
def test_start_up_is_timed_alone(tmp_path):
  flags = ['--preset=xs', f'--workdir={tmp_path / "run"}', '--scenario=start']
  out, _ = launch('bench.serve', *flags, '--server_flag=--slots=1')
  line = json.loads(out.splitlines()[-1])
  assert line['start_programs'] > 0 and 'rows' not in line
  assert 0 < line['start_cached_s'] and 0 < line['start_cold_cpu_s']


def test_a_revision_that_is_not_there_is_one_clear_line(tmp_path):
  with pytest.raises(UserError, match='--before=no-such'):
    servers.checkout('no-such', tmp_path)
