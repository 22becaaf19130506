"""What the charts promise, tested on rendered YAML."""
