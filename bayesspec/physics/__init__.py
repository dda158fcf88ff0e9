"""Doppler shift, extinction by dust, and flux calibration."""
