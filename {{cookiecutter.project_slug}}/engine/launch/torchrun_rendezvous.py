"""The rendezvous of the ranks of torchrun, safe against addresses left over from an earlier start."""

import os
import time
from typing import Any


def rendezvous() -> Any:
    """A fresh TCPStore for the ranks of torchrun to initialize from; None on other ranks, and without torchrun.

    torchrun keeps one store for all its restarts, in which a restarted rank may find a stale address: it is refused
    there, or waits for ever. Here each rank asks rank 0 under a fresh token, so that the answer, the port of a new
    store, is of this start. Rank 0 has to keep the returned store, which serves the others.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    import uuid

    from torch.distributed import TCPStore

    rank, size, host = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ["MASTER_ADDR"]
    agent_store, token, store = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False), uuid.uuid4().hex, None
    if rank == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        port, waiting = str(store.port), set(range(1, size))
        while waiting:
            for other in list(waiting):
                if agent_store.check([f"{token} {other}"]):
                    waiting.remove(other)
                elif agent_store.check([f"asks {other}"]):
                    agent_store.set(f"answer {agent_store.get(f'asks {other}').decode()}", f"{port} {token}")
            time.sleep(0.02)
    else:
        agent_store.set(f"asks {rank}", token)
        port, rank0_token = agent_store.get(f"answer {token}").decode().split()
        agent_store.set(f"{rank0_token} {rank}", "heard")
    os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return store
