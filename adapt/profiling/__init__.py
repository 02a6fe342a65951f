"""What a network costs on a machine: model cards, and measurements of the processor at hand."""
