"""The Helm chart, rendered by Helm itself: it equals ``deploy/k8s``, and keeps to Kubernetes' own
schemas. It needs no cluster.
"""

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
    "secrets": {"worker": "orders", "owner": "orders-owner"},
    "passwordFiles": {"secret": "orders-passwords", "keys": ["amqp-password", "prefect-api-auth-string"]},
    "databaseKind": "standalone",
    "settings": {"WORKER_QUEUE": "orders.create", "WORKER_PREFETCH_SIZE": "33554432"},
    "shutdownTimeout": 60,
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
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


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    try:
        helm.install()
    except helm.HelmMissing as why:
        pytest.skip(f"Helm can't be had here: {why}")


def render(values: dict[str, Any] | None = None, name: str = "flow-run-worker") -> list[Manifest]:
    texts = helm.render(values, name).items()
    return [yaml.safe_load(text) for path, text in texts if path.endswith(".yaml") and text.strip()]


def test_helm_has_nothing_to_say_against_the_chart() -> None:
    report = helm.lint()
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [{}, EVERYTHING, {"databaseKind": "prefect", "replicas": None}])
def test_chart_keeps_to_the_schemas(values: dict[str, Any], version: str) -> None:
    for manifest in render(values):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(("kustomization", "kind"), [("base", "any"), ("overlays/prefect", "prefect")])
def test_chart_gives_what_the_kustomization_gives(kustomization: str, kind: str) -> None:
    """Names of labels, the image's tag and the migration's account may differ. The account does not
    exist before the first release. The overlay's settings for its server are given as values.
    """
    built = build(kustomization)
    settings = dict(the("ConfigMap", built)["data"])
    own = ("WORKER_DATABASE_KIND", "WORKER_SHUTDOWN_TIMEOUT")
    added = {name: settings[name] for name in settings.keys() - set(own) - _defaults().keys()}
    more = the("Deployment", built)["spec"]["template"]["spec"]["containers"][0]["env"][3:]  # after the URLs
    rendered = render({"databaseKind": kind, "settings": added, "env": more})
    assert sorted(each["kind"] for each in rendered) == sorted(each["kind"] for each in built)
    assert the("ConfigMap", rendered)["data"] == settings
    for each in ("Deployment", "PodDisruptionBudget", "Service", "NetworkPolicy"):
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
        for name in ("imagePullSecrets", "nodeSelector", "tolerations"):
            assert pod[name] == EVERYTHING[name]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == 75
    assert container["resources"] == EVERYTHING["resources"]
    assert container["env"][-1:] == EVERYTHING["env"]
    of_chart = container["env"][:-1]
    secrets = {each["valueFrom"]["secretKeyRef"]["name"] for each in of_chart if "value" not in each}
    assert secrets == {"orders"}
    assert {each["name"]: each["value"] for each in of_chart if "value" in each} == {
        "WORKER_AMQP_PASSWORD_FILE": "/run/secrets/flow-run-worker/amqp-password",
        "WORKER_PREFECT_API_AUTH_STRING_FILE": "/run/secrets/flow-run-worker/prefect-api-auth-string",
    }
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert (mount["mountPath"], mount["name"]) == ("/run/secrets/flow-run-worker", volume["name"])
    assert volume["secret"]["secretName"] == "orders-passwords"
    migration = the("Job", manifests)["spec"]["template"]["spec"]["containers"][0]["env"][0]
    assert migration["valueFrom"]["secretKeyRef"]["name"] == "orders-owner"
    settings = the("ConfigMap", manifests)["data"]
    assert settings.items() >= EVERYTHING["settings"].items()
    assert (settings["WORKER_SHUTDOWN_TIMEOUT"], settings["WORKER_DATABASE_KIND"]) == ("60", "standalone")
    assert {name.removeprefix(PREFIX).lower() for name in settings} <= Settings.model_fields.keys()


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
    ],
)
def test_wrong_value_is_refused_by_its_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm.Refused, match=named):
        helm.render(values)


def test_chart_is_of_this_version_of_the_worker() -> None:
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == worker.__version__
