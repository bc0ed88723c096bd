"""Samplers, one file each; ``base`` says what a sampler is."""
