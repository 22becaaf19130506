"""A Kubernetes of several nodes on one machine, made of Linux namespaces and kubeadm."""
