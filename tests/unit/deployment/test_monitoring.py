"""What watches and scales the replicas of ``deploy/``, held against ``monitoring/rules.yml``."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from repository.store import read_config
from tests.unit.deployment.rendered import DEPLOY, ROOT, pod, the

RULES = yaml.safe_load((ROOT / "monitoring/rules.yml").read_text())["groups"]


def test_the_cluster_has_the_same_rules():
    file = DEPLOY / "kubernetes/components/rules/prometheus-rule.yaml"
    assert yaml.safe_load(file.read_text())["spec"]["groups"] == RULES, "its first lines say how to write it again"


def test_every_overlay_has_the_rules(resources):
    # Kustomize folds long lines in its own way; PromQL does not mind.
    assert folded(the(resources, "PrometheusRule")["spec"]["groups"]) == folded(RULES)


def folded(groups):
    return re.sub(r"(\\n|\s)+", " ", json.dumps(groups, sort_keys=True))


def test_replicas_are_scraped_under_the_job_that_rules_and_autoscaler_know(resources):
    monitors = [each["spec"] for each in resources if each["kind"] in ("ServiceMonitor", "PodMonitor")]
    [monitor] = monitors
    [endpoint] = monitor.get("endpoints") or monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in pod(resources)["spec"]["containers"][0]["ports"]}
    job = next(rule for rule in endpoint["relabelings"] if rule["targetLabel"] == "job")
    if "replacement" in job:
        name = job["replacement"]
    else:
        [service] = [
            each
            for each in resources
            if each["kind"] == "Service"
            and monitor["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
        ]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        name = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
    assert set(re.findall(r'job="([^"]*)"', query(resources))) == {name}
    [pattern] = {
        found for group in RULES for rule in group["rules"] for found in re.findall(r'job=~"([^"]*)"', rule["expr"])
    }
    assert re.fullmatch(pattern, name)


def test_prometheus_is_admitted_from_where_the_autoscaler_queries_it(resources):
    host = trigger(resources)["metadata"]["serverAddress"].split("/")[2].split(":")[0]
    _, namespace, _ = host.split(".")
    metrics = the(resources, "NetworkPolicy")["spec"]["ingress"][1]
    [source] = metrics["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": namespace}
    assert metrics["ports"] in ([{"port": "metrics"}], [{"port": 8002}])


def trigger(resources):
    [found] = the(resources, "ScaledObject")["spec"]["triggers"]
    assert found["type"] == "prometheus"
    return found


def query(resources):
    return trigger(resources)["metadata"]["query"]


def test_the_autoscaler_scales_the_servers_by_a_recorded_series(resources):
    scaled = the(resources, "ScaledObject")["spec"]
    deployments = [each["metadata"]["name"] for each in resources if each["kind"] == "Deployment"]
    # KServe calls its Deployment by the service and the component.
    services = [each for each in resources if each["kind"] == "InferenceService"]
    deployments += [f"{each['metadata']['name']}-predictor" for each in services]
    assert [scaled["scaleTargetRef"]["name"]] == deployments
    for service in services:
        assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
        assert service["spec"]["predictor"]["minReplicas"] == scaled["minReplicaCount"]
    for deployment in (each for each in resources if each["kind"] == "Deployment"):
        assert "replicas" not in deployment["spec"]
    # One replica may always go: nothing is served by what is left otherwise.
    assert scaled["minReplicaCount"] > the(resources, "PodDisruptionBudget")["spec"]["maxUnavailable"]
    recorded = {rule["record"] for group in RULES for rule in group["rules"] if "record" in rule}
    assert set(re.findall(r"\w+:\w+:\w+", query(resources))) <= recorded


def test_replicas_are_added_before_an_alert_and_long_before_requests_are_rejected(resources):
    threshold_s = float(trigger(resources)["metadata"]["threshold"])
    [alert] = [rule for group in RULES for rule in group["rules"] if rule.get("alert") == "QueueTimeHigh"]
    alarm_s = float(alert["expr"].rpartition(">")[2])
    parameters = read_config(ROOT / "model_repository/admission/config.pbtxt").parameters
    refused_s = float(parameters["max_latency_ms"].string_value) / 1000
    assert 0 < threshold_s <= alarm_s / 2 < alarm_s < refused_s


SCALING = """
rule_files: []
evaluation_interval: 15s
tests:
  - name: three replicas, one of them without traffic
    interval: 15s
    input_series:
      - {{series: 'segmentation:queue_seconds:mean1m{{{job}, instance="a"}}', values: 0.3x8}}
      - {{series: 'segmentation:queue_seconds:mean1m{{{job}, instance="b"}}', values: 0.1x8}}
      - {{series: 'segmentation:queue_seconds:mean1m{{job="another", instance="z"}}', values: 9x8}}
      - {{series: 'up{{{job}, instance="a"}}', values: 1x8}}
      - {{series: 'up{{{job}, instance="b"}}', values: 1x8}}
      - {{series: 'up{{{job}, instance="c"}}', values: 1x8}}
    promql_expr_test:
      - {{expr: {query}, eval_time: 1m, exp_samples: [{{labels: '{{}}', value: 0.4}}]}}
  - name: no traffic
    interval: 15s
    input_series:
      - {{series: 'up{{{job}, instance="a"}}', values: 1x8}}
    promql_expr_test:
      - {{expr: {query}, eval_time: 1m, exp_samples: [{{labels: '{{}}', value: 0}}]}}
  - name: Prometheus does not see the servers, so there is no value
    interval: 15s
    input_series:
      - {{series: 'up{{{job}, instance="a"}}', values: 0x8}}
    promql_expr_test:
      - {{expr: {query}, eval_time: 1m, exp_samples: []}}
"""


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is missing; after apt-get install prometheus, make test-unit runs it",
)
def test_the_query_says_what_the_autoscaler_needs(resources, tmp_path):
    quoted = yaml.safe_dump(query(resources), width=10_000, default_style='"').strip()
    [job] = set(re.findall(r'job="[^"]*"', query(resources)))
    file = tmp_path / "scaling.test.yml"
    file.write_text(SCALING.format(job=job, query=quoted))
    result = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert trigger(resources)["metadata"]["ignoreNullValues"] == "false"
    assert trigger(resources)["metricType"] == "AverageValue"  # the sum over replicas is divided by their number
