"""The wire, workers with their engines, and the controller that places them."""
