"""Commands on a study that was searched: its page, a network handed over, an audit, a repair."""

import math
import textwrap
import webbrowser
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.terminal import (
    DataFolder,
    Json,
    StudyFolder,
    accuracies,
    interruptible,
    print_figures,
    print_json,
    say,
    tell,
)
from levit_search.errors import InputError, UnknownNameError
from levit_search.escaping import quoted

if TYPE_CHECKING:
    from levit_search.doctor import Check, Finding
    from levit_search.export import Export, Quantization, Retraining
    from levit_search.study import Study
    from levit_search.study.restore import Restored

_FORMATS = ("html", "png", "svg")


def report(
    study: StudyFolder,
    format: Annotated[
        str, typer.Option(help="html (one page), or png or svg (its pictures).")
    ] = "html",
    pick: Annotated[
        list[str] | None,
        typer.Option(
            metavar="trial=N",
            help="A network to show in detail beside the front's (repeatable); as of export.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The page, or the pictures' folder [default: STUDY/report.html, STUDY/pictures].",
        ),
    ] = None,
    data: DataFolder = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Show the page in the browser as well.")
    ] = False,
) -> None:
    """Show what a search found, as a page that opens offline.

    The front against each cost, the networks on it in detail, all trials, hypervolume, learning
    curves, which choices matter, predicted latencies, networks in int8, failures and how it was
    made.
    """
    from levit_search.report import write_report
    from levit_search.study import Study

    if format not in _FORMATS:
        raise UnknownNameError("format", format, _FORMATS)
    if open_ and format != "html":
        raise InputError(f"--open: shows the page, which --format {format} does not make")
    if out is not None and format == "html" and out.is_dir():
        raise InputError(f"--out {out}: is a folder; name the page, such as {out / 'report.html'}")
    opened = Study.open(study).with_data(data)
    say(f"Reading {study} ...")
    if format == "html":
        page = write_report(opened, pick or (), out)
        tell(str(page))
        if open_ and not webbrowser.open(page.absolute().as_uri()):
            say(f"levit-search: no browser was found to open {page} in")
        return
    from levit_search.report.charts import write_pictures

    for path in write_pictures(opened, format, out, pick or ()):
        tell(str(path))


def export(
    study: StudyFolder,
    pick: Annotated[
        str,
        typer.Option(
            help="knee, accurate, fastest, trial=N, or bounds: 'latency_ms<=5,flops<=1G'."
        ),
    ] = "knee",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to [default: STUDY/export/ID].")
    ] = None,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="Train it again first, for --epochs."),
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs to train it again.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Times to train it again [default: 1].")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="short or levit, to train again by [default: the study's].")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Of data, train or teacher, to train again by; of latency.int8, to quantize by.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="FILE", help="openvino, torch-export or int8 (repeatable)."),
    ] = None,
    finetune_epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train the network in int8 with its roundings."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="POINTS", help="Accuracy on val that int8 may lose [default: 1]."
        ),
    ] = None,
    allow_drop: Annotated[
        bool, typer.Option("--allow-drop", help="Take int8 though it loses more.")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Time the graphs again on the targets.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Write over what is in DIR.")] = False,
    data: DataFolder = None,
    as_json: Json = False,
) -> None:
    """Write a network as a folder that needs nothing of this package.

    A readable torch module, ONNX, weights, a timm checkpoint where timm can express it, a script
    that classifies images, and a model card. Each file is read in a process of its own and compared
    with the trained network on real images, and model.onnx is timed again. With `--also int8` there
    is model.int8.onnx, whose accuracy and time are measured beside those of model.onnx.
    """
    from levit_search import export as exports
    from levit_search.progress import StepProgress
    from levit_search.study import Study, parse_settings

    changes = parse_settings(settings or [])
    of_int8 = {key: changes.pop(key) for key in list(changes) if key.startswith("latency.int8")}
    asked = _retraining(retrain, epochs, seeds, recipe, changes)
    quantization = _quantization(also or [], of_int8, finetune_epochs, max_drop, allow_drop)
    opened = Study.open(study).with_data(data)
    record = exports.pick(opened, pick)
    network = record.architecture
    assert network is not None
    options = exports.ExportOptions(asked, tuple(also or ()), probe, force, quantization)
    folder = out or exports.default_folder(opened, record, options)
    goes_on = f"; {folder} was not written{'; the same command goes on' if retrain else ''}."
    with interruptible(goes_on), opened.reading_data(), StepProgress() as progress:
        progress.begin("export", 1)
        progress.step(f"trial {record.trial}")
        written = exports.export(opened, record, folder, pick, options, progress.update)
    if as_json:
        print_json(written.as_json())
    else:
        _print_export(written, f"Trial {record.trial} ({network.summary()})")


