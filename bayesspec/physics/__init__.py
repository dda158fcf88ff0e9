"""What happens to a star's light on its way: Doppler shift, dust, flux calibration."""
