"""Kernels that start at once: each is forked from one process that has the large libraries loaded.

Ninety notebooks that each import torch, transformers, peft and trl spend seven seconds apiece on
it. `forked_kernels()` makes Jupyter fork its kernels instead of starting them; what a notebook
imports of this project is still read afresh, from the PYTHONPATH that it is run with.
"""

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

# None of them imports pyplot, which asks at its import whether it is in a kernel.
LIBRARIES = """
ipykernel.kernelapp numpy pandas scipy.optimize torch torch.distributed.fsdp datasets
transformers.modeling_utils transformers.trainer transformers.models.clip.modeling_clip
transformers.models.hubert.modeling_hubert transformers.models.qwen2.modeling_qwen2 peft
trl.trainer.grpo_trainer trl.trainer.sft_trainer cv2 av soundfile fastcore.all
""".split()  # the kernel first: others ask whether it is there


def run_kernel(args, env, cwd):
    "In the forked process: what `python -m ipykernel_launcher` does, in the given surroundings"
    import numpy as np
    from ipykernel.kernelapp import launch_new_instance

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env, JPY_PARENT_PID=str(os.getppid()))
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["ipykernel_launcher", *args]
    random.seed()
    np.random.seed()  # else every kernel would draw the same numbers where a seed is forgotten
    launch_new_instance(argv=args)


def serve():
    "Load the libraries; then fork a kernel for each line of standard input, and print its process"
    kernel = SimpleNamespace(config={"IPKernelApp": {}})  # libraries ask at import: is it one?
    with patch("IPython.get_ipython", lambda: kernel):
        for name in LIBRARIES:
            importlib.import_module(name)
    sys.path[:] = [p for p in sys.path if p and Path(p) != Path(__file__).parent.parent]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that kernels that end do not linger
    for line in sys.stdin:
        pid = os.fork()
        os.setpgid(pid, pid)  # Jupyter interrupts and kills a kernel with its whole group
        if not pid:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            sys.stdin = open(os.devnull, encoding="utf-8")
            sys.stdout = open(os.devnull, "w", encoding="utf-8")
            run_kernel(*json.loads(line))
            os._exit(0)
        print(pid, flush=True)


class Kernel:
    "What Jupyter asks of a process, for one that is not our child"

    stdin = stdout = stderr = None

    def __init__(self, pid):
        self.pid = pid

    def poll(self):
        "None while it runs"
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return 0

    def send_signal(self, signum):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def forked_kernels():
    "While it lasts, Jupyter's kernels are forked; the process they come from starts with the first"
    server = None

    def launch(cmd, env=None, cwd=None, **_):
        nonlocal server
        server = server or subprocess.Popen(
            [sys.executable, "-m", "tools.kernels"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        )
        args = cmd[cmd.index("ipykernel_launcher") + 1 :]
        server.stdin.write(json.dumps([args, dict(env or os.environ), cwd or os.getcwd()]) + "\n")
        server.stdin.flush()
        return Kernel(int(server.stdout.readline()))

    try:
        with patch("jupyter_client.provisioning.local_provisioner.launch_kernel", launch):
            yield
    finally:
        if server:
            server.stdin.close()
            server.wait()


if __name__ == "__main__":
    serve()
