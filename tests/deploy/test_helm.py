"""The Helm chart, rendered by Helm itself: it equals ``deploy/k8s``, and keeps to Kubernetes' own
schemas. It needs no cluster.
"""

import json
from functools import cache
from itertools import chain
from typing import Any

import kubernetes_validate
import pytest
import yaml

import worker
from tests.support import helm
from tests.support.kubernetes import VERSIONS, Manifest, build, pods, the
from tests.support.worker_process import ROOT
from worker.contract.plain import PlainMessages
from worker.settings import PREFIX, Settings

EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example/flow-run-worker", "tag": "1.2.3", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "secrets": {
        "worker": "orders",
        "owner": "orders-owner",
        "amqpUrl": {"name": "rabbitmq-default-user", "key": "connection_string"},
        "managementUrl": {"key": "management"},
        "ownerDatabaseUrl": {"name": "cluster-app", "key": "uri"},
    },
    "passwordFiles": {"secret": "orders-passwords", "keys": ["amqp-password", "prefect-api-auth-string"]},
    "databaseKind": "standalone",
    "settings": {"WORKER_QUEUE": "orders.create", "WORKER_PREFETCH_SIZE": "33554432"},
    "shutdownTimeout": 60,
    "env": [{"name": "OTEL_SERVICE_NAME", "value": "orders"}],
    "extraEnvVars": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
    "extraEnvVarsCM": "more-settings",
    "extraEnvVarsSecret": "more-secrets",
    "extraVolumes": [{"name": "authority", "configMap": {"name": "private-authority"}}],
    "extraVolumeMounts": [{"name": "authority", "mountPath": "/etc/authority", "readOnly": True}],
    "podAnnotations": {"sidecar.istio.io/inject": "false"},
    "podLabels": {"team": "orders"},
    "priorityClassName": "important",
    "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": 1000},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]
            }
        }
    },
    "topologySpreadConstraints": [
        {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"},
        {
            "maxSkew": 1,
            "topologyKey": "zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"team": "orders"}},
        },
    ],
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/orders"}},
    "metrics": {
        "podMonitor": {"enabled": True, "interval": "10s", "labels": {"release": "prometheus"}},
        "serviceMonitor": {"enabled": True},
    },
    "resources": {"requests": {"cpu": "1", "memory": "256Mi"}, "limits": {"memory": "256Mi"}},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "egress": [
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
            {"ports": [{"port": 53, "protocol": "UDP"}]},
        ],
    },
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "queue", "operator": "Exists"}],
}
SCALED: dict[str, Any] = {
    "databaseKind": "prefect",
    "secrets": {"scalerAmqpUrl": {"key": "url"}},
    "replicas": 3,
    "keda": {"enabled": True, "minReplicaCount": 1, "maxReplicaCount": 4, "requests": 1_000_000},
}
# These have schemas of their own.
CUSTOM = {"PodMonitor", "ServiceMonitor", "ScaledObject", "TriggerAuthentication"}


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    try:
        helm.install()
    except helm.HelmMissing as why:
        pytest.skip(f"Helm can't be had here: {why}")


def render(values: dict[str, Any] | None = None, name: str = "flow-run-worker") -> list[Manifest]:
    return list(_render(json.dumps(values or {}), name))


@cache
def _render(values: str, name: str) -> list[Manifest]:
    texts = helm.render(json.loads(values), name).items()
    found = [yaml.safe_load_all(text) for path, text in texts if path.endswith(".yaml")]
    return [each for each in chain.from_iterable(found) if each]


def test_helm_has_nothing_to_say_against_the_chart() -> None:
    report = helm.lint()
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [{}, EVERYTHING, SCALED])
def test_chart_keeps_to_the_schemas(values: dict[str, Any], version: str) -> None:
    for manifest in render(values):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("kustomization", "values"),
    [
        ("base", {}),
        ("overlays/prefect", {"databaseKind": "prefect"}),
        ("overlays/keda", {"keda": {"enabled": True}}),
    ],
)
def test_chart_gives_what_the_kustomization_gives(kustomization: str, values: dict[str, Any]) -> None:
    """Names of labels, the image's tag and the migration's account may differ. The account does not
    exist before the first release. The overlay's settings for its server are given as values.
    """
    built = build(kustomization)
    settings = dict(the("ConfigMap", built)["data"])
    own = ("WORKER_DATABASE_KIND", "WORKER_SHUTDOWN_TIMEOUT")
    added = {name: settings[name] for name in settings.keys() - set(own) - _defaults().keys()}
    more = the("Deployment", built)["spec"]["template"]["spec"]["containers"][0]["env"][3:]  # after the URLs
    rendered = render({**values, "settings": added, "extraEnvVars": more})
    assert sorted(each["kind"] for each in rendered) == sorted(each["kind"] for each in built)
    assert the("ConfigMap", rendered)["data"] == settings
    custom = CUSTOM & {each["kind"] for each in built}
    for each in ("Deployment", "PodDisruptionBudget", "Service", "NetworkPolicy", *custom):
        assert _without_labels(the(each, rendered)["spec"]) == _without_labels(the(each, built)["spec"]), each
    for ours, theirs in zip(pods(rendered), pods(built), strict=True):
        assert _without_labels(ours) == _without_labels(theirs)


