"""Test your own policy: `check_policy` finds common mistakes and says how to fix them."""

from adapt.testing.policies import check_policy

__all__ = ["check_policy"]
