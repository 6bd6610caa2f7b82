"""What a tracking server that breaks down costs a study: its points in MLflow, and the CPU of its trials.

The same small study (`--trials` trainings, two at a time) is launched against a real `mlflow server` on loopback, in
turns: undisturbed, and while the server is stopped for `--pause` seconds (it accepts connections and answers nothing),
killed for as long, and restarted twice more. Then what is left is sent (`proseg-tune sync`), and everything once more
(`--again`). Every epoch of every trial must be in MLflow exactly once; the trials' own CPU-seconds, as each epoch's
record has them, are compared pair by pair.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.overhead import toml
from benchmarks.studies import TINY, make_blobs, publish

GOAL = 1.02
"""CPU-seconds of the trials, disturbed / undisturbed."""
SIDE = 64


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    pairs = []
    for repeat in range(options.repeats):
        order = (False, True) if repeat % 2 == 0 else (True, False)
        found = {disturbed: study(options, disturbed) for disturbed in order}
        pairs.append((found[True], found[False]))
    publish("outage", table(pairs), {"options": vars(options), "pairs": pairs})


def study(options: argparse.Namespace, disturbed: bool) -> dict[str, Any]:
    """One study, against a server of its own."""
    from orchestrator.server import LocalServer
    from orchestrator.stores import check_store

    with tempfile.TemporaryDirectory() as folder, _without_mlflow():
        server_home, here = Path(folder) / "server", Path(folder)
        check_store(server_home)
        server = LocalServer(server_home)
        try:
            address = _answering(server)
            return _watched(options, here, server, address, disturbed)
        finally:
            server.stop()


def _watched(options: argparse.Namespace, here: Path, server: Any, address: str, disturbed: bool) -> dict[str, Any]:
    store = make_blobs(here / "blobs", slices=options.slices, side=SIDE)
    space = {"data": str(store.folder), "budget": {"trials": options.trials, "epochs": options.epochs}, "base": TINY,
             "search": {"optim.lr": {"kind": "float", "low": 0.0001, "high": 0.001, "log": True}},
             "sampler": "random", "scheduler": {"kind": "none"}}  # fmt: skip
    (here / "outage.toml").write_text(toml(space), encoding="utf-8")
    environment = os.environ | {"PROSEG_HOME": str(here / "home"), "MLFLOW_TRACKING_URI": address}
    began = time.monotonic()
    launched = subprocess.Popen(
        _program("launch", str(here / "outage.toml"), "--study", "outage", "--no-final", "--concurrent", "2"),
        cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    disturber = threading.Thread(target=disturb, args=(server, here, options.pause), daemon=True)
    if disturbed:
        disturber.start()
    said, _ = launched.communicate()
    if launched.returncode:
        raise RuntimeError(f"the study failed: {said}")
    seconds = time.monotonic() - began
    if disturbed:
        disturber.join()
    server_home = here / "server"
    for words in (("sync",), ("sync", "--again")):
        subprocess.run(_program(*words), check=True, cwd=here, env=environment, stdout=subprocess.DEVNULL)
    return {"disturbed": disturbed, "seconds": seconds, **counted(here / "home", server_home)}


def disturb(server: Any, here: Path, pause: float) -> None:
    """From the first epoch on: a hang, a kill, two restarts."""
    import psutil

    while not list(here.glob("home/studies/outage/trials/*/epochs.jsonl")):
        time.sleep(0.2)

    def members() -> list[psutil.Process]:
        return psutil.Process(server._child.pid).children(recursive=True)

    hanging = members()
    for process in hanging:
        process.suspend()
    time.sleep(pause)
    for process in hanging:
        process.resume()
    for away in (pause, 1.0, 1.0):
        time.sleep(pause / 3)
        for process in members():
            process.kill()
        time.sleep(max(1.0, away))  # its guard sees it within half a second
        _answering(server)


def counted(home: Path, server_home: Path) -> dict[str, Any]:
    """What MLflow holds, against what the trials left; and the trials' CPU-seconds."""
    from mlflow import MlflowClient

    from orchestrator.results import read_trials
    from orchestrator.stores import local_uri
    from orchestrator.study import find_study
    from proseg.records import read_epochs

    study = find_study(home, "outage")
    client = MlflowClient(local_uri(server_home))
    experiment = client.get_experiment_by_name("proseg-tune/outage")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`proseg.kind` = 'trial'")
    by_number = {int(run.data.tags["proseg.trial"]): run for run in runs}
    missing, doubled, cpu, points = 0, len(runs) - len(by_number), 0.0, 0
    for trial in read_trials(study):
        epochs = read_epochs(study.trial_folder(trial.number))
        cpu += sum(record["cpu"] for record in epochs)
        for name in epochs[0]["metrics"]:
            history = client.get_metric_history(by_number[trial.number].info.run_id, name)
            steps = Counter(point.step for point in history)
            wanted = {record["epoch"] for record in epochs if record["metrics"][name] == record["metrics"][name]}
            missing += len(wanted - set(steps))
            doubled += sum(steps.values()) - len(steps)
            points += len(history)
    return {"trials": len(by_number), "points": points, "missing": missing, "doubled": doubled, "cpu": cpu}


def table(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = ["| server | trials | points in MLflow | missing | twice | trials' CPU-s | wall s |", "|---" * 7 + "|"]
    for disturbed, undisturbed in pairs:
        for name, run in (("hung, killed, restarted", disturbed), ("undisturbed", undisturbed)):
            lines.append(f"| {name} | {run['trials']} | {run['points']} | {run['missing']} | {run['doubled']} | "
                         f"{run['cpu']:.2f} | {run['seconds']:.0f} |")  # fmt: skip
    ratios = [disturbed["cpu"] / undisturbed["cpu"] for disturbed, undisturbed in pairs]
    ratio = statistics.median(ratios)
    met = "met" if ratio <= GOAL else "missed"
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs"
    return "\n".join(
        [*lines, "", f"CPU-seconds, disturbed / undisturbed: {ratio:.3f} ({spread}), goal ≤ {GOAL}: {met}"]
    )


def _answering(server: Any) -> str:
    while (address := server.address()) is None:
        time.sleep(0.2)
    return address


@contextmanager
def _without_mlflow():
    """The server's own workspace must be taken for one whose store nobody has named."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("MLFLOW_", "PROSEG_"))}
    try:
        yield
    finally:
        os.environ.update(before)


def _program(*words: str) -> list[str]:
    return [sys.executable, "-m", "cli", *words]


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8, help="default 8")
    parser.add_argument("--epochs", type=int, default=12, help="default 12")
    parser.add_argument("--slices", type=int, default=1024, help="of the data set; default 1024, some 3 s an epoch")
    parser.add_argument("--pause", type=float, default=30.0, help="seconds of a hang and of an outage; default 30")
    parser.add_argument("--repeats", type=int, default=3, help="pairs; default 3")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
