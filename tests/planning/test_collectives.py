"""Communication read from HLO: written by hand, and of a real program."""

import pytest

from gpt.planning.collectives import read

HEAD = 'HloModule jit_step, is_scheduled=true\n\n'
ADD = """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

"""
MESH = "replica_groups=mesh['data'=2,'fsdp'=4,'tensor'=1] "


def program(*lines: str, before: str = '') -> str:
  body = '\n'.join(f'  {line}' for line in lines)
  entry = f'ENTRY %main (p: f32[4,100]) -> f32[4,100] {{\n{body}\n}}\n'
  return f'{HEAD}{ADD}{before}{entry}'


@pytest.mark.parametrize(
  'groups, group',
  [
    (f"{MESH}{{'fsdp'}}", (0, 1, 2, 3)),
    (f"{MESH}{{'data'}}", (0, 4)),
    ('replica_groups=[2,4]<=[8]', (0, 1, 2, 3)),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', (0, 4)),
    ('replica_groups={{0,2},{1,3}}', (0, 2)),
    ('replica_groups={}', tuple(range(8))),
  ],
)
def test_the_group_of_a_collective_is_read_in_every_notation(groups, group):
  (found,) = read(
    program(
      f'%sum = f32[4,100]{{1,0}} all-reduce(%p), {groups}, to_apply=%add',
      'ROOT %out = f32[4,100]{1,0} negate(%sum)',
    ),
    8,
  )
  n = len(group)
  assert (found.kind, found.group, found.times) == ('all-reduce', group, 1)
  assert found.sent == pytest.approx(2 * 1600 * (n - 1) / n)


def test_a_loop_runs_its_collectives_as_often_as_it_turns():
  body = (
    '%body (s: f32[8]) -> f32[8] {\n'
    '  %s = f32[8]{0} parameter(0)\n'
    '  ROOT %g = f32[8]{0} all-gather(%s), replica_groups=[1,4]<=[4], '
    'dimensions={0}\n}\n\n'
  )
  (found,) = read(
    program(
      'ROOT %w = f32[8]{0} while(%p), condition=%add, body=%body, '
      'backend_config={"known_trip_count":{"n":"6"}}',
      before=body,
    ),
    4,
  )
  assert (found.kind, found.times) == ('all-gather', 6)
  assert found.sent == pytest.approx(6 * 32 * 3 / 4)


def test_a_sum_of_which_only_a_slice_is_used_is_a_reduce_scatter():
  """Of the two sums, in bfloat16 on other backends, one is sliced."""
  fusion = (
    '%slices (x: f32[4,100], i: s32[]) -> f32[1,100] {\n'
    '  %x = f32[4,100]{1,0} parameter(0)\n'
    '  %i = s32[] parameter(1)\n'
    '  ROOT %d = f32[1,100]{1,0} dynamic-slice(%x, %i, %i)\n}\n\n'
  )
  found = read(
    program(
      '%both = (f32[4,100]{1,0}, /*index=1*/f32[10]{0}) all-reduce(%p, %q), '
      'replica_groups=[1,4]<=[4], to_apply=%add.clone_promoted',
      '%one = f32[4,100]{1,0} get-tuple-element(%both), index=0',
      '%two = f32[10]{0} get-tuple-element(%both), index=1',
      '%c = bf16[4,100]{1,0} convert(%one)',
      '%part = f32[1,100]{1,0} fusion(%c, %i), kind=kLoop, calls=%slices',
      'ROOT %end = (f32[1,100]{1,0}, f32[10]{0}) tuple(%part, %two)',
      before=fusion,
    ),
    4,
  )
  sent = {c.kind: c.sent for c in found}
  assert sent == pytest.approx(
    {'reduce-scatter': 800 * 3 / 4, 'all-reduce': 2 * 20 * 3 / 4}
  )


def test_groups_of_one_device_send_nothing():
  line = 'ROOT %s = f32[9]{0} all-reduce(%p), replica_groups={{0},{1}}'
  assert read(program(line), 2) == []
