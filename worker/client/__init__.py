"""The client for Python producers: it publishes requests and awaits flow run records. It knows no
database, and changes nothing in its user's process.
"""

from worker.client.client import CreateOutcome as CreateOutcome
from worker.client.client import DeploymentRunFields as DeploymentRunFields
from worker.client.client import FlowRunClient as FlowRunClient
from worker.client.client import FlowRunFields as FlowRunFields
from worker.client.errors import AccessRefused as AccessRefused
from worker.client.errors import BrokerGone as BrokerGone
from worker.client.errors import ClientError as ClientError
from worker.client.errors import Conflict as Conflict
from worker.client.errors import FlowRunRefused as FlowRunRefused
from worker.client.errors import InvalidFlowRun as InvalidFlowRun
from worker.client.errors import InvalidURL as InvalidURL
from worker.client.errors import MessageRefused as MessageRefused
from worker.client.errors import NoReply as NoReply
from worker.client.errors import NotFound as NotFound
from worker.client.errors import NotRoutable as NotRoutable
from worker.client.errors import NotSerializable as NotSerializable
from worker.client.errors import NotTaken as NotTaken
from worker.client.errors import UnreadableReply as UnreadableReply
