"""Activations of a corpus on a Ray cluster: a task a piece, then one that checks and joins what they wrote.

    python engines/ray/activations.py --pieces 64 --out /shared/acts -- --model gpt2-xl --file /shared/texts.jsonl --names h.20

What follows `--` are arguments of the program `activations`. The folder, the model and the texts have to be where every
node finds them. Ray's own variable RAY_ADDRESS says which cluster; without it one is started on this machine. The same
command again goes on with what is missing.
"""

import argparse
import subprocess
import sys
import time

import ray


class Killed(Exception):
    """The program was killed: by the memory's guard, an operator, a node that goes away. It goes on where it was."""


class Refused(Exception):
    """The program said no (an unknown name, a line that is no text). It would say so again."""


@ray.remote
def run(command):
    # With the worker its program dies too (setpriv is Linux's): two would be at work on one piece once Ray tries again.
    done = subprocess.run(["setpriv", "--pdeathsig=KILL", *command], stderr=subprocess.PIPE, text=True)
    said = done.stderr.strip()[-2000:]
    if done.returncode < 0:
        raise Killed(f"signal {-done.returncode}; it last said: {said}")
    if done.returncode > 0:
        raise Refused(said)
    return said


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, required=True, help="into how many the corpus is divided: some for each worker")
    parser.add_argument("--out", required=True, help="the folder or object store to write to")
    parser.add_argument("--program", default="activations", help="where it is not on the PATH of the workers")
    parser.add_argument("--cpus", type=float, default=1, help="processors of a piece")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a piece")
    parser.add_argument("--retries", type=int, default=5, help="how often a killed piece is started again; -1: always")
    parser.add_argument("rest", nargs="+", metavar="ARGUMENT", help="for the program, after --")
    return parser.parse_args()


def main():
    options = arguments()
    ray.init(log_to_driver=False)
    # Ray counts a worker that died among the retries by itself; a program that did, because it is asked to.
    task = run.options(
        num_cpus=options.cpus, num_gpus=options.gpus, max_retries=options.retries, retry_exceptions=[Killed]
    )
    command = [options.program, *options.rest, "--out", options.out]
    pieces = {task.remote([*command, "--shard", f"{k}/{options.pieces}"]): k for k in range(options.pieces)}
    began, waiting, failed = time.monotonic(), list(pieces), []
    while waiting:
        (done,), waiting = ray.wait(waiting)
        try:
            said = ray.get(done)
        except ray.exceptions.RayError as error:
            # The others go on: what they write is kept.
            failed.append(pieces[done])
            said = f"failed: {error}"
        finished = f"{len(pieces) - len(waiting)} of {len(pieces)}"
        print(f"[{time.monotonic() - began:7.1f} s] {finished}: piece {pieces[done]}: {said}", flush=True)
    if failed:
        sys.exit(f"pieces {failed} failed. What is there is kept: the same command goes on with what is missing.")
    print(ray.get(task.remote([options.program, "merge", options.out])))


if __name__ == "__main__":
    main()
