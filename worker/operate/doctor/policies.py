"""The part of ``doctor`` for what AMQP does not show: the queues' policies and the binding."""

from collections.abc import AsyncIterator

from yarl import URL

from worker.broker.management import Management, ManagementUnavailable
from worker.broker.policies import command, harms
from worker.contract.topology import QueueNames
from worker.operate.doctor.finding import Finding, ok, problem, unknown, warning
from worker.settings import Settings
from worker.urls.broker import split_urls, virtual_host


async def examine_policies(settings: Settings) -> AsyncIterator[Finding]:
    """Ask the broker's management API, if its URL is set. Changes nothing."""
    names = settings.queue_names
    if settings.management_url is None:
        policy = command(names, virtual_host(URL(split_urls(settings.amqp_url)[0])))
        yield unknown(
            "policies and binding",
            "AMQP does not show whether a policy drops or expires messages, nor whether the queue is bound",
            "Set WORKER_MANAGEMENT_URL. RabbitMQ 4 drops a dead letter that was looked at 20 times, unless "
            f"a policy says otherwise: {policy}",
        )
        return
    try:
        async with Management(settings.management_url, settings.amqp_url) as management:
            for queue in names.queues:
                for finding in await _policies(management, names, queue):
                    yield finding
            if names.exchange is not None and names.routing_key is not None:
                yield await _binding(management, names, names.exchange, names.routing_key)
    except ManagementUnavailable as error:
        yield warning(
            "policies and binding",
            f"not checked: {error}",
            "Check WORKER_MANAGEMENT_URL, and that the broker has the plugin rabbitmq_management.",
        )


async def _policies(management: Management, names: QueueNames, queue: str) -> list[Finding]:
    what = f"policy of {queue}"
    seen = await management.queue(queue)
    if seen is None:
        return [unknown(what, "does not stand, or was made some seconds ago")]
    found = list(harms(names, management.vhost, queue, seen))
    if not found:
        named = seen.get("policy") or "none"
        return [ok(what, f"{named}; nothing drops, expires or limits its messages")]
    return [(problem if harm.loses else warning)(what, harm.text, harm.remedy) for harm in found]


async def _binding(management: Management, names: QueueNames, exchange: str, routing_key: str) -> Finding:
    if await management.bound(exchange, routing_key, names.queue):
        return ok("binding", f"{exchange} leads to {names.queue}")
    return problem(
        "binding",
        f"{exchange} does not lead to {names.queue}: a request to this exchange reaches nobody",
        "A worker makes it within a minute. If its user may not, run 'flow-run-worker topology declare' as a "
        "user who may.",
    )
