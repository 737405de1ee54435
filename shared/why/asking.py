"""Asks OpenIM itself about one user, as `presence reconcile` does, and changes nothing."""

import asyncio

from redis.exceptions import RedisError

from shared.openim.client import OpenIM
from shared.openim.errors import OpenIMError
from shared.queue import open_queue
from shared.redis.client import connect
from shared.settings import Settings, without_password
from shared.truth.questions import Questions, Servers
from shared.why.facts import OpenIMSays


def ask(settings: Settings, user_id: str, seconds: float) -> OpenIMSays:
    """seconds: for OpenIM and both servers together. If something goes wrong, the answer says so."""
    try:
        return asyncio.run(asyncio.wait_for(_ask(settings, user_id, seconds / 2), seconds))
    except OpenIMError as error:
        return OpenIMSays(trouble=str(error))
    except TimeoutError:
        return OpenIMSays(trouble=f"{name(settings)} does not answer within {seconds:g} s")
    except RedisError as error:
        return OpenIMSays(trouble=f"{name(settings)} was not asked, because of Redis: {error}")


def name(settings: Settings) -> str:
    return f"OpenIM at {without_password(settings.openim_api)}"


async def _ask(settings: Settings, user_id: str, redis_seconds: float) -> OpenIMSays:
    presence, queue = (connect(url, timeout=redis_seconds) for url in (settings.redis_url, settings.queue_url))
    with presence, queue:
        servers = Servers(presence, open_queue(queue, settings), settings.keys)
        async with OpenIM(settings.openim_api, settings.openim_secret, settings.openim_admin) as openim:
            answer = await Questions(openim, servers).ask([user_id])
            ours = answer.known.get(user_id)
            # That question leaves out a user whose key cannot be read.
            shown = answer.theirs[user_id].platforms if ours else (await openim.platforms([user_id])).get(user_id, {})
            recorded = None if openim.is_old else (await openim.recorded([user_id])).get(user_id, [])
            return OpenIMSays(
                tuple(sorted(shown)),
                None if recorded is None else tuple(sorted(recorded)),
                is_comparable=ours is not None,
                verdict=answer.judge(ours) if ours else None,
            )
