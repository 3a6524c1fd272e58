"""`apcaudit scan`: scans a folder of images into a folder of results."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from pathlib import Path

from apcaudit.bulk import cluster, damage, evidence, fingerprint, pool, progress, room, scratch, store, symbol_folders
from apcaudit.bulk.arguments import check_folders, check_no_results, seconds, size, whole
from apcaudit.bulk.damage import Damage
from apcaudit.bulk.extra import need
from apcaudit.bulk.outcome import Failed, Outcome, Settings
from apcaudit.bulk.records import SEVERITIES
from apcaudit.errors import ApcAuditError
from apcaudit.text import counted, one_line

EXIT_CLEAN, EXIT_SOME_FAILED, EXIT_FINDINGS = 0, 2, 3


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "scan",
        help="audit many images, on all cores or on a cluster",
        description="Audit images and keep what was found in a folder of Parquet files. Started again, it goes on where"
        " it was. Exit code 0: all scanned; 1: an error in use; 2: some images failed, or damaged"
        " results stay; 3: findings at or above --fail-on.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="images, folders of images, patterns")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RESULTS", help="folder of the results")
    parser.add_argument(
        "-s", "--symbol-dirs", action="append", default=[], metavar="DIR", help="folder of symbol files"
    )
    parser.add_argument("--offline", action="store_true", help="fetch no symbol files")
    parser.add_argument("--scan", action="store_true", help="also search memory for threads and APCs no list holds")
    parser.add_argument("--yara-file", type=Path, metavar="FILE", help="YARA rules for drivers, beside those that ship")
    parser.add_argument(
        "--skip-broken-rules", action="store_true", help="go on without rule files that cannot be used, and name them"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler (tcp://...) instead of this machine")
    parser.add_argument(
        "--workers", type=whole, metavar="N", help="images at once on this machine; default: one a core"
    )
    parser.add_argument("--memory", type=size, default="4G", metavar="SIZE", help="limit of one image; default 4G")
    parser.add_argument("--timeout", type=seconds, default=3600, metavar="S", help="limit of one image; default 3600")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to unpack; default: the system's")
    parser.add_argument("--retry-failed", action="store_true", help="scan again what failed in an earlier run")
    parser.add_argument("--fail-on", choices=SEVERITIES, metavar="SEVERITY", help="exit with 3 on such a finding")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Scan the images; return the exit code."""
    need("pyarrow", "rich", *(["distributed"] if options.scheduler else []))
    if options.workers is not None and options.scheduler is not None:
        raise ApcAuditError("--workers are this machine's, and --scheduler has its own: give one of them")
    symbol_folders.check(options.symbol_dirs)
    check_folders("--scratch", [options.scratch] if options.scratch else [])
    results = Path(os.path.realpath(options.output))
    check_folders("-o", [options.output] if os.path.lexists(results) else [])
    check_no_results(options.paths)
    images = evidence.find(options.paths, leave_out=results, passed_by=_say_link)
    if not images:
        raise ApcAuditError("no images there")
    with room.report_full(results, "free some, or name another folder with -o"):
        results.mkdir(parents=True, exist_ok=True)
    scratch.clean_results(results)
    damages = _damages(results)
    settings = Settings(
        results=results,
        symbols=tuple(Path(each).resolve() for each in options.symbol_dirs),
        offline=options.offline,
        scan=options.scan,
        memory=options.memory,
        timeout=options.timeout,
        scratch=options.scratch.resolve() if options.scratch else None,
        retry=options.retry_failed,
        rules=Path(os.path.abspath(options.yara_file)) if options.yara_file else None,
        skip_broken_rules=options.skip_broken_rules,
    )
    outcomes: list[Outcome] = []
    try:
        with contextlib.ExitStack() as stack:
            executor = None
            if options.scheduler is None:
                count = min(options.workers or os.cpu_count() or 1, len(images))
                executor = stack.enter_context(pool.opened(settings, count))
            settings = _complete(settings)
            for line in fingerprint.lacking(settings):
                print(f"not in this scan: {line}", file=sys.stderr)
            shown = stack.enter_context(contextlib.closing(progress.make(len(images))))
            if executor is None:
                scan = cluster.run(images, settings, shown.stage, options.scheduler)
            else:
                scan = pool.run(executor, images, settings, shown.stage)
            stack.enter_context(contextlib.closing(scan))
            for outcome in scan:
                outcomes.append(outcome)
                shown.done(outcome)
    except KeyboardInterrupt:
        raise ApcAuditError("interrupted: the same command goes on where this one was") from None
    failed = sum(isinstance(outcome, Failed) for outcome in outcomes)
    print(
        f"{counted(len(outcomes), 'image')}, {failed} failed; results in {one_line(str(options.output))}",
        file=sys.stderr,
    )
    code = exit_code(outcomes, options.fail_on)
    made = {outcome.image for outcome in outcomes}
    # The folder of an image that was unreadable before and was scanned now has been removed.
    damaged = any(each.image not in made and each.path.parent.exists() for each in damages)
    return EXIT_SOME_FAILED if code == EXIT_CLEAN and damaged else code


def _say_link(folder: Path) -> None:
    text = f"not in this scan: {folder} is a link to a folder and not followed: name it to have it scanned"
    print(one_line(text), file=sys.stderr)


def _damages(results: Path) -> tuple[Damage, ...]:
    """Print which results are damaged; their images are scanned again if they are among the evidence.

    Raises:
        ApcAuditError: a later release wrote some, which this one would replace.
    """
    damages = store.check(results)
    newer = [each for each in damages if each.newer]
    if newer:
        raise ApcAuditError(str(newer[0]))
    damage.report(damages)
    return damages


def _complete(settings: Settings) -> Settings:
    """Check the YARA rules, print which are skipped, and add to the settings what rows will depend on.

    Raises:
        ApcAuditError: the rules cannot be used.
    """
    rules = None
    if settings.rules is not None:
        # This imports vol, although this process opens no image.
        from apcaudit.bulk import framework

        rules, skipped = framework.check_rules(settings.rules, skip_broken=settings.skip_broken_rules)
        if skipped is not None:
            print(f"apcaudit: {one_line(skipped)}", file=sys.stderr)
    return dataclasses.replace(settings, basis=fingerprint.basis(settings, rules))


def exit_code(outcomes: list[Outcome], fail_on: str | None) -> int:
    """Return the exit code; findings at or above --fail-on take precedence over failures."""
    if fail_on is not None:
        floor = SEVERITIES.index(fail_on)
        for outcome in outcomes:
            if not isinstance(outcome, Failed) and outcome.findings and SEVERITIES.index(outcome.severity) >= floor:
                return EXIT_FINDINGS
    return EXIT_SOME_FAILED if any(isinstance(outcome, Failed) for outcome in outcomes) else EXIT_CLEAN
