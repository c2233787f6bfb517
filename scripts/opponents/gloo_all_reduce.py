#!/usr/bin/env python3
"""One rank of an all-reduce of fp32 values by torch.distributed over gloo: what scripts/merge_network measures a merge beside.

  gloo_all_reduce.py --rank R --hosts 4 --mebibytes 16 --master HOST:PORT --interface eth0 [--rounds 3]

Rank 0 prints {"seconds": the best round's time} as its last line. The network is the caller's; needs torch.
"""

import argparse
import json
import os
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--mebibytes", type=int, default=16)
    parser.add_argument("--master", required=True)
    parser.add_argument("--interface", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["GLOO_SOCKET_IFNAME"] = options.interface
    import torch
    import torch.distributed as distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://{options.master}", rank=options.rank, world_size=options.hosts)
    values = torch.randn(options.mebibytes * 2**20 // 4)
    distributed.all_reduce(values[:1024].clone())  # the connections are there before the time begins
    best = float("inf")
    for _ in range(options.rounds):
        distributed.barrier()
        begin = time.monotonic()
        distributed.all_reduce(values)
        distributed.barrier()
        best = min(best, time.monotonic() - begin)
    if options.rank == 0:
        print(json.dumps({"seconds": best}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
