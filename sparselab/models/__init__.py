"""Models: their structure, how they are loaded, stored and checked."""
