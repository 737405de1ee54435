"""Events of a gateway whose clock is ahead: they count as of the time at which the receiver took them.

OpenIM's seq is the gateway's clock. A seq in the future would win until the future comes: after an offline event all
others would be stale, and an online session could neither be closed nor renewed.

Pure: no clock, no Redis.
"""

from shared.events import Event

#: The accepted difference between the clocks of gateways and receivers, network delay included.
LEAD_MOST_MS = 60_000
#: A seq in this range is a time in milliseconds, from the years 2001 to 2286. OpenIM sends no others.
CLOCK_LEAST, CLOCK_MOST = 10**12, 10**13


def is_ahead(event: Event) -> bool:
    return event.seq > event.received_at + LEAD_MOST_MS and CLOCK_LEAST <= event.seq <= CLOCK_MOST


def correct(event: Event) -> Event:
    """The event as it counts and is stored. This depends on the event alone, so a repeated delivery gives the same."""
    return event._replace(seq=event.received_at) if is_ahead(event) else event
