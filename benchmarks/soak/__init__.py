"""Hours of use in half an hour: does a server get slower, bigger or fuller under a steady load?"""
