"""What ``doctor`` says of what AMQP does not show: the queues' policies, and the binding."""

from collections.abc import AsyncIterator

from yarl import URL

from worker.broker.management import Management, ManagementUnavailable
from worker.broker.policies import command, harms
from worker.broker.topology import Topology
from worker.broker.urls import split_urls, virtual_host
from worker.doctor.finding import Finding, Verdict
from worker.settings import Settings


async def examine_policies(settings: Settings) -> AsyncIterator[Finding]:
    """Ask the broker's management API, where its URL is set; changes nothing."""
    topology = settings.topology
    if settings.management_url is None:
        policy = command(topology, virtual_host(URL(split_urls(settings.amqp_url)[0])))
        yield Finding(
            "policies and binding",
            Verdict.unknown,
            "AMQP does not show whether a policy drops or expires messages, nor whether the queue is bound",
            "Set WORKER_MANAGEMENT_URL. RabbitMQ 4 drops a dead letter that was looked at 20 times, unless "
            f"a policy says otherwise: {policy}",
        )
        return
    try:
        async with Management(settings.management_url, settings.amqp_url) as management:
            for queue in topology.queues:
                for finding in await _policies(management, topology, queue):
                    yield finding
            if topology.exchange is not None and topology.routing_key is not None:
                yield await _binding(management, topology, topology.exchange, topology.routing_key)
    except ManagementUnavailable as error:
        yield Finding(
            "policies and binding",
            Verdict.warning,
            f"not checked: {error}",
            "Check WORKER_MANAGEMENT_URL, and that the broker has the plugin rabbitmq_management.",
        )


async def _policies(management: Management, topology: Topology, queue: str) -> list[Finding]:
    what = f"policy of {queue}"
    seen = await management.queue(queue)
    if seen is None:
        return [Finding(what, Verdict.unknown, "does not stand, or was made some seconds ago")]
    found = list(harms(topology, management.vhost, queue, seen))
    if not found:
        named = seen.get("policy") or "none"
        return [Finding(what, Verdict.ok, f"{named}; nothing drops, expires or limits what is in it")]
    return [
        Finding(what, Verdict.problem if harm.loses else Verdict.warning, harm.text, harm.remedy)
        for harm in found
    ]


async def _binding(management: Management, topology: Topology, exchange: str, routing_key: str) -> Finding:
    if await management.bound(exchange, routing_key, topology.queue):
        return Finding("binding", Verdict.ok, f"{exchange} leads to {topology.queue}")
    return Finding(
        "binding",
        Verdict.problem,
        f"{exchange} does not lead to {topology.queue}: what is published to this exchange reaches nobody",
        "A worker makes it within a minute. If its user may not, run 'flow-run-worker topology declare' as a "
        "user who may.",
    )
