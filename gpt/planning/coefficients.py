"""Constants of law.py, fitted to 29 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.84761,
  'per_parameter': 0.054496,
  'parameter_power': 0.44134,
  'per_byte': 0.21766,
  'byte_power': 0.51843,
  'useful_passes': 9.9798,
  'parameters_per_byte': 4.0197,
  'entropy_power': 1.0356,
  'trend': -0.061972,
  'level': -0.22978,
  'pieces': 0.013768,
}
