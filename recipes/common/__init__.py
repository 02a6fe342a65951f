"""What several recipes share: data sets, batches, networks and the training loop."""