def _retraining(
    retrain: bool,
    epochs: int | None,
    seeds: int | None,
    recipe: str | None,
    changes: dict[str, object],
) -> "Retraining | None":
    if retrain:
        if epochs is None:
            raise InputError("--retrain: needs --epochs N")
        from levit_search.export import Retraining

        return Retraining(epochs, seeds or 1, recipe, changes)
    given = {"--epochs": epochs, "--seeds": seeds, "--recipe": recipe, "--set": changes or None}
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option}: is for --retrain")
    return None


def _quantization(
    also: list[str],
    changes: dict[str, object],
    finetune_epochs: int | None,
    max_drop: float | None,
    allow_drop: bool,
) -> "Quantization":
    from levit_search.export import Quantization

    given: dict[str, object] = {
        **dict.fromkeys((f"--set {key}" for key in changes), True),
        "--finetune-epochs": finetune_epochs,
        "--max-drop": max_drop,
        "--allow-drop": allow_drop or None,
    }
    for option, value in given.items():
        if value is not None and "int8" not in also:
            raise InputError(f"{option}: is for --also int8")
    if max_drop is not None and not math.isfinite(max_drop):
        raise InputError(f"--max-drop {max_drop}: expected points of accuracy")
    keys = {}
    for key, value in changes.items():
        _, separator, name = key.partition("latency.int8.")
        if not separator:
            raise InputError(f"--set {key}: name one of its keys, such as latency.int8.format=s8")
        keys[name] = value
    asked = Quantization(keys, finetune_epochs or 0, allow_drop=allow_drop)
    return asked if max_drop is None else replace(asked, max_drop=max_drop)


def _print_export(written: "Export", network: str) -> None:
    tell(f"{network} written to {written.dir}:")
    for name in written.files:
        found = written.parity.get(name.rstrip("/"))
        note = "" if found is None else f"logits within {found:.1e}" if found else "same logits"
        tell(f"  {name:22}{note}".rstrip())
    tell(f"top-1: {accuracies(written.as_json(), ('val', 'test'))}")
    for again in written.probed_again:
        if again["now"] is None:
            tell(f"{again['figure']}: not measured again ({again['reason']})")
            continue
        now = f"{again['now']['latency_ms']:.4g}, {again['compared']}"
        tell(f"{again['figure']} of {again['timed']}: {now}")
    if written.int8 is not None:
        _print_int8(written.int8)
    if written.retrained is not None and len(written.retrained["seeds"]) > 1:
        percents = ", ".join(f"{each:.2f}" for each in written.retrained["test_top1_percent"])
        tell(
            f"test by seed: {percents}; the weights are those of seed "
            f"{written.retrained['seed']}, the best on val"
        )
    tell(f"Next: python {quoted(str(Path(written.dir) / 'predict.py'))} IMAGE")


def _print_int8(found: Mapping[str, Any]) -> None:
    from levit_search.significance import accuracy_text

    quantized = found["quantized"]
    reached = ", ".join(
        f"{split} {accuracy_text(percent, found['images'][split])}, "
        f"{0 - found['drop_points'][split]:+.2f} points"  # no -0.00
        for split, percent in found["top1_percent"].items()
    )
    tell(f"in int8 ({quantized['format']}, {found['chosen']}): {reached}")
    if found["too_large"] is not None:
        tell(f"  {found['too_large']}")
    tuned = found["finetuning"]
    if tuned is not None:
        taken = "taken" if tuned["is_taken"] else "not taken"
        tell(
            f"  finetuned: val {tuned['top1_percent']['val']:.2f} %, without it "
            f"{tuned['plain_top1_percent']['val']:.2f} %; {taken}"
        )
    for each in found["timed"]:
        tell(f"  on {each['target']}: {each['compared']}")
    left = ", ".join(f"{count} of {group}" for group, count in quantized["left"].items())
    tell(
        f"  file: {quantized['bytes']:,} bytes, {found['float_bytes']:,} in float"
        + (f"; not quantized: {left}" if left else "")
    )


def audit(
    study: StudyFolder,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Further seeds to train the front with.")
    ] = 2,
    jobs: Annotated[int, typer.Option(min=1, help="Networks trained at once.")] = 1,
    retrain: Annotated[
        bool, typer.Option("--retrain/--no-retrain", help="Train the front with further seeds.")
    ] = True,
    data: DataFolder = None,
    as_json: Json = False,
) -> None:
    """Tell what a front is worth beyond the luck of its search.

    Told is what the search cost and brought, too. Each network on the front is trained again with
    further seeds and measured on the test split, which no search reads. Results go to audit.json,
    audit.md and audit.svg in the study folder, network by network: an audit that was interrupted
    goes on with the same command.
    """
    from levit_search.audit import audit as look
    from levit_search.progress import StepProgress
    from levit_search.study import Study

    opened = Study.open(study).with_data(data)
    goes_on = f". What was measured is in {study}; the same command goes on."
    with interruptible(goes_on), opened.reading_data(), StepProgress() as progress:
        document = look(opened, seeds if retrain else 0, jobs, progress)
    if as_json:
        print_json(document)
    else:
        _print_audit(document, opened)
    for found in document["failed"]:
        seed = "" if found["seed"] is None else f", seed {found['seed']}"
        say(f"levit-search: trial {found['trial']}{seed}: {found['reason']}")
    if document["failed"]:
        raise typer.Exit(1)