def _defaults() -> dict[str, str]:
    settings: dict[str, str] = yaml.safe_load((helm.CHART / "values.yaml").read_text())["settings"]
    return settings


def _without_labels(value: Any) -> Any:
    """A manifest without the parts that may differ."""
    differs = ("labels", "matchLabels", "selector", "annotations", "image", "imagePullPolicy")
    if isinstance(value, list):
        return [_without_labels(each) for each in value]
    if isinstance(value, dict):
        job = value.get("restartPolicy") == "OnFailure"
        return {
            name: _without_labels(each)
            for name, each in value.items()
            if name not in differs and not (job and name == "serviceAccountName")
        }
    return value


def test_each_value_arrives() -> None:
    manifests = render(EVERYTHING, "orders")
    deployment = the("Deployment", manifests)
    assert deployment["metadata"]["name"] == "orders"
    assert deployment["spec"]["replicas"] == 3
    for pod in pods(manifests):
        (container,) = pod["containers"]
        assert container["image"] == "registry.example/flow-run-worker:1.2.3"
        assert container["imagePullPolicy"] == "Always"
        for name in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"):
            assert pod[name] == EVERYTHING[name]
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            "fsGroup": 1000,
        }
        assert pod["volumes"][-1:] == EVERYTHING["extraVolumes"]
        assert container["volumeMounts"][-1:] == EVERYTHING["extraVolumeMounts"]
    for kind in ("Deployment", "Job"):
        metadata = the(kind, manifests)["spec"]["template"]["metadata"]
        assert metadata["labels"].items() >= EVERYTHING["podLabels"].items()
        assert metadata["annotations"].items() >= EVERYTHING["podAnnotations"].items()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == 75
    assert container["resources"] == EVERYTHING["resources"]
    assert [next(iter(each.values()))["name"] for each in container["envFrom"]] == [
        "orders",
        "more-settings",
        "more-secrets",
    ]
    assert container["env"][-2:] == EVERYTHING["env"] + EVERYTHING["extraEnvVars"]
    of_chart = container["env"][:-2]
    references = [each["valueFrom"]["secretKeyRef"] for each in of_chart if "value" not in each]
    assert [(each["name"], each["key"]) for each in references] == [
        ("rabbitmq-default-user", "connection_string"),
        ("orders", "database-url"),
        ("orders", "management"),
    ]
    assert {each["name"]: each["value"] for each in of_chart if "value" in each} == {
        "WORKER_AMQP_PASSWORD_FILE": "/run/secrets/flow-run-worker/amqp-password",
        "WORKER_PREFECT_API_AUTH_STRING_FILE": "/run/secrets/flow-run-worker/prefect-api-auth-string",
    }
    (mount, _), (volume, _) = container["volumeMounts"], pod["volumes"]
    assert (mount["mountPath"], mount["name"]) == ("/run/secrets/flow-run-worker", volume["name"])
    assert volume["secret"]["secretName"] == "orders-passwords"
    migration = the("Job", manifests)["spec"]["template"]["spec"]["containers"][0]["env"][0]
    assert migration["valueFrom"]["secretKeyRef"] == {"name": "cluster-app", "key": "uri"}
    account = the("ServiceAccount", manifests)["metadata"]
    assert (account["name"], pod["serviceAccountName"]) == ("orders", "orders")
    assert account["annotations"] == EVERYTHING["serviceAccount"]["annotations"]
    ours, given = pod["topologySpreadConstraints"]
    assert ours.pop("labelSelector") == deployment["spec"]["selector"]
    assert [ours, given] == EVERYTHING["topologySpreadConstraints"]
    settings = the("ConfigMap", manifests)["data"]
    assert settings.items() >= EVERYTHING["settings"].items()
    assert (settings["WORKER_SHUTDOWN_TIMEOUT"], settings["WORKER_DATABASE_KIND"]) == ("60", "standalone")
    assert {name.removeprefix(PREFIX).lower() for name in settings} <= Settings.model_fields.keys()


def test_monitors_meet_the_workers_port() -> None:
    manifests = render(EVERYTHING)
    port = {"port": the("Service", manifests)["spec"]["ports"][0]["name"]}
    expected = {"PodMonitor": ("podMetricsEndpoints", "10s"), "ServiceMonitor": ("endpoints", "30s")}
    template = the("Deployment", manifests)["spec"]["template"]
    assert [{"port": each["name"]} for each in template["spec"]["containers"][0]["ports"]] == [port]
    met = {"PodMonitor": template, "ServiceMonitor": the("Service", manifests)}
    for kind, (endpoints, interval) in expected.items():
        spec = the(kind, manifests)["spec"]
        labels = met[kind]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert labels[spec["jobLabel"]] == "flow-run-worker"  # as in the alerts
        assert spec[endpoints] == [{**port, "interval": interval}]
    assert the("PodMonitor", manifests)["metadata"]["labels"]["release"] == "prometheus"


