"""How the release scales: the signal, the step response, and the panels that show both."""