def _print_audit(document: Mapping[str, Any], study: "Study") -> None:
    from levit_search.audit.sections import sections

    tell(f"Audit of {study.folder}: {document['trials']} proposals\n")
    for section in sections(document):
        if section.rows:
            print_figures(section.title, section.heads, section.rows)
        for note in section.notes:
            tell(textwrap.fill(note, 100))
        tell()
    tell(f"In {study.folder}: audit.md, audit.json, audit.svg")


_TELL_EVERY = 100


def restore(
    study: StudyFolder,
    force: Annotated[
        bool, typer.Option("--force", help="Make the storage anew though it is sound.")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="STORAGE",
            help="Make it elsewhere, as where a server is gone; null is study.db.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a damaged or lost storage again from its backup."""
    from dataclasses import asdict

    from levit_search.study.restore import restore, restore_elsewhere

    if storage is None:
        restored = restore(study, force, _told)
    else:
        restored = restore_elsewhere(study, None if storage == "null" else storage, _told)
    if as_json:
        print_json({"study": str(study), **asdict(restored)})
    else:
        _print_restored(restored, storage)


def _told(count: int, of: int) -> None:
    if count and count % _TELL_EVERY == 0:
        say(f"{count} of {of} trials are written")


def _print_restored(restored: "Restored", elsewhere: str | None) -> None:
    for name in restored.files:
        tell(f"{name} was made again.")
    tell(f"{restored.place} has all that the backup has: {restored.finished} finished trials.")
    if restored.kept_as is not None:
        tell(f"What was damaged is kept as {restored.kept_as}.")
    running, lost = (", ".join(map(str, each)) for each in (restored.running, restored.lost))
    if running:
        tell(f"Begun, and evaluated again by the next search: trial {running}.")
    if lost:
        tell(f"Lost in both, and marked as failed: trial {lost}.")
    again = "" if elsewhere is None else f" with --set storage={quoted(elsewhere)}"
    tell(f"The same levit-search run{again} goes on.")


_WIDTH = 110
_WORDS = {"ok": ("ok", "green"), "warn": ("WARN", "yellow"), "fail": ("FAIL", "bold red")}
_GROUPS = ("installation", "runtimes", "machine", "targets", "data", "disk", "study")


def doctor(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY", help="A study folder to look at as well.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for what would fail here, and say how to mend it.

    Ends with 1 where something would.
    """
    from levit_search.doctor import examine
    from levit_search.doctor.checks import all_checks
    from levit_search.progress import StepProgress

    checks = all_checks(study)
    with StepProgress() as shown:
        shown.begin("looking", len(checks))
        shown.update("", 0.0)

        def report(check: "Check") -> None:
            shown.step(f"{check.group}: {check.name}")

        findings = examine(checks, report)
    findings.sort(key=lambda each: _GROUPS.index(each.group))
    failed = sum(each.status == "fail" for each in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [each.as_json() for each in findings]})
    else:
        _print_findings(findings)
    if failed:
        raise typer.Exit(1)


def _print_findings(findings: "list[Finding]") -> None:
    from rich.text import Text

    from levit_search.escaping import careful_console

    console = careful_console()

    def line(*parts: str | tuple[str, str]) -> None:
        console.print(Text.assemble(*parts), soft_wrap=True)  # commands stay whole, to be copied

    width = max(len(each.name) for each in findings)
    group = ""
    for each in findings:
        if each.group != group:
            line(f"\n{each.group}" if group else each.group)
            group = each.group
        indent = " " * (width + 9)
        word, colour = _WORDS[each.status]
        line("  ", (f"{word:<4}", colour), f" {each.name:<{width}}  ", _folded(each.found, indent))
        if each.breaks:
            label = "would fail: " if each.status == "fail" else "this means: "
            line(indent, label, _folded(each.breaks, indent + " " * len(label)))
        if each.mend:
            line(indent, "to mend:    ", each.mend)
    counts = {status: sum(each.status == status for each in findings) for status in _WORDS}
    failed = "nothing would fail" if not counts["fail"] else f"{counts['fail']} would fail"
    warned = "1 warning" if counts["warn"] == 1 else f"{counts['warn']} warnings"
    line(f"\n{failed}, {warned} ({len(findings)} looked at)")


def _folded(text: str, indent: str) -> str:
    lines = textwrap.wrap(
        text, max(40, _WIDTH - len(indent)), break_long_words=False, break_on_hyphens=False
    )
    return f"\n{indent}".join(lines)
