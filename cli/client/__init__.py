"""The HTTP client, sync and async: typed by the API's own schemas, without torch, FastAPI or SQLAlchemy."""

from cli.client.asynchronous import AsyncClient as AsyncClient
from cli.client.blocking import Client as Client
from cli.client.blocking import Job as Job
from cli.client.errors import ApiError as ApiError
from cli.client.errors import CorruptDownload as CorruptDownload
from cli.client.errors import Unreachable as Unreachable
from cli.client.errors import UploadInterrupted as UploadInterrupted
from cli.client.handles import AsyncJob as AsyncJob
