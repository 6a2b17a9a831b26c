"""The manifests build, and keep to Kubernetes' own schemas; this needs no cluster.

Custom resources (KEDA's, the RabbitMQ cluster operator's) have their own schemas, which are not
validated here.
"""

import re

import kubernetes_validate
import pytest
import yaml

from tests.support.kubernetes import K8S, VERSIONS, build, pods, the
from tests.support.worker_process import ROOT
from worker.settings import PREFIX, Settings

KUSTOMIZATIONS = ("base", "overlays/keda", "overlays/prefect", "rabbitmq-cluster")
NOT_VALIDATED = {"ScaledObject", "TriggerAuthentication", "RabbitmqCluster"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_manifests_keep_to_the_schemas(kustomization: str, version: str) -> None:
    for manifest in build(kustomization):
        if manifest["kind"] not in NOT_VALIDATED:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_example_secrets_are_those_that_the_manifests_ask_for() -> None:
    secrets = list(yaml.safe_load_all((K8S / "secrets.example.yaml").read_text()))
    for secret in secrets:
        kubernetes_validate.validate(secret, VERSIONS[-1], strict=True)
    given = {(each["metadata"]["name"], key) for each in secrets for key in each["stringData"]}
    manifests = build("overlays/keda")
    asked = {
        (variable["valueFrom"]["secretKeyRef"]["name"], variable["valueFrom"]["secretKeyRef"]["key"])
        for pod in pods(manifests)
        for variable in pod["containers"][0]["env"]
    }
    scaler = the("TriggerAuthentication", manifests)["spec"]["secretTargetRef"]
    assert given == asked | {(each["name"], each["key"]) for each in scaler}


def test_pods_have_no_privileges() -> None:
    for pod in pods(build("base")):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_worker_is_probed_and_given_time_to_finish() -> None:
    manifests = build("base")
    pod = the("Deployment", manifests)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    settings = the("ConfigMap", manifests)["data"]
    assert pod["terminationGracePeriodSeconds"] > float(settings["WORKER_SHUTDOWN_TIMEOUT"])


def test_workers_on_prefects_database_make_no_tables() -> None:
    manifests = build("overlays/prefect")
    assert the("ConfigMap", manifests)["data"]["WORKER_DATABASE_KIND"] == "prefect"
    assert "Job" not in {each["kind"] for each in manifests}


def test_workers_on_prefects_database_hand_events_over() -> None:
    manifests = build("overlays/prefect")
    assert the("ConfigMap", manifests)["data"]["WORKER_PREFECT_API_URL"] == "http://prefect-server:4200/api"
    (container,) = the("Deployment", manifests)["spec"]["template"]["spec"]["containers"]
    (login,) = [each for each in container["env"] if each["name"] == "WORKER_PREFECT_API_AUTH_STRING"]
    assert login["valueFrom"]["secretKeyRef"]["optional"] is True


@pytest.mark.parametrize("kustomization", ["base", "overlays/prefect"])
def test_settings_are_the_workers(kustomization: str) -> None:
    manifests = build(kustomization)
    names = set(the("ConfigMap", manifests)["data"])
    names |= {variable["name"] for pod in pods(manifests) for variable in pod["containers"][0]["env"]}
    assert {name.removeprefix(PREFIX).lower() for name in names} <= Settings.model_fields.keys()


def test_selectors_meet_the_workers_and_not_the_migration() -> None:
    manifests = build("base")
    workers = the("Deployment", manifests)["spec"]["template"]["metadata"]["labels"].items()
    migration = the("Job", manifests)["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        the(kind, manifests)["spec"]["selector"] for kind in ("Deployment", "PodDisruptionBudget", "Service")
    ]
    for selector in selectors:
        labels = selector.get("matchLabels", selector).items()
        assert labels <= workers
        assert not labels <= migration


def test_only_the_port_of_health_and_metrics_can_be_reached() -> None:
    manifests = build("base")
    policy = the("NetworkPolicy", manifests)["spec"]
    selector = policy["podSelector"]["matchLabels"].items()
    for kind in ("Deployment", "Job"):
        labels = the(kind, manifests)["spec"]["template"]["metadata"]["labels"].items()
        assert selector <= labels
    assert selector  # without it, the whole namespace would be selected
    assert policy["policyTypes"] == ["Ingress"]
    (container,) = the("Deployment", manifests)["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in container["ports"]] == ["http"]
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]


def test_scaler_scales_the_worker_on_its_queue() -> None:
    manifests = build("overlays/keda")
    deployment = the("Deployment", manifests)
    scaled = the("ScaledObject", manifests)["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["queueName"] == the("ConfigMap", manifests)["data"]["WORKER_QUEUE"]
    assert trigger["authenticationRef"]["name"] == the("TriggerAuthentication", manifests)["metadata"]["name"]


def test_broker_has_three_nodes_for_three_replicas() -> None:
    cluster = the("RabbitmqCluster", build("rabbitmq-cluster"))["spec"]
    assert cluster["replicas"] == 3
    assert "quorum_queue.initial_cluster_size = 3" in cluster["rabbitmq"]["additionalConfig"]


def numbers() -> dict[str, str]:
    """The numbers of the manifests that the table in deploy/README.md must show."""
    base, keda, cluster = build("base"), build("overlays/keda"), build("rabbitmq-cluster")
    deployment, job = the("Deployment", base)["spec"], the("Job", base)["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    (migration,) = job["template"]["spec"]["containers"]
    settings = the("ConfigMap", base)["data"]
    rollout = deployment["strategy"]["rollingUpdate"]
    scaled = the("ScaledObject", keda)["spec"]
    rabbitmq = the("RabbitmqCluster", cluster)["spec"]
    assert rabbitmq["resources"]["requests"]["memory"] == rabbitmq["resources"]["limits"]["memory"]

    def probe(name: str) -> str:
        each = container[name]
        times = f"{each['failureThreshold']} times, every {each['periodSeconds']} s"
        return f"{times}, within {each['timeoutSeconds']} s" if "timeoutSeconds" in each else times

    return {
        "replicas": str(deployment["replicas"]),
        "CPU request": container["resources"]["requests"]["cpu"],
        "CPU limit": container["resources"]["limits"].get("cpu", "none"),
        "memory request": container["resources"]["requests"]["memory"],
        "memory limit": container["resources"]["limits"]["memory"],
        "time to end": f"{pod['terminationGracePeriodSeconds']} s",
        "rollout": f"{rollout['maxSurge']} more, {rollout['maxUnavailable']} fewer",
        "disruption budget": f"{the('PodDisruptionBudget', base)['spec']['maxUnavailable']} away",
        "start-up probe": probe("startupProbe"),
        "liveness probe": probe("livenessProbe"),
        "readiness probe": probe("readinessProbe"),
        "`WORKER_PREFETCH`": settings["WORKER_PREFETCH"],
        "`WORKER_BATCH_MAX`": settings["WORKER_BATCH_MAX"],
        "migration: tries again": f"{job['backoffLimit']} times",
        "migration: kept": f"{job['ttlSecondsAfterFinished']} s",
        "migration: CPU request": migration["resources"]["requests"]["cpu"],
        "migration: memory request": migration["resources"]["requests"]["memory"],
        "migration: memory limit": migration["resources"]["limits"]["memory"],
        "KEDA: workers": f"{scaled['minReplicaCount']} to {scaled['maxReplicaCount']}",
        "KEDA: requests for each worker": scaled["triggers"][0]["metadata"]["value"],
        "KEDA: broker not reached": (
            f"{scaled['fallback']['failureThreshold']} times, then {scaled['fallback']['replicas']}"
        ),
        "RabbitMQ: nodes": str(rabbitmq["replicas"]),
        "RabbitMQ: disk": rabbitmq["persistence"]["storage"],
        "RabbitMQ: CPU and memory": ", ".join(rabbitmq["resources"]["requests"].values()),
        "RabbitMQ: time to end": f"{rabbitmq['terminationGracePeriodSeconds']} s",
    }


def test_page_gives_each_number_of_the_manifests_and_its_reason() -> None:
    section = (ROOT / "deploy/README.md").read_text().partition("## The numbers of the manifests")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section.partition("\n## ")[0], re.MULTILINE)
    assert {what: value for what, value, _ in rows[2:]} == numbers()
    assert all(why.strip() for _, _, why in rows)
