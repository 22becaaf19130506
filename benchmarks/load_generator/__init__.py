"""The load test itself: how true its times are, whether other clients agree, what it can send."""
