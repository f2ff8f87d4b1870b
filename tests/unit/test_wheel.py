"""What a user installs: the wheel in an empty environment, and the server that it starts."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from crossplane.function.proto.v1 import run_function_pb2_grpc as grpcv1

from function.render import EXAMPLES, load, request


def test_the_wheel_installs_into_an_empty_environment_and_serves(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={tmp_path}", "."]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "--requirement=requirements/server.txt"], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # From another folder, so that it is the wheel that answers, and not the checkout.
    server = subprocess.Popen([python, "-m", "function", "--insecure", f"--address={address}"], cwd=tmp_path)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
            stub = grpcv1.FunctionRunnerServiceStub(channel)  # type: ignore[no-untyped-call]
            tier = load(EXAMPLES / "lmcache" / "tier.yaml")[0]
            rsp: fnv1.RunFunctionResponse = stub.RunFunction(request(tier))
        assert set(rsp.requirements.resources) == {"attachments", "cluster", "credentials"}
    finally:
        server.terminate()
        assert server.wait(timeout=15) == 0, "SIGTERM ends it in order"


def test_a_server_without_certificates_says_so_and_fails() -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "function"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "no certificates: give --tls-server-certs-dir" in done.stderr
    assert time.monotonic() - start < 60
