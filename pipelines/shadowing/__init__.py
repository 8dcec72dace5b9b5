"""What ``pipelines.shadow`` is made of: the log as decisions to learn from, its report, and the guardrails on it."""
