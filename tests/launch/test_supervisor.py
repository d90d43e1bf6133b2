"""What a process of a run says when another one has died."""

from launch.supervisor import lost_peer

# Of jax 0.12 (and its form before 0.8), of 0.12.
UNHEALTHY = """F1127 00:40:30.172066   10837 client.h:86] Terminating process \
because the JAX distributed service detected fatal errors. absl::Status: \
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
{tasks}
The tasks have crashed. Check the task logs for an earlier error."""
CLOSED = """F1127 00:39:24.920160    8941 client.h:86] Terminating process \
because the JAX distributed service detected fatal errors. absl::Status: \
UNAVAILABLE: Stream removed (Socket closed)
Additional GRPC error information from remote target coordination_service \
while calling /xla.coordination.CoordinationService/PollForError:"""


def test_the_processes_that_died_are_named():
  assert lost_peer(UNHEALTHY.format(tasks='1'), 15).startswith(
    'process 1 of the run gave no sign of life for 15 s'
  )
  assert lost_peer(UNHEALTHY.format(tasks='1\n3'), 15).startswith(
    'processes 1, 3 of the run'
  )
  older = '/job:jax_worker/replica:0/task:2'
  assert lost_peer(UNHEALTHY.format(tasks=older), 15).startswith('process 2 of')
  assert lost_peer(CLOSED, 15).startswith('process 0 of the run has ended')


def test_other_last_words_are_not_taken_for_a_death():
  assert (
    lost_peer('F1127 00:39:24.92 1 foo.cc:3] Check failed: x == y', 9) == ''
  )
  assert lost_peer('', 9) == ''
