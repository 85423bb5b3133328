"""Checks the manifests, and runs a Job's pods as processes of this machine as the Job controller would have them run.

    python stand_in.py validate FILE...
    python stand_in.py run FILE --program PROGRAM [--pieces N] [--replace=ARGUMENTS]...

It is for `cargo xtask engines kubernetes`, where there is no cluster: the pods' arguments, the indices, the retries and the
pod failure policy are those of the manifest; images, nodes and resources are left out.
"""

import argparse
import os
import re
import subprocess
import sys
import time

import kubernetes_validate
import yaml

VERSION = "1.33"


def validate(path):
    """What Kubernetes' schema says, and what only its API server would."""
    with open(path) as file:
        job = yaml.safe_load(file)
    kubernetes_validate.validate(job, VERSION, strict=True)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "podFailurePolicy needs restartPolicy: Never"
    (container,) = pod["containers"]
    for rule in spec["podFailurePolicy"]["rules"]:
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] == container["name"], f"no container is called {codes['containerName']}"
            assert 0 not in codes["values"] and codes["values"] == sorted(set(codes["values"])), "exit codes: sorted, not 0"
        assert rule["action"] != "FailIndex" or "backoffLimitPerIndex" in spec, "FailIndex needs backoffLimitPerIndex"
    if "backoffLimitPerIndex" in spec:
        assert spec["completionMode"] == "Indexed", "backoffLimitPerIndex needs completionMode: Indexed"
    pieces = [entry["value"] for entry in container.get("env", []) if entry["name"] == "PIECES"]
    assert all(int(value) == spec["completions"] for value in pieces), "PIECES is not the number of completions"
    return job


def action(spec, status):
    """The first rule of the pod failure policy that a container's end meets."""
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and (status in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"]
    return "Count"


class Job:
    """The pods of a Job, as processes."""

    def __init__(self, job, program, pieces, replacements):
        self.spec = job["spec"]
        (container,) = self.spec["template"]["spec"]["containers"]
        # Those of envFrom are in the environment of this program.
        self.variables = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        self.completions = pieces or self.spec.get("completions", 1)
        if "PIECES" in self.variables:
            self.variables["PIECES"] = str(self.completions)
        self.limit = self.spec.get("backoffLimitPerIndex", self.spec.get("backoffLimit", 6))
        self.arguments = [word for argument in container["args"] for word in replacements.get(argument, [argument])]
        self.command = [program, *container["command"][1:]]

    def start(self, index):
        variables = {**self.variables, "JOB_COMPLETION_INDEX": str(index)}
        # As Kubernetes does it: $(NAME), and what is no variable's name stays.
        arguments = [re.sub(r"\$\((\w+)\)", lambda m: variables.get(m[1], m[0]), text) for text in self.arguments]
        # Pods end with the cluster.
        command = ["setpriv", "--pdeathsig=KILL", *self.command, *arguments]
        return subprocess.Popen(command, env={**os.environ, **variables})

    def run(self, parallelism):
        waiting, running, failures, failed = list(range(self.completions)), {}, [0] * self.completions, []
        while waiting or running:
            while waiting and len(running) < parallelism:
                index = waiting.pop(0)
                running[index] = self.start(index)
            time.sleep(0.01)
            for index, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[index]
                # A container that was killed has the status 128 + the signal.
                status = process.returncode if process.returncode >= 0 else 128 - process.returncode
                if status == 0:
                    continue
                what = action(self.spec, status)
                failures[index] += what == "Count"
                if what == "FailJob":
                    for other in running.values():
                        other.kill()
                        other.wait()
                    sys.exit(f"the Job failed: index {index} ended with status {status}")
                if what == "FailIndex" or failures[index] > self.limit:
                    failed.append(index)
                else:
                    waiting.append(index)
        print(f"{self.completions - len(failed)} of {self.completions} indices complete, {sum(failures)} pods failed")
        if failed:
            sys.exit(f"the Job failed: indices {failed}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checked = commands.add_parser("validate")
    checked.add_argument("files", nargs="+")
    ran = commands.add_parser("run")
    ran.add_argument("file")
    ran.add_argument("--program", required=True)
    ran.add_argument("--pieces", type=int)
    ran.add_argument("--parallelism", type=int, default=2)
    ran.add_argument("--retries", type=int, help="in place of the manifest's limit")
    ran.add_argument("--replace", action="append", default=[], help="an argument of the manifest and, line by line, others")
    options = parser.parse_args()
    if options.command == "validate":
        for path in options.files:
            validate(path)
        print(f"{len(options.files)} follow the schema of Kubernetes {VERSION}")
        return
    job = validate(options.file)
    known = job["spec"]["template"]["spec"]["containers"][0]["args"]
    replacements = {argument: others for argument, *others in (text.split("\n") for text in options.replace)}
    for argument in replacements:
        assert argument in known, f"{options.file} has no argument {argument}"
    pods = Job(job, options.program, options.pieces, replacements)
    if options.retries is not None:
        pods.limit = options.retries
    pods.run(options.parallelism)


if __name__ == "__main__":
    main()
