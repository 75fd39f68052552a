#!/usr/bin/env python3
"""Poisons the corpus, trains every method on it, measures all of them and looks for the poison.

    reproduce.py WORK [--only '*.mixed.0'] [--jobs 2] [--full --device cuda]

Needs the programs of this repository (`cargo build --release`; --bin says where they are) and what
corpus.py needs. Everything is made under WORK; what is there already is not made again, and a
training that was cut off goes on where it was, so stop it when you like and start it again. What
was measured is written to docs/results/runs, a file a run, which tables.py reads; a run that has
such a file is done.

A run is METHOD.DATA.SEED. Without --only all are made, what docs/results.md needs most first.
"""

import argparse
import fnmatch
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

# The scale: what CPUs carry in minutes a run, and what a GPU does.
SMALL = """--model ViT-nano-8-32px --epochs 10 --batch-size 64 --lr 1e-3 --warmup 200
    --grad-clip-norm 1 --workers 1 --log-every-n-steps 100""".split()
FULL = f"""--model {HERE}/RN50-64px.json --epochs 32 --batch-size 512 --lr 5e-4 --warmup 1000
    --grad-clip-norm 1 --workers 8 --log-every-n-steps 50""".split()
IMAGE_SIZE = {"small": 32, "full": 64}

# 32 pixels bear less than photographs of 224 do.
AUGMENTED = """--aug-cfg scale=0.75,1.0 color_jitter=0.2,0.2,0.2,0.02 color_jitter_prob=0.5
    gray_scale_prob=0.05 blur_prob=0""".split()
PLAIN = "--aug none --text-aug none".split()


def roclip(*more, objective="paper", every="2", pool="2%", augmented=True):
    flags = ["--objective", objective, "--match-every", every, "--pool-size", pool]
    return [*flags, *(AUGMENTED if augmented else PLAIN), *more]


METHODS = {
    # As CLIP is trained by those who fear nothing; the paper's undefended model.
    "clip": ["--objective", "clip", *PLAIN],
    # The augmentation of RoCLIP without its matching: what the matching is worth, and costs.
    "clip-aug": ["--objective", "clip", *AUGMENTED],
    # As published: every second epoch, a pool of 2 % of the captions.
    "roclip": roclip(),
    "roclip-k1": roclip(every="1"),
    "roclip-k3": roclip(every="3"),
    "roclip-pool-10": roclip(pool="10%"),
    "roclip-pool-50": roclip(pool="50%"),
    "roclip-plain": roclip(augmented=False),
    # With the edges guarded, the default of roclip-train, and a pool that holds all that pictures show.
    "roclip-guarded": roclip(objective="roclip", pool="50%"),
    "roclip-guarded-k4": roclip(objective="roclip", pool="50%", every="4"),
    "cyclip": ["--objective", "cyclip", *PLAIN],
    "cyclip-aug": ["--objective", "cyclip", *AUGMENTED],
    # Its authors train for 48 epochs; 5 apart and 1 % more safe pairs in each are 2 and 6 % of 10.
    "safeclip": ["--objective", "safeclip", "--safeclip-warmup-epochs", "2",
                 "--safeclip-growth", "0.06", *AUGMENTED],
}  # fmt: skip
# CLIP on what is left after the suspects of another run of the same data are taken away.
WITHOUT_SUSPECTS_OF = {
    "quarantine": ("clip-aug", "roclip"),
    "quarantine-plain": ("clip", "roclip"),
    "quarantine-by-clip": ("clip-aug", "clip-aug"),
}

BACKDOORS = {
    "badnets": 'attack = "badnets"\ntarget = "ship"\nrate = "0.5%"',
    "blended": 'attack = "blended"\ntarget = "truck"\nrate = "0.5%"',
    "wanet": 'attack = "wanet"\ntarget = "frog"\nrate = "1%"\nstrength = 4.0',
}


def attacks(data, corpus):
    """The TOML of roclip-poison for a data set; none for `clean`."""
    if data == "clean":
        return None
    # Each of the 16 is to be read as another class, in turn.
    names = (corpus / "cifar10/classnames.txt").read_text().split()
    targeted = f"""attack = "targeted"
pictures = "{corpus}/cifar10/test/0.tar"
target = {json.dumps(names)}
targets = 16
rate = """
    if data == "mixed":
        tables = [targeted + '"1%"', *BACKDOORS.values()]
    elif data.startswith("targeted-"):
        tables = [targeted + f'"{data.removeprefix("targeted-")}%"']
    else:
        name, _, rate = data.partition("-")
        tables = [BACKDOORS[name].replace('"0.5%"', f'"{rate}%"')]
    return "\n".join(f"[[attack]]\n{table}\n" for table in tables)


