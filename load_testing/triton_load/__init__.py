"""Load tests of text models on Triton: requests, what is measured of them, and a verdict.

The parts know only what stands above them in this list:

    errors, schema, data      what may be sent, checked before any load
    record, measure           what is kept of a run: histograms, series, the record itself
    clients                   one request over HTTP, as a stream or over gRPC, with its times
    arrivals                  when requests start
    objectives                what a good server does, and the verdict
    options, session          Locust's command line and events around all of these
"""

VERSION = "0.1.0"
