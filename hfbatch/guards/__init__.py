"""`guardrails:` of a job: rules for its rows, before a model sees them and before they are written."""
