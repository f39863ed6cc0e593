"""Settings for several processes of this machine that talk to each other."""

import contextlib
import functools
import http.server
import json
import socket
import threading


def free_ports(count):
    """Different free ports of 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def jax_variables(num_devices):
    """The environment of a process of JAX on `num_devices` devices of the CPU.

    XLA does not optimise, since compiling takes longer than these programs.
    """
    flags = (
        f"--xla_force_host_platform_device_count={num_devices} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    return {"KERAS_BACKEND": "jax", "XLA_FLAGS": flags}


def process_variables(index, *ports):
    """The environment of one of several processes; the first port is process 0's."""
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    values = {
        "JOB_ADDRESSES": addresses,
        "NUM_PROCESSES": str(len(ports)),
        "PROCESS_ID": str(index),
    }
    names = {f"KERAS_DISTRIBUTION_{name}": value for name, value in values.items()}
    return {**jax_variables(1), **names}


def worker_variables(index, *ports):
    """The environment of one worker of TensorFlow."""
    addresses = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}


@contextlib.contextmanager
def serve_folder(folder):
    """Serves the files of a folder; yields the address of the server."""
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(folder)
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def raw_server(answers, family=socket.AF_INET, host="127.0.0.1"):
    """A server that answers a request for `/name` with what `answers[name]` yields.

    Args:
        answers: dict name -> function without arguments that yields bytes; it may wait.

    Yields:
        The port.
    """
    with socket.create_server((host, 0), family=family) as listening:
        threading.Thread(target=_accept, args=(listening, answers), daemon=True).start()
        yield listening.getsockname()[1]
        # A close alone would leave the thread waiting.
        listening.shutdown(socket.SHUT_RDWR)


def _accept(listening, answers):
    with contextlib.suppress(OSError):
        while True:
            client, _ = listening.accept()
            threading.Thread(
                target=_answer, args=(client, answers), daemon=True
            ).start()


def _answer(client, answers):
    with client, contextlib.suppress(OSError):
        name = client.recv(65536).split(b" ")[1].decode().lstrip("/")
        for part in answers[name]():
            client.sendall(part)
