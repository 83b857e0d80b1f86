"""What Darkroom costs, measured: `python -m bench`, and on a device alone `python -m bench.gpu`."""
