"""The Grafana dashboards of charts/triton, written in Python.

`python -m dashboards generate` writes them to charts/triton/files/dashboards;
`python -m dashboards verify` fails when what is there differs.
"""
