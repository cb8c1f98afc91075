"""`python -m migrations` upgrades the database of the settings."""

from jobs.settings import Settings
from migrations import upgrade

upgrade(Settings().database_url)
