"""launch.bench.gpu: parts that fail, hang or are missing, and wheels."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile

import pytest

from launch.bench.device import parts, run, wheels
from launch.bench.device.parts import Part
from tests.support.commands import assert_refused, is_running, run_all
from tests.support.serving_tools import wait_until
from tests.support.workdirs import ROOT, launch

PROBE = 'rgpt_wheel_probe'


@pytest.fixture
def script(monkeypatch):
  """A function that makes a part of a Python script."""
  run = subprocess.Popen

  def make(code: str, seconds: float = 20) -> Part:
    monkeypatch.setattr(
      parts.subprocess,
      'Popen',
      lambda _, **kwargs: run([sys.executable, '-c', code], **kwargs),
    )
    return Part('part', 'none', '', '', seconds)

  return make


def test_a_part_reports_the_last_object_it_has_printed(script):
  part = script('print(\'{"a": 1}\\n[2]\\n{"b": 2}\\nend\')')
  result = parts.measure(part, toy=True, seconds=20)
  assert result['b'] == 2 and 'a' not in result and 'error' not in result


def test_a_part_that_fails_is_reported_with_its_error(script):
  part = script(
    'print(\'{"done": 1}\', flush=True); raise ValueError("broken")'
  )
  result = parts.measure(part, toy=True, seconds=20)
  assert result['error'] == 'exit code 1' and result['done'] == 1
  assert result['stderr'].strip().endswith('ValueError: broken')


def test_a_part_that_hangs_is_ended_with_its_children(script, tmp_path):
  pid = tmp_path / 'pid'
  part = script(
    'import subprocess, time\n'
    'child = subprocess.Popen(["sleep", "600"])\n'
    f'open({str(pid)!r}, "w").write(str(child.pid))\n'
    'print(\'{"begun": true}\', flush=True)\n'
    'time.sleep(600)'
  )
  result = parts.measure(part, toy=True, seconds=4)
  assert result['error'] == 'not done after 4 s' and result['begun']
  # Who is killed still has to die.
  wait_until(lambda: not is_running(int(pid.read_text())))


def test_a_part_without_a_result_is_no_success(script):
  result = parts.measure(script('print("hello")'), toy=True, seconds=20)
  assert result['error'] == 'it printed no JSON'


@pytest.mark.parametrize('toy', [False, True])
def test_a_part_gets_its_flags_of_xla_after_those_of_the_user(
  script, monkeypatch, toy
):
  monkeypatch.setenv('XLA_FLAGS', '--mine')
  part = dataclasses.replace(
    script('import json, os; print(json.dumps(dict(os.environ)))'),
    xla='--theirs',
    share=0.1,
  )
  result = parts.measure(part, toy=toy, seconds=20)
  assert result['XLA_FLAGS'] == ('--mine' if toy else '--mine --theirs')
  assert result['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.1'


def test_every_part_has_a_limit_and_a_program():
  assert all(part.seconds > 0 for part in parts.PARTS)
  for part in parts.PARTS:
    path = ROOT / 'launch' / 'bench' / (part.module.replace('.', '/') + '.py')
    assert path.exists(), part.name


def test_unknown_parts_are_refused():
  (done,) = run_all([['launch.bench.gpu', '--only=chekcs']])
  assert_refused(done, '--only=chekcs: the parts are checks, train_124m')


def test_all_parts_end_in_time_if_every_one_hangs(
  script, tmp_path, monkeypatch
):
  hanging = script(
    'import signal, time\n'
    'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
    'print(\'{"begun": true}\', flush=True)\n'
    'time.sleep(600)',
    seconds=3,
  )
  names = [f'part{i}' for i in range(9)]
  both = [dataclasses.replace(hanging, name=name) for name in names]
  monkeypatch.setattr(parts, 'PARTS', both)
  monkeypatch.setattr(parts, 'GRACE', 1.0)
  # Subprocesses of their own, which the script would replace.
  monkeypatch.setattr(parts, 'find_device', dict)
  monkeypatch.setattr(run.machine, 'facts', dict)
  monkeypatch.setattr(run.machine, 'commit', str)
  path, limit = tmp_path / 'gpu.json', parts.limit
  monkeypatch.setattr(parts, 'limit', lambda p, left, _: limit(p, left, False))
  run.run_parts(11.0, path, [], toy=True)
  report = json.loads(path.read_text())
  assert report['seconds'] < 20  # Each would take 4: 36 together.
  assert [*report['parts']] == names
  first, last = report['parts']['part0'], report['parts']['part8']
  assert first['error'] == 'not done after 3 s' and first['begun']
  assert last['skipped'].endswith(' were left of 11 s')


@pytest.mark.slow
def test_results_are_written_as_they_come(tmp_path):
  path = tmp_path / 'gpu.json'
  args = ['--only=shakespeare_gpu', f'--output={path}', '--toy', '--seconds=90']
  out, _ = launch('bench.gpu', *args)
  line = json.loads(out.splitlines()[-1])
  assert json.loads(path.read_text()) == line
  part = line['parts']['shakespeare_gpu']
  assert part.keys() >= {'step', 'loss', 'best_val_loss', 'wall_s'}, part
  assert part['step'] == 20 and line['toy']


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_parts_pass_on_a_cpu_at_toy_size(tmp_path):
  path = tmp_path / 'gpu.json'
  launch('bench.gpu', f'--output={path}', '--toy')
  report = json.loads(path.read_text())
  assert [*report['parts']] == [part.name for part in parts.PARTS]
  for name, part in report['parts'].items():
    assert not part.keys() & {'error', 'skipped'}, (name, part)
  assert report['parts']['checks']['ok'], report['parts']['checks']


# --- wheels


def make_wheel(folder) -> None:
  info = f'{PROBE}-1.0.dist-info'
  with zipfile.ZipFile(folder / f'{PROBE}-1.0-py3-none-any.whl', 'w') as file:
    file.writestr(f'{PROBE}.py', 'FOUND = True\n')
    file.writestr(
      f'{info}/METADATA',
      f'Metadata-Version: 2.1\nName: {PROBE}\nVersion: 1.0\n',
    )
    file.writestr(
      f'{info}/WHEEL',
      'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n'
      'Tag: py3-none-any\n',
    )
    file.writestr(f'{info}/RECORD', '')


def test_only_packages_that_are_not_installed_are_missing(tmp_path):
  make_wheel(tmp_path)
  (tmp_path / 'numpy-9.9-py3-none-any.whl').touch()
  assert wheels.missing(str(tmp_path)) == [PROBE.replace('_', '-')]
  assert wheels.folder_of(['--toy', '--wheels', 'a']) == 'a'
  assert wheels.folder_of(['--wheels=b']) == 'b'
  assert wheels.folder_of(['--toy']) == ''


@pytest.mark.slow
def test_missing_packages_are_installed_from_the_folder(tmp_path):
  make_wheel(tmp_path)
  code = (
    'from launch.bench.device import wheels\n'
    f'wheels.install_missing(["--wheels={tmp_path}"])\n'
  )
  env = dict(
    os.environ, PIP_TARGET=str(tmp_path / 'site'), PYTHONPATH=str(ROOT)
  )
  subprocess.run([sys.executable, '-c', code], env=env, check=True)
  assert (tmp_path / 'site' / f'{PROBE}.py').exists()


def test_a_folder_that_is_not_there_is_refused():
  (done,) = run_all([['launch.bench.gpu', '--wheels=nowhere']])
  assert done.code == 2
  assert done.err == 'error: --wheels=nowhere is not a directory of wheels\n'
