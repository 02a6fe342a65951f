"""Training runs whose formats a policy chooses."""
