"""What Darkroom costs, measured: `python -m bench`, or `make bench`. README.md says what and how."""
