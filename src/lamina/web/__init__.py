"""HTTP: the OpenAI API over a host's stacks, keys and limits, metrics, logs, the server itself."""