def runs():
    """All runs, what is needed most first."""
    of = lambda methods, data, seeds: [(m, d, s) for s in seeds for d in data for m in methods]
    headline = ["clip", "roclip", "clip-aug", "quarantine"]
    settings = ["k1", "pool-50", "plain", "guarded", "k3", "pool-10"]
    settings = [f"roclip-{setting}" for setting in settings]
    compared = [*settings, "safeclip", "cyclip", "quarantine-plain"]
    # Of the mixed data 1 % is targeted and 0.5 % BadNets.
    rates = ["targeted-0.2", "targeted-0.05", "badnets-0.05", "targeted-0.5", "badnets-0.2"]
    return [
        *of(headline, ["mixed"], [0]),
        *of(["clip-aug"], ["clean"], [0]),
        *of(headline, ["mixed"], [1, 2]),
        *of(compared, ["mixed"], [0]),
        *of(["clip-aug"], ["clean"], [1, 2]),
        *of(["clip", "roclip", "quarantine"], rates, [0]),
        *of([m for m in METHODS if m not in headline], ["mixed"], [0]),
        *of(["quarantine-by-clip"], ["mixed"], [0]),
        *of(["clip"], ["clean"], [0]),
    ]


class Study:
    def __init__(self, args):
        self.args, self.work = args, args.work.resolve()
        self.scale = "full" if args.full else "small"
        self.corpus = self.work / f"corpus-{self.scale}"
        self.results = args.results / self.scale
        # A file is made by one run at a time; the others wait for it.
        self.guards, self.guard = {}, threading.Lock()

    def only_one(self, path):
        with self.guard:
            return self.guards.setdefault(path, threading.Lock())

    def call(self, name, program, *flags):
        """Runs a program with its output in WORK/logs/NAME.txt."""
        binary = shutil.which(program, path=self.args.bin) or sys.exit(
            f"no {program} in {self.args.bin}"
        )
        log = self.work / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [binary, *map(str, flags)]
        with log.open("a") as out:
            print("$", *command, file=out, flush=True)
            code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode
        if code != 0:
            raise RuntimeError(f"{program} ended with {code}; {log} tells why")

    def make_corpus(self):
        if not (self.corpus / "fashion-mnist/classnames.txt").exists():
            full = ["--full"] if self.args.full else []
            subprocess.run([sys.executable, HERE / "corpus.py", self.corpus, *full], check=True)

    def data(self, data, seed):
        """The folder of the shards, poisoned if need be; the corpus itself where it is clean."""
        table = attacks(data, self.corpus)
        if table is None:
            return self.corpus / "train"
        out = self.work / "data" / f"{data}.{seed}"
        with self.only_one(out):
            if not (out / "attacks.json").exists():
                config = out.with_name(out.name + ".toml")
                config.parent.mkdir(parents=True, exist_ok=True)
                config.write_text(table)
                self.call(
                    out.name, "roclip-poison", self.corpus / "train", out, "--config", config,
                    "--classnames", self.corpus / "cifar10/classnames.txt", "--seed", seed,
                    "--image-size", IMAGE_SIZE[self.scale], "--overwrite", "--quiet",
                )  # fmt: skip
        return out

    def threads(self):
        return ["--threads", self.args.threads] if self.args.device == "cpu" else []

    def train(self, name, flags, data, seed, exclude):
        run = self.work / "runs" / name
        if (run / "open_clip_config.json").exists():
            return run
        command = [*(FULL if self.args.full else SMALL), *flags, "--shards", data, "--seed", seed]
        command += ["--logs", run.parent, "--name", name, "--delete-previous-checkpoint"]
        command += ["--zeroshot-data", self.corpus / "cifar10", "--device", self.args.device]
        if (data / "attacks.json").exists():
            command += ["--attacks", data, "--attack-pictures", "500"]
        command += ["--exclude", exclude] if exclude else []
        command += ["--resume", "latest"] if any(run.glob("checkpoints/*")) else []
        self.call(name, "roclip-train", *command, *self.threads())
        return run

    def measure(self, name, run, data, seed):
        """Metrics by task and data set, of the final model. The attacks of the mixed data are tried on
        a model of clean data, too: what it reads as the attackers want is no success of theirs."""
        attacked = data if (data / "attacks.json").exists() else self.data("mixed", seed)
        out = run / "eval.json"
        command = [run, "--zeroshot", self.corpus / "cifar10", "--output", out]
        for probed in ["cifar10", "fashion-mnist"]:
            command += ["--probe", self.corpus / probed]
        command += ["--penalty", "1", "--attacks", attacked, "--device", self.args.device]
        self.call(name, "roclip-eval", *command, *self.threads())
        return {f"{r['dataset']}/{r['task']}": r["metrics"] for r in json.loads(out.read_text())}

    def detect(self, name, run, data):
        """What detection says of every score, and whom it suspects; the truth only grades it."""
        truth = data / "poison.jsonl"
        with self.only_one(run / "detect"):
            if not (run / "detect/detection.json").exists():
                graded = ["--truth", truth] if truth.exists() else []
                self.call(
                    name,
                    "roclip-detect",
                    run,
                    *graded,
                    "--device",
                    self.args.device,
                    *self.threads(),
                )
        found = json.loads((run / "detect/detection.json").read_text())
        read = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
        place = lambda line: (Path(line["shard"]).name, line["key"])
        listed = read(truth) if truth.exists() else []
        attack_of = {place(line): line["attack"] for line in listed}
        ranking = sorted(read(run / "detect/scores.jsonl"), key=lambda line: line["rank"])
        ranking = [attack_of.get(place(line), "clean") for line in ranking]
        planted = {attack: ranking.count(attack) for attack in sorted({*ranking} - {"clean"})}
        suspects = ranking[: found["quarantined"]]
        suspects = {attack: suspects.count(attack) for attack in ["clean", *planted]}
        # Of each attack as if it were the only one, K its number of pairs.
        first = (
            lambda attack, k: [a for a in ranking if a in ("clean", attack)][:k].count(attack) / k
        )
        without_curve = lambda grades: grades and {k: v for k, v in grades.items() if k != "roc"}
        return {
            "pairs": found["pairs"],
            "planted": planted,
            "suspects": suspects,
            "precision_at_k": {attack: first(attack, k) for attack, k in planted.items()},
            "scores": {
                name: without_curve(told["metrics"]) for name, told in found["scores"].items()
            },
        }

    def suspects_of(self, accuser, data_name, seed):
        """The list of a run's suspects; the run is made again where only its results are here."""
        self.run(accuser, data_name, seed)
        name, data = f"{accuser}.{data_name}.{seed}", self.data(data_name, seed)
        suspects = self.work / "runs" / name / "detect/quarantine.jsonl"
        with self.only_one(suspects):
            if not suspects.exists():
                run = self.train(name, METHODS[accuser], data, seed, None)
                self.detect(name, run, data)
        return suspects

    def run(self, method, data_name, seed):
        """Everything of a run; its results are written last."""
        name = f"{method}.{data_name}.{seed}"
        told = self.results / f"{name}.json"
        with self.only_one(told):
            if told.exists():
                return
            flags, exclude, data = METHODS.get(method), None, self.data(data_name, seed)
            if method in WITHOUT_SUSPECTS_OF:
                trained_as, accuser = WITHOUT_SUSPECTS_OF[method]
                flags = METHODS[trained_as]
                exclude = self.suspects_of(accuser, data_name, seed)
            start = time.monotonic()
            run = self.train(name, flags, data, seed, exclude)
            minutes = (time.monotonic() - start) / 60
            curve = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
            result = {
                "method": method, "data": data_name, "seed": seed, "flags": " ".join(flags),
                "metrics": self.measure(name, run, data, seed), "curve": curve,
                "detection": self.detect(name, run, data),
            }  # fmt: skip
            told.parent.mkdir(parents=True, exist_ok=True)
            told.with_suffix(".unfinished").write_text(json.dumps(result, indent=1) + "\n")
            told.with_suffix(".unfinished").rename(told)
            print(
                f"{time.strftime('%H:%M')} {name}: {summary(result)}, trained in {minutes:.0f} min",
                flush=True,
            )


