"""Callbacks for training loops of other libraries, each on that library's public interface: see docs/integrations.md."""
