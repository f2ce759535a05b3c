"""`gates:` of a job: what a new output must be like before it takes the place of the last one."""
