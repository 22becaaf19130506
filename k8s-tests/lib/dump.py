"""Everything one wants to see of a namespace when a test in it failed."""

from __future__ import annotations

from tools import helm
from tools.place import Place


def namespace(here: Place, name: str) -> str:
    """Return objects, events, descriptions and logs of a namespace; never raises."""

    def show(*words: str) -> str:
        try:
            text = helm.run(here, "kubectl", "-n", name, *words, timeout=30)
        except Exception as error:  # a dump must not hide the failure that it explains
            text = str(error)
        return f"$ kubectl {' '.join(words)}\n{text}"

    kinds = "all,pvc,ingress,networkpolicy,endpointslice"
    parts = [
        show("get", kinds, "-o", "wide"),
        show("get", "events", "--sort-by=.lastTimestamp"),
        show("describe", "pods"),
    ]
    for line in show("get", "pods", "-o", "name").splitlines()[1:]:
        parts.append(show("logs", line, "--all-containers", "--prefix", "--tail=80"))
        parts.append(show("logs", line, "--all-containers", "--previous", "--tail=40"))
    return "\n\n".join(parts)
