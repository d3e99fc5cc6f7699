"""The commands other than the stages."""
