"""Constants of law.py, fitted to 20 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.56509,
  'per_parameter': 0.080322,
  'parameter_power': 0.28371,
  'per_byte': 0.22427,
  'byte_power': 0.43413,
  'useful_passes': 5.4876,
  'parameters_per_byte': 0.87838,
  'entropy_power': 1.1526,
  'trend': 0.625,
  'level': -0.16918,
  'pieces': 0.021524,
}
