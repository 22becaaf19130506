"""Load tests of text models on Triton: requests, what is measured of them, and a verdict.

The parts know only what stands above them in this list:

    errors, schema, data      what may be sent, checked before any load
    record, measure           what is kept of a run: histograms, series, the record itself
    clients                   one request over HTTP, as a stream or over gRPC, with its times
    arrivals                  when requests start
    objectives                what a good server does, and the verdict
    options                   what is added to Locust's command line
    session                   what one process sends and knows of the test
    watches, workers          what is looked at while it runs; a master and its workers
    verdict                   its end
    startup, users            its way into Locust, and Locust's users
    search, sizing, steps     the capacity of one replica: which load next, what follows from it
    capacity                  its command line

Where Locust or gevent promise nothing, `locust_bridge` stands between them and all of these.
"""

VERSION = "0.1.0"
