"""KAR's task: click models with and without written knowledge."""
