"""What a model is on paper: parameters, settings, specification, config.pbtxt.

Pure data, without torch and without Triton. Imports only the ground modules (errors, runtime).
"""
