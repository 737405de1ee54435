"""Redis URLs: several hosts, passwords, TLS, and what is said about wrong ones."""

import pytest

from shared.redis.url import Address, parse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis+cluster://one", Address("cluster", (("one", 6379),))),
        (
            "redis+cluster://us%40er:p%2F@one:7000,[::1]:7001,10.0.0.1/0?socket_timeout=3",
            Address(
                "cluster",
                (("one", 7000), ("::1", 7001), ("10.0.0.1", 6379)),
                options={"username": "us@er", "password": "p/", "socket_timeout": 3.0},
            ),
        ),
        (
            "rediss+cluster://:secret@one:1?ssl_ca_certs=%2Fca.pem",
            Address("cluster", (("one", 1),), tls=True, options={"password": "secret", "ssl_ca_certs": "/ca.pem"}),
        ),
        (
            "redis+sentinel://one,two:1/my%2Fservice",
            Address("sentinel", (("one", 26379), ("two", 1)), "my/service", options={"db": 0}),
        ),
        (
            "rediss+sentinel://user:a@[fe80::1%25eth0]:1/main/3?sentinel_password=b%26c&ssl_cert_reqs=none",
            Address(
                "sentinel",
                (("fe80::1%eth0", 1),),
                "main",
                tls=True,
                options={"username": "user", "password": "a", "db": 3, "ssl_cert_reqs": "none"},
                sentinel_options={"password": "b&c"},
            ),
        ),
    ],
)
def test_several_hosts_are_read(url: str, address: Address) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memcached://host", "must begin with redis://"),
        ("redis+clusters://host", "must begin with redis://"),
        ("redis://one:1,two:2/0", "several hosts"),
        ("redis://host/zero", "number of a database"),
        ("redis://host:port/0", "not a Redis URL"),
        ("redis://host/0?no_such_option=1", "the option 'no_such_option', which is not known to be harmless"),
        ("redis://host/0?ssl_ca_certs=x", "does not go with its scheme"),
        ("redis+cluster://", "'' is not host:port"),
        ("redis+cluster://one:1,", "'' is not host:port"),
        ("redis+cluster://one:x", "'one:x' is not host:port"),
        ("redis+cluster://::1:7000", "is not host:port"),
        ("redis+cluster://one:65536", "from 1 to 65535"),
        ("redis+cluster://one/1", "only database 0"),
        ("redis+cluster://one?db=1", "only database 0"),
        ("redis+cluster://one?socket_timeout=soon", "socket_timeout must be a number from 2 to 60"),
        ("redis+cluster://one?encoding=gbk", "the option 'encoding', which is not known to be harmless"),
        ("redis+sentinel://one/main?decode_responses=True", "'decode_responses', which is not known to be harmless"),
        ("redis://host?decode_responses=True", "'decode_responses', which is not known to be harmless"),
        ("redis://host?max_connections=1", "'max_connections', which is not known to be harmless"),
        ("redis://host?protocol=3", "'protocol', which is not known to be harmless"),
        ("redis://host?socket_timeout=0", "socket_timeout must be a number from 2 to 60"),
        ("redis://host?socket_timeout=nan", "socket_timeout must be a number from 2 to 60"),
        ("redis://host?db=-1", "db must be a number from 0"),
        ("rediss://host?ssl_cert_reqs=NONE", "ssl_cert_reqs must be none, optional or required"),
        ("rediss+sentinel://one/main?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs must be none, optional or required"),
        ("rediss+cluster://one?ssl_keyfile=%2Fkey.pem", "ssl_keyfile needs ssl_certfile"),
        ("redis://host?client_name=my+service", "client_name may have neither blanks"),
        ("redis://one..two/0", "each part between its dots"),
        ("redis+cluster://one,two..three", "each part between its dots"),
        ("redis+cluster://one?ssl_ciphers=x", "'ssl_ciphers', which is not known to be harmless"),
        ("redis+sentinel://one,two", "the service.s name at the Sentinels"),
        ("redis+sentinel://one//0", "the service.s name at the Sentinels"),
        ("redis+sentinel://one/main/zero", "number of a database"),
        ("redis+sentinel://one/main/0/1", "number of a database"),
        ("redis+sentinel://one/main?sentinel_pass=x", "unknown option sentinel_pass"),
    ],
)
def test_a_wrong_url_says_what_it_should_be(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        parse(url)
    assert "\n" not in str(error.value)


def test_no_password_is_shown_with_an_address() -> None:
    assert "geheim" not in repr(parse("redis+sentinel://a:geheim@one/main?sentinel_password=geheim"))


@pytest.mark.parametrize(
    "scheme", ["redis://%s/0", "rediss://%s", "redis+cluster://%s", "redis+sentinel://%s/main", "unix://%s/s"]
)
@pytest.mark.parametrize("mark", ["#", "?", "/", "?a=b&", "?a=", "?db=1&b="])
def test_a_password_that_is_not_escaped_is_refused_and_not_shown(scheme: str, mark: str) -> None:
    with pytest.raises(ValueError, match=r"%23|no Redis URL|harmless|host:port|the service") as error:
        parse(scheme % f":first{mark}second@host")
    assert "first" not in str(error.value) and "second" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:1%23%2F%3F%40%3A@host/0",
        "redis://user:p@ss@host:1/2?client_name=a@b&health_check_interval=30&socket_connect_timeout=1&socket_timeout=2",
        "rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false&ssl_ca_certs=/a@b.pem",
        "unix://user:secret@/run/re@dis.sock?db=1",
        "redis+sentinel://one/main?sentinel_password=a@b",
    ],
)
def test_what_is_harmless_is_taken(url: str) -> None:
    parse(url)
