"""What is in the images, what is known against it, and whether the charts keep common policies."""
