"""Constants of law.py, fitted to 79 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.3591,
  'per_parameter': 0.12804,
  'parameter_power': 0.049623,
  'per_byte': 0.30657,
  'byte_power': 0.074447,
  'useful_passes': 4.3313,
  'parameters_per_byte': 2.3217,
  'entropy_power': 1.0442,
  'yield_power': 13.545,
  'level': 0.15977,
  'pieces': -0.010146,
}
