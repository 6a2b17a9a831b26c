"""The client for Python producers: publishes requests and awaits flow run records. Knows no
database, and changes nothing in the program that uses it.
"""

from .client import FlowRunClient as FlowRunClient
from .errors import AccessRefused as AccessRefused
from .errors import BrokerGone as BrokerGone
from .errors import ClientError as ClientError
from .errors import Conflict as Conflict
from .errors import FlowRunRefused as FlowRunRefused
from .errors import InvalidFlowRun as InvalidFlowRun
from .errors import InvalidURL as InvalidURL
from .errors import MessageRefused as MessageRefused
from .errors import NoReply as NoReply
from .errors import NotConfirmed as NotConfirmed
from .errors import NotFound as NotFound
from .errors import NotRoutable as NotRoutable
from .errors import NotSerializable as NotSerializable
from .errors import NotTaken as NotTaken
from .errors import StatesNotTold as StatesNotTold
from .errors import UnreadableReply as UnreadableReply
from .errors import WaitTimedOut as WaitTimedOut
from .fields import DeploymentRunFields as DeploymentRunFields
from .fields import FlowRunFields as FlowRunFields
from .outcomes import CreateOutcome as CreateOutcome
from .outcomes import PublishOutcome as PublishOutcome
