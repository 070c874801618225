"""`fewstep`: the parser, and the one place where errors become exit codes.

0 done; 1 the work failed; 2 the request was wrong; 130 interrupted, with state saved. Every command
imports its room when it runs, so that `fewstep serve` never loads torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from distill.errors import DistillError, Interrupted, RunFailed
from engines.errors import EngineError
from service.errors import ServiceError

from . import __version__, arguments, bundles, commands
from .jobs.flags import add_tasks

FAILED, WRONG, INTERRUPTED = 1, 2, 130


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    options = parser().parse_args(argv)
    return exit_code(options.command, lambda: options.run(options))


def exit_code(command: str, run: Callable[[], int | None]) -> int:
    """That of `run()`: its own, or that of its error, which is told in one line."""
    try:
        return int(run() or 0)
    except (DistillError, EngineError, ServiceError) as error:
        return _say(command, error, WRONG)
    except (RunFailed, OSError) as error:
        return _say(command, error, FAILED)
    except ModuleNotFoundError as error:
        return _say(command, f"{error.name} is not installed: pip install 'fewstep[distill]'", WRONG)
    except (Interrupted, KeyboardInterrupt) as error:
        return _say(command, error if str(error) else "interrupted", INTERRUPTED)


def _say(command: str, error: object, code: int) -> int:
    print(f"fewstep {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def parser() -> Parser:
    top = Parser(prog="fewstep", description="Few-step text-to-image generators: distil, export, serve.")
    top.add_argument("--version", action="version", version=f"fewstep {__version__}")
    rooms = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _distill(rooms)
    _plan(rooms)
    _evaluate(rooms)
    _sample(rooms)
    _import(rooms)
    _export(rooms)
    _build(rooms)
    _bundle(rooms)
    _serve(rooms)
    _worker(rooms)
    _jobs(rooms)
    _keys(rooms)
    _bench(rooms)
    _shapes(rooms)
    _doctor(rooms)
    return top


Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def _distill(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("distill", help="teacher -> student folder")
    command.set_defaults(run=commands.distill)
    command.add_argument("recipe", help="YAML file, or the name of a shipped recipe")
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override the recipe"
    )
    command.add_argument("--out", type=Path, help="student folder (default: runs/<recipe>)")
    command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    command.add_argument(
        "--nproc",
        type=arguments.positive,
        metavar="N",
        help="processes, one a GPU (default: 1; with --ray, as many as the cluster has GPUs)",
    )
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="on a Ray cluster of which this machine is a node: auto, HOST:PORT of its head, or local; "
        "all nodes have to see the same files",
    )
    command.add_argument(
        "--parallel", choices=["ddp", "fsdp"], help="with several: whole networks on each, or shards"
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe and the plan; write and fetch nothing",
    )
    _device(command)


def _plan(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("plan", help="memory and time of a distillation, before any GPU is rented")
    command.set_defaults(run=commands.plan)
    command.add_argument("teacher", help="a teacher's folder or hub id, or a recipe")
    command.add_argument("--gpus", type=arguments.positive, default=1, help="default: 1")
    command.add_argument("--precision", choices=["bfloat16", "float32"], help="default: the recipe's")
    command.add_argument(
        "--adapter", choices=["lora"], help="train adapters on one base instead of all weights"
    )
    command.add_argument("--gpu", default="H100", help="give advice for this one (default: H100)")
    command.add_argument(
        "--utilisation", type=arguments.share, help="share of the GPU's dense rate to assume (default: 0.4)"
    )
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override the recipe"
    )
    command.add_argument("--json", action="store_true", help="print JSON: bytes, seconds, operations")


def _doctor(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("doctor", help="what this machine can do, what is missing and how to get it")
    command.set_defaults(run=commands.doctor)
    command.add_argument("--json", action="store_true", help="print JSON")


def _evaluate(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("evaluate", help="quality of a teacher, student or bundle")
    command.set_defaults(run=commands.evaluate)
    command.add_argument("model")
    command.add_argument(
        "--steps", type=arguments.positives, help="e.g. 1,2,4; default: what the model offers, or 28"
    )
    command.add_argument("--guidance", type=arguments.numbers, default=[1.0], help="of a teacher, e.g. 1,2,3")
    command.add_argument("--reference", metavar="TEACHER", help="add this teacher's row, with --guidance")
    command.add_argument(
        "--images", type=arguments.two_or_more, help="per seed (default: 500; with --prompts, all of them)"
    )
    command.add_argument("--seeds", type=arguments.evaluation_seeds, help="default: 0,1,2; with --prompts, 0")
    command.add_argument(
        "--few-step", action="store_true", help="run a teacher as the student that it is before distillation"
    )
    command.add_argument(
        "--floor", action="store_true", help="add a row for fresh renders, the best possible"
    )
    command.add_argument("--split", choices=["held-out", "train"], default="held-out")
    command.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    command.add_argument(
        "--card", action="store_true", help="also add the rows to the student's quality.json"
    )
    _fidelity(command)
    _device(command)


def _fidelity(command: Parser) -> None:
    group = command.add_argument_group("measured with published networks, on prompts of a file")
    group.add_argument("--prompts", metavar="FILE", help=".txt, .jsonl or COCO captions .json")
    group.add_argument(
        "--clip", metavar="FOLDER_OR_ID", help="CLIP score with this CLIP: a transformers folder or hub id"
    )
    group.add_argument(
        "--fid-features",
        metavar="NETWORK",
        help="FID with these features: a transformers folder, a hub id or a TorchScript file (.pt)",
    )
    group.add_argument("--reference-images", type=Path, metavar="FOLDER", help="real pictures, for FID")
    group.add_argument(
        "--reference-statistics",
        type=Path,
        metavar="FILE",
        help="statistics of the real pictures: used if it is there, else written",
    )
    group.add_argument(
        "--fid-size",
        type=arguments.positive,
        default=256,
        metavar="PIXELS",
        help="both sets are cropped and resized to squares of it first (default: 256, as usual on COCO)",
    )
    group.add_argument(
        "--pictures", type=Path, metavar="DIR", help="keep the pictures here; a stopped run goes on"
    )
    group.add_argument(
        "--batch", type=arguments.positive, default=16, help="pictures drawn at once (default: 16)"
    )


def _sample(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("sample", help="a picture, or a grid, from a teacher, student or bundle")
    command.set_defaults(run=commands.sample)
    command.add_argument("model", nargs="?")
    command.add_argument("prompt", nargs="*")
    command.add_argument(
        "--from",
        dest="picture",
        type=Path,
        metavar="PICTURE",
        help="draw a served picture again, from what its file says; MODEL is its bundle",
    )
    command.add_argument(
        "--steps", type=arguments.positive, help="default: the most it offers; 28 for a teacher"
    )
    command.add_argument(
        "--guidance", type=arguments.number, default=1.0, help="of a teacher (default: 1, none)"
    )
    command.add_argument("--seed", type=arguments.seed, default=0, help="of the first picture (default: 0)")
    command.add_argument("--out", type=Path, default=Path("sample.png"))
    command.add_argument("--zoom", type=arguments.positive, default=1, help="enlarge the file's pixels")
    command.add_argument("--backend", default="auto", help="of a bundle (default: auto, the fastest here)")
    _device(command)


def _import(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("import", help="few-step model that others have distilled -> student folder")
    command.set_defaults(run=commands.import_pipeline)
    command.add_argument("pipeline", help="diffusers pipeline folder, or its id on the hub")
    command.add_argument("--out", type=Path, required=True, metavar="STUDENT")
    known = "where it is not as published; needed for a model that is not known"
    command.add_argument("--sampler", choices=["sid", "euler"], help=known)
    command.add_argument("--steps", type=arguments.positives, help="step counts to offer, e.g. 1,2,4")
    command.add_argument("--guidance", type=arguments.number, help="of a network that takes it as an input")
    command.add_argument(
        "--text-length", type=arguments.positive, metavar="TOKENS", help="of the encoder of long texts"
    )
    command.add_argument(
        "--no-instruction",
        dest="instruction",
        action="store_const",
        const=False,
        help="without SANA's instruction before each prompt",
    )
    command.add_argument("--size", type=arguments.size, metavar="WxH", help="default: the pipeline's own")


def _export(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("export", help="student -> bundle of ONNX graphs with parity certificate")
    command.set_defaults(run=commands.export)
    command.add_argument("student")
    command.add_argument("--out", type=Path, required=True, metavar="BUNDLE")
    command.add_argument(
        "--precision",
        default="fp32",
        help="fp32 (default), fp16, bf16, int8, int8-qdq, fp8-qdq, or auto: the fastest here whose certificate holds",
    )
    command.add_argument(
        "--fuse", action="store_true", help="also write the whole generator as one graph per step count"
    )
    command.add_argument(
        "--torch", action="store_true", help="also write programs for --backend torch and torch-compile"
    )
    command.add_argument(
        "--judge",
        type=int,
        metavar="IMAGES",
        help="put accuracy on shapes, by the graphs, on the quality card",
    )
    command.add_argument(
        "--clip", metavar="CLIP", help="put the CLIP score of --prompts, by the graphs, on the quality card"
    )
    command.add_argument(
        "--min-psnr",
        type=arguments.number,
        metavar="DB",
        help="least PSNR of pictures against PyTorch (default: 40; bf16: 22; eight bits: 10)",
    )
    command.add_argument(
        "--prompts", metavar="FILE", help="for int8-qdq, fp8-qdq and --clip (the first 64); or shapes:train"
    )
    command.add_argument(
        "--size", nargs="+", type=arguments.size, metavar="WxH", help="default: the student's own"
    )


def _build(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("build", help="adds TensorRT plans for this machine's GPU to a bundle")
    command.set_defaults(run=commands.build)
    command.add_argument("bundle", help="a bundle's folder, or the name of a shipped one")
    command.add_argument("--backend", required=True, metavar="BACKEND", help="tensorrt or tensorrt-rtx")
    command.add_argument("--out", type=Path, metavar="BUNDLE", help="add them to a copy of the bundle")
    command.add_argument(
        "--refittable", action="store_true", help="let the weights be exchanged later; costs some speed"
    )
    command.add_argument(
        "--refit-from",
        metavar="BUNDLE",
        help="take another bundle's refittable plans, with this one's weights",
    )


def _bundle(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("bundle", help="the store of bundles, which `fewstep serve` takes by name")
    tasks = command.add_subparsers(dest="task", required=True, metavar="TASK")
    known = "a name in the store, a folder, or a shipped name"
    add = tasks.add_parser("add", help="copy a bundle into the store")
    add.set_defaults(run=bundles.add)
    add.add_argument("bundle", help="its folder")
    show = tasks.add_parser("list", help="names, digests, sizes")
    show.set_defaults(run=bundles.show)
    show.add_argument("--json", action="store_true", help="print JSON")
    verify = tasks.add_parser("verify", help="check every digest and certificate")
    verify.set_defaults(run=bundles.verify)
    verify.add_argument("bundle", nargs="*", help=f"{known}; by default all of the store")
    remove = tasks.add_parser("remove", help="forget a name")
    remove.set_defaults(run=bundles.remove)
    remove.add_argument("name", nargs="+")
    gc = tasks.add_parser("gc", help="remove bundles without a name")
    gc.set_defaults(run=bundles.gc)
    gc.add_argument("--dry-run", action="store_true", help="only say which")
    push = tasks.add_parser("push", help="copy a bundle to a URL or hub repository")
    push.set_defaults(run=bundles.push)
    push.add_argument("bundle", help=known)
    pull = tasks.add_parser("pull", help="copy a bundle from a URL or hub repository into the store")
    pull.set_defaults(run=bundles.pull)
    pull.add_argument("--digest", metavar="sha256:...", help="refuse any other")
    for task in (push, pull):
        task.add_argument("where", help="fsspec URL (s3://, gs://, ssh://, ...), folder, or OWNER/REPOSITORY")
    for task in (add, pull):
        task.add_argument("--name", help="in the store (default: the bundle's own)")


def _serve(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("serve", help="the server; without --model the shipped shapes model")
    command.set_defaults(run=commands.serve)
    command.add_argument("--model", action="append", metavar="NAME=BUNDLE", help="may be repeated")
    commands.add_settings(command, commands.OF_SERVER)


def _worker(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("worker", help="runs the jobs of a server, in a process of its own")
    command.set_defaults(run=commands.work)
    commands.add_settings(command, commands.OF_WORKER)


def _jobs(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("jobs", help="distillation jobs of a running server")
    add_tasks(command, commands.jobs)


def _bench(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("bench", help="load on a running server: latency, goodput, steps")
    command.set_defaults(run=commands.bench)
    command.add_argument("url", help="e.g. http://127.0.0.1:8000")
    command.add_argument(
        "--rate", type=arguments.numbers, metavar="R,…", help="open loop: requests a second, Poisson arrivals"
    )
    command.add_argument(
        "--concurrency", type=arguments.positives, metavar="N,…", help="closed loop (default: 1,2,4,8,16)"
    )
    command.add_argument(
        "--sweep",
        action="store_true",
        help="one caller, 32 callers, then rates around what those got: finds the knee",
    )
    command.add_argument(
        "--seconds", type=arguments.number, default=10.0, help="of each setting (default: 10)"
    )
    command.add_argument(
        "--warm-up", type=arguments.number, default=2.0, help="seconds with one caller before (default: 2)"
    )
    command.add_argument("--slo-ms", type=arguments.number, help="latency within which an answer is goodput")
    command.add_argument("--deadline-ms", type=arguments.positive, help="of each request")
    command.add_argument("--steps", type=arguments.positive, help="default: the server's")
    command.add_argument("--quality", help="auto leaves the steps to the server")
    command.add_argument("--model", help="default: the server's first")
    command.add_argument("--n", type=arguments.positive, default=1, help="pictures a request (default: 1)")
    command.add_argument("--seed", type=arguments.seed, default=0, help="of the arrivals (default: 0)")
    command.add_argument("--api-key", help="of a server that needs one (FEWSTEP_KEY)")
    command.add_argument(
        "--plot", type=Path, metavar="FILE", help="latency and goodput as a .png, .svg or .pdf"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")


def _keys(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("keys", help="API keys of a server")
    tasks = command.add_subparsers(dest="task", required=True, metavar="TASK")
    add = tasks.add_parser("add", help="a new key; printed once, the file keeps its hash")
    add.set_defaults(run=commands.add_key)
    add.add_argument("name", help="whose it is, as in log lines")
    add.add_argument("--file", type=Path, required=True, help="as in `fewstep serve --api-keys`")
    add.add_argument(
        "--limit", type=arguments.positive, metavar="N", help="step-images a minute; default: no limit"
    )
    add.add_argument(
        "--admin", action="store_true", help="may load and unload models, and whatever --jobs may"
    )
    add.add_argument("--jobs", action="store_true", help="may run distillation jobs and see all files")


def _shapes(rooms: Subparsers[Parser]) -> None:
    command = rooms.add_parser("shapes", help="the shapes world: render it, train its models from scratch")
    tasks = command.add_subparsers(dest="task", required=True, metavar="TASK")
    render = tasks.add_parser("render", help="captioned pictures into a folder")
    render.set_defaults(run=commands.shapes_render)
    render.add_argument("--count", type=arguments.positive, default=16)
    render.add_argument("--split", choices=["train", "held-out"], default="train")
    judge = tasks.add_parser("train-judge", help="the CNN that reads pictures back; five minutes")
    judge.set_defaults(run=commands.shapes_train_judge)
    vae = tasks.add_parser("train-autoencoder", help="a quarter of an hour on one core")
    vae.set_defaults(run=commands.shapes_train_autoencoder)
    teacher = tasks.add_parser("train-teacher", help="an hour on one core")
    teacher.set_defaults(run=commands.shapes_train_teacher)
    start = teacher.add_mutually_exclusive_group(required=True)
    start.add_argument("--autoencoder", type=Path, help="trained for the same family")
    start.add_argument("--init", metavar="TEACHER", help="goes on from its weights and autoencoder")
    teacher.add_argument("--rate", type=float, help="peak learning rate, where the family's will not do")
    for task in (vae, teacher):
        task.add_argument("--family", choices=["sana", "sd3", "flux"], default="sana")
    for task in (judge, vae, teacher):
        task.add_argument(
            "--steps", type=arguments.positive, help="length of the training; a stopped one goes on"
        )
    for task in (render, judge, vae, teacher):
        task.add_argument("--out", type=Path, required=True)
        task.add_argument("--seed", type=arguments.seed, default=0)


def _device(command: Parser) -> None:
    command.add_argument("--device", help="default: cuda when present, else cpu")
