"""What Darkroom costs, measured."""
