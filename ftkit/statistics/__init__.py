"""Pure functions of arrays: intervals, significance, calibration."""
