"""The embedded model: a small text-to-image diffusion model of our own, and the scripts that make and measure it."""
