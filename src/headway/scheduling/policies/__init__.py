"""One file a policy. Each composes iterations from a view; what they share is `batch_plan`."""
