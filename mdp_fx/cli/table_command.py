"""`mdp-fx table`: the latency tables that were measured, and those of others."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdp_fx.cli import loading, options

if TYPE_CHECKING:
    from mdp_fx.latency.convolution_table import ConvolutionTable
    from mdp_fx.latency.measurement import Measurement
    from mdp_fx.latency.tables import LatencyTable
    from mdp_fx.report.latency_table import FingerprintRow, PointRow

_DAY_S = 86400.0


def _table_option(function: options.F) -> options.F:
    return click.option(
        "--table", "path", type=click.Path(path_type=Path), help="Latency table.  [default: the user's]"
    )(function)


def _json_option(function: options.F) -> options.F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")(function)


@click.group("table")
def command() -> None:
    """Show, share and clean up latency tables.

    What `mdp-fx profile` and `mdp-fx prune` measure is kept in one file of the user, by fingerprint: the device, the
    runtime with its version, threads and number format. FINGERPRINT is a number from `mdp-fx table list`, the whole
    fingerprint, or a part that no other has; REGION likewise, from `mdp-fx table show`.
    """


@command.command("list")
@_table_option
@options.output_format
def list_command(path: Path | None, as_json: bool, verbose: bool) -> None:
    """List fingerprints: how much is known of each, and since when."""
    from mdp_fx.cli.console import print_json, show
    from mdp_fx.report.latency_table import list_tables

    with _open(path) as table:
        rows, where = _fingerprints(table), str(table.path)
    if as_json:
        print_json({"table": where, "fingerprints": [row.to_json() for row in rows]})
        return
    show(*list_tables(where, rows))
    if verbose:
        click.echo("".join(f"{row.index}  {row.fingerprint}\n" for row in rows), nl=False)


@command.command("show")
@click.argument("fingerprint")
@click.argument("region", required=False)
@_table_option
@options.output_format
def show_command(fingerprint: str, region: str | None, path: Path | None, as_json: bool, verbose: bool) -> None:
    """Show the regions of FINGERPRINT, or the points of one REGION with their latencies."""
    from mdp_fx.cli.console import print_json, show
    from mdp_fx.report.latency_table import RegionRow, show_points, show_regions

    with _open(path) as table:
        name = _pick_fingerprint(table, fingerprint)
        summaries = table.summaries(name)
        if region is None:
            rows = [
                RegionRow(i, each.name, each.points, 1e6 * each.least_s, 1e6 * each.most_s)
                for i, each in enumerate(summaries, start=1)
            ]
            facts: dict[str, Any] = {"fingerprint": name, "regions": [row.to_json() for row in rows]}
            parts = show_regions(name, rows, verbose=verbose)
        else:
            key = _pick("region", region, [each.name for each in summaries], "mdp-fx table show FINGERPRINT -v")
            points = _points(table.measurements(name, key))
            facts = {"fingerprint": name, "region": key, "points": [point.to_json() for point in points]}
            parts = show_points(name, key, points, verbose=verbose)
    if as_json:
        print_json(facts)
        return
    show(*parts)


@command.command("export")
@click.argument("fingerprints", metavar="[FINGERPRINT]...", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="CSV file.")
@_table_option
@options.force_option
@_json_option
def export_command(fingerprints: tuple[str, ...], output: Path, path: Path | None, force: bool, as_json: bool) -> None:
    """Write measurements to CSV: all, or those of some FINGERPRINTs.

    Columns: fingerprint, region, sizes ("64x128"), median_us, p90_us, low_us, spread, runs.
    """
    from mdp_fx.latency.table_csv import write_measurements
    from mdp_fx.latency.tables import table_path

    loading.check_outputs({"--output": output}, force, [table_path(path)])
    with _open(path) as table:
        names = dict.fromkeys(_pick_fingerprint(table, each) for each in fingerprints)
        found = [each for name in names or (None,) for each in table.measurements(name)]
    count = write_measurements(found, output)
    _tell(as_json, {"points": count, "written": {"csv": str(output)}}, f"wrote {output}: {count:,} points")


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--unit", type=click.Choice(["us", "ms", "s"]), help="Unit of a pickle's latencies.  [default: ms]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV of a pickle.  [default: <file>.csv]")
@_table_option
@options.force_option
@_json_option
def import_command(file: Path, unit: Any, output: Path | None, path: Path | None, force: bool, as_json: bool) -> None:
    """Read FILE: a CSV of `mdp-fx table export`, or a published table of convolutions.

    Measurements go into the latency table. Of two of one point the surer one stays. A table of convolutions is
    a pickle of HALP or MDP, from which a CSV file is made, or such a CSV file, which is checked: a target of its own,
    table:PATH.
    """
    from mdp_fx.latency.convolution_pickle import is_pickle, read_pickled_convolutions

    if is_pickle(file):
        from mdp_fx.latency.convolution_csv import write_convolutions

        written = output or Path(f"{file.stem}.csv")
        loading.check_outputs({"--output": written}, force, [file])
        published = read_pickled_convolutions(file, unit or "ms")
        write_convolutions(published, written)
        _tell_published(published, written, as_json, wrote=True)
        return
    from mdp_fx.errors import InputError
    from mdp_fx.latency import convolution_csv, csv_rows, table_csv

    if unit is not None or output is not None:
        option = "--unit" if unit is not None else "--output"
        raise InputError(f"{option} is for pickles, and {file} is none: it is read as CSV")
    header = csv_rows.read_header(file)
    if header == convolution_csv.HEADER:
        _tell_published(convolution_csv.read_convolutions(file), file, as_json, wrote=False)
        return
    if header != table_csv.HEADER:
        known = " nor ".join(",".join(each) for each in (table_csv.HEADER, convolution_csv.HEADER))
        raise InputError(f"{file} is no latency table: its first line is neither {known}")
    _merge(table_csv.read_measurements(file), file, path, as_json)


@command.command("merge")
@click.argument("other", type=click.Path(path_type=Path))
@_table_option
@_json_option
def merge_command(other: Path, path: Path | None, as_json: bool) -> None:
    """Take the measurements of OTHER, another latency table, into the table.

    Of two of one point the surer one stays. OTHER is only read.
    """
    from mdp_fx.errors import InputError
    from mdp_fx.latency.table_file import is_sqlite
    from mdp_fx.latency.tables import LatencyTable, table_path

    if other.resolve() == table_path(path).resolve():
        raise InputError(f"{other} is the latency table itself: name another one")
    if other.is_file() and not is_sqlite(other):
        raise InputError(f"{other} is no SQLite file: mdp-fx table import reads CSV files and pickles")
    with LatencyTable(other, read_only=True) as theirs:
        found = list(theirs.measurements())
    _merge(found, other, path, as_json)


@command.command("plot")
@click.argument("region")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A .html file, or .png.")
@click.option("--fingerprint", metavar="FINGERPRINT", help="Where it was measured, if there are several.")
@_table_option
@options.force_option
@_json_option
def plot_command(
    region: str, output: Path, fingerprint: str | None, path: Path | None, force: bool, as_json: bool
) -> None:
    """Plot REGION: a staircase of one size, or a heat map of two."""
    from mdp_fx.errors import InputError
    from mdp_fx.latency.tables import table_path
    from mdp_fx.report.frontier import check_plot, write_figure
    from mdp_fx.report.latency_table import figure

    loading.check_outputs({"--output": output}, force, [table_path(path)])
    check_plot(output)
    with _open(path) as table:
        names = [row.fingerprint for row in _fingerprints(table)]
        if fingerprint is not None:
            names = [_pick_fingerprint(table, fingerprint)]
        regions = sorted({each.name for name in names for each in table.summaries(name)})
        key = _pick("region", region, regions, "mdp-fx table show FINGERPRINT -v", numbered=len(names) == 1)
        points = {name: rows for name in names if (rows := _points(table.measurements(name, key)))}
    axes = {len(row.sizes) for rows in points.values() for row in rows}
    if 0 in axes:
        raise InputError(f"region {key!r} has one latency and no sizes: there is nothing to plot")
    if axes != {1} and len(points) > 1:
        raise InputError(f"region {key!r} was measured on {len(points)} fingerprints: choose one with --fingerprint")
    write_figure(figure(key, points), output, key, "region")
    facts = {"region": key, "fingerprints": list(points), "written": {"plot": str(output)}}
    _tell(as_json, facts, f"wrote {output}")


@command.command("gc")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    callback=options.not_nan,
    metavar="DAYS",
    help="Points from before so many days.",
)
@click.option("--fingerprint", "fingerprints", metavar="FINGERPRINT", multiple=True, help="Its points, repeatable.")
@_table_option
@click.option("--force", is_flag=True, help="Delete without a question.")
@_json_option
def gc_command(
    older_than: float | None, fingerprints: tuple[str, ...], path: Path | None, force: bool, as_json: bool
) -> None:
    """Delete measurements: by default those that a runtime, driver or way of measuring of now would not make again.

    It says what goes, and asks.
    """
    from mdp_fx.cli.console import print_json, show
    from mdp_fx.latency.tables import LatencyTable
    from mdp_fx.report.latency_table import deletion_tables

    with _open(path) as table:
        rows, where = _fingerprints(table), table.path
        names = [_pick_fingerprint(table, each) for each in fingerprints]
        if not names:
            names = [row.fingerprint for row in rows if older_than is not None or row.stale]
        before = None if older_than is None else time.time() - older_than * _DAY_S
        counts = {name: table.delete([name], before, dry_run=True) for name in dict.fromkeys(names)}
    counts = {name: count for name, count in counts.items() if count}
    undated = sum(row.undated for row in rows if row.fingerprint in names) if before is not None else 0
    if not as_json:
        show(*deletion_tables(counts, undated))
    deleted = bool(counts) and (force or (not as_json and _agreed(sum(counts.values()))))
    if deleted:
        with LatencyTable(where) as table:
            table.delete(list(counts), before)
    if as_json:
        print_json({"table": str(where), "points": counts, "undated": undated, "deleted": deleted})
    elif counts:
        click.echo(f"{'deleted' if deleted else 'kept'} {sum(counts.values()):,} points")


def _agreed(count: int) -> bool:
    from mdp_fx.errors import InputError

    if not sys.stdin.isatty():
        raise InputError(f"nobody is there to agree that {count:,} points go: pass --force to delete them")
    return click.confirm(f"Delete {count:,} points?")


def _open(path: Path | None) -> LatencyTable:
    """A table to read: it stays as it is."""
    from mdp_fx.latency.tables import LatencyTable

    return LatencyTable(path, read_only=True)


def _fingerprints(table: LatencyTable) -> list[FingerprintRow]:
    from mdp_fx.latency.fingerprints import Fingerprint
    from mdp_fx.report.latency_table import FingerprintRow

    now = time.time()
    rows = []
    for i, each in enumerate(table.summaries(), start=1):
        parts = Fingerprint.parse(each.name)
        rows.append(
            FingerprintRow(
                index=i,
                fingerprint=each.name,
                target=parts.target,
                runtime=parts.runtime,
                version=parts.version,
                device=parts.device,
                threads=parts.threads,
                dtype=parts.dtype,
                regions=each.regions,
                points=each.points,
                oldest_s=_age(each.oldest, now),
                newest_s=_age(each.newest, now),
                undated=each.undated,
                size_bytes=each.size_bytes,
                stale=parts.is_stale,
            )
        )
    return rows


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else max(0.0, now - at)


def _points(measurements: Iterable[Measurement]) -> list[PointRow]:
    from mdp_fx.report.latency_table import PointRow

    now = time.time()
    return [
        PointRow(
            sizes=each.sizes,
            median_us=1e6 * each.timing.median_s,
            p90_us=1e6 * each.timing.p90_s,
            low_us=1e6 * each.timing.low_s,
            spread=each.timing.spread,
            runs=each.timing.runs,
            age_s=_age(each.measured_at, now),
        )
        for each in measurements
    ]


def _pick_fingerprint(table: LatencyTable, text: str) -> str:
    return _pick("fingerprint", text, [each.name for each in table.summaries()], "mdp-fx table list")


def _pick(kind: str, text: str, names: Sequence[str], where: str, *, numbered: bool = True) -> str:
    """The name that is meant: by its number from 1, in full, or by a part that no other has.

    Raises:
        InputError: none is, or several are.
    """
    from mdp_fx.errors import InputError

    if text in names:
        return text
    if numbered and text.isdecimal() and 1 <= int(text[:9]) <= len(names):
        return names[int(text[:9]) - 1]
    found = [name for name in names if text in name]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{text!r} is part of {len(found)} {kind}s: give more of it, or its number in {where}")
    raise InputError(f"no {kind} {text!r} among the {len(names)} of the latency table: see {where}")


def _merge(found: Sequence[Measurement], source: Path, path: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from mdp_fx.latency.tables import LatencyTable
    from mdp_fx.report.cells import plural

    with LatencyTable(path) as table:
        merged, where = table.merge(found), str(table.path)
    conflicts = merged.replaced + merged.kept
    text = f"{source}: {plural(merged.added, 'point')} added to {where}"
    if conflicts:
        text += f"; {conflicts:,} were there: {merged.replaced:,} replaced by surer ones, {merged.kept:,} kept"
    _tell(as_json, {"table": where, **asdict(merged)}, text)


def _tell_published(table: ConvolutionTable, path: Path, as_json: bool, *, wrote: bool) -> None:
    from mdp_fx.latency.convolution_rates import UNUSUAL, fastest_rate
    from mdp_fx.report.cells import plural

    rate = fastest_rate(table)
    facts = {
        "convolutions": len(table),
        "batches": list(table.batches),
        "fastest_macs_per_s": rate,
        "target": f"table:{path}",
        "written": {"csv": str(path)} if wrote else {},
    }
    batches = ", ".join(map(str, table.batches))
    text = (
        f"{f'wrote {path}' if wrote else path}: {plural(len(table), 'convolution')} at batch {batches}, the fastest at "
        f"{rate / 1e12:.3g} TMAC/s; use it as --target table:{path} --batch {table.batches[-1]}"
    )
    if rate < UNUSUAL:
        text += f"\nthat is unusually slow for {path}: is the unit right?"
    _tell(as_json, facts, text)


def _tell(as_json: bool, facts: dict[str, Any], text: str) -> None:
    from mdp_fx.cli.console import print_json

    if as_json:
        print_json(facts)
    else:
        click.echo(text)
