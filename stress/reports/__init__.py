"""Reports: one `KitReport` as a table, JSON, JUnit, or a page for people."""
