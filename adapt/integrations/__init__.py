"""Callbacks for training loops of other libraries, each on its library's public interface; see docs/integrations.md."""
