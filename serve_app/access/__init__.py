"""Who may use the service, and what for."""