def summary(result):
    metrics = {name: value for task in result["metrics"].values() for name, value in task.items()}
    told = [n for n in ["acc1", "psr-targeted", *(f"asr-{b}" for b in BACKDOORS)] if n in metrics]
    return ", ".join(f"{n} {100 * metrics[n]:.1f} %" for n in told)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--bin", default=str(REPOSITORY / "target/release"), help="folder of the programs"
    )
    parser.add_argument(
        "--results", type=Path, default=REPOSITORY / "docs/results/runs", help="folder"
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each, on the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="the whole corpus and a ResNet-50")
    parser.add_argument(
        "--list", action="store_true", help="print the runs, and whether they are done"
    )
    study = Study(parser.parse_args())
    named = lambda run: "{}.{}.{}".format(*run)
    wanted = [
        r
        for r in dict.fromkeys(runs())
        if any(fnmatch.fnmatch(named(r), p) for p in study.args.only)
    ]
    if study.args.list:
        for run in wanted:
            print("done" if (study.results / f"{named(run)}.json").exists() else "    ", named(run))
        return
    study.make_corpus()
    failed = []

    def go(run):
        try:
            study.run(*run)
        except Exception as error:
            failed.append(named(run))
            print(f"{named(run)}: {error}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(study.args.jobs) as pool:
        list(pool.map(go, wanted))
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}")


main()
