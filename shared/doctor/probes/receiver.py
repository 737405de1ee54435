"""Asks the receiver on this machine, on both its ports. The receiver stores nothing because of that."""

import http.client
import json
import socket
import ssl
import time
from base64 import b64encode
from contextlib import suppress

from prometheus_client.parser import text_string_to_metric_families

from shared.doctor.openim_config import Target
from shared.doctor.receiver import Answers, Certificate, Reach, ReceiverFacts
from shared.errors import Unavailable
from shared.observe.here import ask_receiver, read, url_host
from shared.settings import Settings

ANSWER_SECONDS = 2.0
BETWEEN_SECONDS = 1.0


def ask(settings: Settings) -> ReceiverFacts:
    """Raises nothing, whatever the receiver does."""
    readiness, frozen = None, ""
    try:
        readiness = ask_receiver(settings)
    except Unavailable as error:
        frozen = str(error)
    target = Target(
        "https" if settings.tls_cert else "http",
        url_host(settings.host).strip("[]"),
        settings.port,
        settings.callback_path,
        settings.basic_auth,
    )
    reach, detail = reach_of(target)
    shown = certificate(target, settings) if settings.tls_cert and reach != "nobody" else None
    return ReceiverFacts(
        readiness, frozen, target.shown, reach, detail, _answers(settings) if readiness else None, shown
    )


def reach_of(target: Target) -> tuple[Reach, str]:
    """Sends a GET, which a receiver refuses after it has checked credentials, and before it would store anything."""
    headers = {"Connection": "close"}
    if target.credentials:
        headers["Authorization"] = f"Basic {b64encode(target.credentials.encode()).decode()}"
    connection = _connection(target)
    try:
        connection.request("GET", target.path or "/", headers=headers)
        answer = connection.getresponse()
        status = answer.status
        is_ours = _is_refusal(answer.read(65_536), status)
    except TimeoutError:
        return "silent", f"nothing within {ANSWER_SECONDS:g} s"
    except socket.gaierror as error:
        return "nobody", f"its name does not resolve here ({error.strerror})"
    except (ConnectionResetError, BrokenPipeError, ssl.SSLError, http.client.HTTPException, ValueError) as error:
        return "another program", str(error) or type(error).__name__
    except OSError as error:
        return "nobody", str(error.strerror or error)
    finally:
        connection.close()
    known: dict[int, Reach] = {405: "ours", 401: "wrong credentials", 403: "not from here"}
    return known.get(status, "another program") if is_ours else "another program", f"status {status}"


def _is_refusal(body: bytes, status: int) -> bool:
    """Whether it has the form of a receiver's refusals."""
    try:
        said = json.loads(body)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("errCode") == status


def _connection(target: Target) -> http.client.HTTPConnection:
    if target.scheme == "http":
        return http.client.HTTPConnection(target.host, target.port, timeout=ANSWER_SECONDS)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # `certificate` checks it
    return http.client.HTTPSConnection(target.host, target.port, timeout=ANSWER_SECONDS, context=context)


def _answers(settings: Settings) -> Answers | None:
    """From two readings of its metrics; None if nothing was answered yet, or the metrics cannot be read."""
    with suppress(OSError, ValueError):
        count_before, seconds_before = _read_answers(settings)
        began = time.monotonic()
        time.sleep(BETWEEN_SECONDS)
        count, seconds = _read_answers(settings)
        took = time.monotonic() - began
        if count:
            return Answers(seconds / count, (seconds - seconds_before) / took, (count - count_before) / took)
    return None


def _read_answers(settings: Settings) -> tuple[float, float]:
    """How many callbacks were accepted, and how many seconds their answers took."""
    text = read(settings.admin_host, settings.admin_port, "/metrics", ANSWER_SECONDS).decode()
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "presence_answer_seconds"
        for sample in family.samples
    }
    return samples.get("presence_answer_seconds_count", 0.0), samples.get("presence_answer_seconds_sum", 0.0)


def certificate(target: Target, settings: Settings, *, check_name: bool = False) -> Certificate:
    """The running receiver's certificate. A private one is trusted here; OpenIM's machine may not trust it.

    check_name: the target is the name that OpenIM uses.
    """
    context = ssl.create_default_context()
    context.check_hostname = check_name
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.tls_cert:
        with suppress(OSError):
            context.load_verify_locations(settings.tls_cert)
    connection = http.client.HTTPSConnection(target.host, target.port, timeout=ANSWER_SECONDS, context=context)
    try:
        connection.connect()
        shown = connection.sock.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Certificate(trouble=error.verify_message)
    except OSError:
        return Certificate()
    finally:
        connection.close()
    ends = shown.get("notAfter")
    return Certificate(ends_at=ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None)
