"""The receiver of callbacks, behind `stress.callback_server`."""
