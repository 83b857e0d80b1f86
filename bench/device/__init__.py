"""The engine on the device at hand: is it exact, does it wait for the device, what does it cost. No Ray here."""
