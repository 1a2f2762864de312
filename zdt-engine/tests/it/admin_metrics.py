"""Reads a page of metrics from standard input as Prometheus's own client does, and prints it as JSON."""

import json
import sys

from prometheus_client.parser import text_fd_to_metric_families

samples = {}
for family in text_fd_to_metric_families(sys.stdin):
    assert family.documentation, family.name
    assert family.type in ("counter", "gauge"), family
    for sample in family.samples:
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        key = f"{sample.name}{{{labels}}}"
        assert key not in samples, key
        samples[key] = {"value": sample.value, "type": family.type}
json.dump(samples, sys.stdout)
