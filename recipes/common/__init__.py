"""What recipes share: data sets, networks, methods, the training loop, and the records of finished runs."""
