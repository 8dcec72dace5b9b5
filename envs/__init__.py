"""What would happen: cluster and power model, compiled simulator, environments, judges and the agent."""