def test_scaler_takes_its_values() -> None:
    manifests = render(SCALED, "orders")
    assert "replicas" not in the("Deployment", manifests)["spec"]
    scaled = the("ScaledObject", manifests)["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (1, 4)
    assert scaled["scaleTargetRef"] == {"name": the("Deployment", manifests)["metadata"]["name"]}
    assert scaled["fallback"]["replicas"] == 3
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["value"] == "1000000"
    (target,) = the("TriggerAuthentication", manifests)["spec"]["secretTargetRef"]
    assert target == {"parameter": "host", "name": "flow-run-worker-scaler", "key": "url"}


def test_account_of_others_is_the_migrations_too() -> None:
    manifests = render({"serviceAccount": {"create": False, "name": "mine"}})
    assert "ServiceAccount" not in {each["kind"] for each in manifests}
    assert [pod["serviceAccountName"] for pod in pods(manifests)] == ["mine", "mine"]


def test_values_of_plain_messages_are_right_settings() -> None:
    given = yaml.safe_load((ROOT / "deploy/helm/plain-messages.yaml").read_text())
    settings = the("ConfigMap", render(given))["data"]
    assert settings["WORKER_DATABASE_KIND"] == "prefect"
    loaded = Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in settings.items()})
    assert loaded.plain_messages == PlainMessages("ship/production")
    assert [str(each) for each in loaded.queue_names.bindings] == ["orders:order.created"]


def test_selectors_of_two_releases_meet_their_own_workers_alone() -> None:
    one, other = render(name="one"), render(name="other")
    workers = the("Deployment", one)["spec"]["template"]["metadata"]["labels"].items()
    migration = the("Job", one)["spec"]["template"]["metadata"]["labels"].items()
    for manifests, meets in ((one, True), (other, False)):
        for kind in ("Deployment", "PodDisruptionBudget", "Service"):
            selector = the(kind, manifests)["spec"]["selector"]
            labels = selector.get("matchLabels", selector).items()
            assert (labels <= workers) is meets
            assert not labels <= migration


def test_network_policy_is_of_this_release_and_says_what_it_is_told() -> None:
    plain = render(name="one")
    policy = the("NetworkPolicy", plain)["spec"]
    for kind in ("Deployment", "Job"):
        labels = the(kind, plain)["spec"]["template"]["metadata"]["labels"].items()
        assert policy["podSelector"]["matchLabels"].items() <= labels
        others = the(kind, render(name="other"))["spec"]["template"]["metadata"]["labels"].items()
        assert not policy["podSelector"]["matchLabels"].items() <= others
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    policy = the("NetworkPolicy", render(EVERYTHING))["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"][0]["from"] == EVERYTHING["networkPolicy"]["from"]
    assert policy["egress"] == EVERYTHING["networkPolicy"]["egress"]
    without = render({"networkPolicy": {"enabled": False}})
    assert "NetworkPolicy" not in {each["kind"] for each in without}


def test_changed_setting_starts_new_pods() -> None:
    def annotations(**values: Any) -> Any:
        return the("Deployment", render(values))["spec"]["template"]["metadata"]["annotations"]

    assert annotations(settings={"WORKER_LOG_LEVEL": "debug"}) != annotations()
    assert annotations(replicas=5) == annotations()


def test_scaler_may_say_how_many_there_are() -> None:
    assert "replicas" not in the("Deployment", render({"replicas": None}))["spec"]
    assert the("Deployment", render({"replicas": 0}))["spec"]["replicas"] == 0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 3}, "replica"),
        ({"settings": {"WORKER_AMQP_URL": "amqp://in-plain-text"}}, "WORKER_AMQP_URL"),
        ({"settings": {"LOG_LEVEL": "debug"}}, "LOG_LEVEL"),
        # Helm would write 6.7108864e+07.
        ({"settings": {"WORKER_PREFETCH_SIZE": 67108864}}, "WORKER_PREFETCH_SIZE"),
        ({"databaseKind": "sqlite"}, "databaseKind"),
        ({"podLabels": {"app.kubernetes.io/name": "other"}}, "app.kubernetes.io/name"),
        ({"secrets": {"amqpUrl": {"secret": "other"}}}, "amqpUrl"),
    ],
)
def test_wrong_value_is_refused_by_its_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm.Refused, match=named):
        helm.render(values)


def test_chart_is_of_this_version_of_the_worker() -> None:
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == worker.__version__
