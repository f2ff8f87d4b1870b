"""The server itself, by gRPC: both versions of the protocol, TLS, and what is no request."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from crossplane.function.proto.v1 import run_function_pb2_grpc as grpcv1
from crossplane.function.proto.v1beta1 import run_function_pb2 as fnv1beta1
from crossplane.function.proto.v1beta1 import run_function_pb2_grpc as grpcv1beta1

from function import fn
from function.render import EXAMPLES, load, request
from tests.bench.servers import METHOD, Target, certificates
from tests.tools.crossplane import Server, function_server

REQUEST = request(load(EXAMPLES / "lmcache" / "tier.yaml")[0])
MODULE = "function"


@pytest.fixture(scope="module", params=["8", "0"], ids=["replay", "no replay"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with function_server(MODULE, "--insecure", f"--replay-mib={request.param}") as server:
        yield server


def test_both_versions_of_the_protocol_are_served(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = grpcv1.FunctionRunnerServiceStub(channel)  # type: ignore[no-untyped-call]
        beta = grpcv1beta1.FunctionRunnerServiceStub(channel)  # type: ignore[no-untyped-call]
        expected = fn.run(REQUEST)
        for _ in range(2):
            assert stub.RunFunction(REQUEST) == expected
            answer = beta.RunFunction(fnv1beta1.RunFunctionRequest.FromString(REQUEST.SerializeToString()))
            assert answer.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def test_what_is_no_request_is_refused_and_the_server_goes_on(server: Server) -> None:
    target = Target("function", server.address)
    with pytest.raises(grpc.RpcError) as error:
        target.answer(b"\xff\xff\xff")
    assert error.value.code() is grpc.StatusCode.UNKNOWN
    assert target.answer(REQUEST.SerializeToString()) == fn.run(REQUEST)


def test_only_who_has_a_certificate_is_answered(tmp_path: Path) -> None:
    folder = certificates(tmp_path)
    with function_server(MODULE, f"--tls-server-certs-dir={folder}") as server:
        assert Target("function", server.address, certificates=folder).answer(REQUEST.SerializeToString())
        options = (("grpc.ssl_target_name_override", "localhost"),)
        ca = grpc.ssl_channel_credentials((folder / "ca.crt").read_bytes())
        for channel in (grpc.insecure_channel(server.address), grpc.secure_channel(server.address, ca, options)):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            with channel, pytest.raises(grpc.RpcError):
                call(REQUEST.SerializeToString(), timeout=10)


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        subprocess.run(
            [sys.executable, "-m", "function", "--replay-mib=-1"], check=True, capture_output=True, text=True
        )
    assert "--replay-mib" in error.value.stderr
