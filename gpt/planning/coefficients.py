"""Constants of law.py, fitted to 63 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.22437,
  'per_parameter': 0.1369,
  'parameter_power': 0.095958,
  'per_byte': 0.33041,
  'byte_power': 0.12792,
  'useful_passes': 4.4493,
  'parameters_per_byte': 0.22992,
  'entropy_power': 1.2526,
  'trend': 1.6164,
  'yield_power': 7.7813,
  'level': -0.16752,
  'pieces': 0.0199,
}
