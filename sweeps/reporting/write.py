"""A report as files: CSV, figures in all formats, and one page of HTML; and as lines on the terminal."""

import html
from pathlib import Path

from sweeps.reporting import style
from sweeps.study import Report

__all__ = ["write"]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; }} img {{ max-width: 100%; }}
pre {{ overflow-x: auto; }} table {{ border-collapse: collapse; }} td, th {{ padding: 0.1em 0.6em; text-align: right; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""
_ROWS_SHOWN = 200


def _page(report: Report, name: str, configuration: str) -> str:
    body = [f"<p>Configuration {configuration}</p>", f"<pre>{html.escape(report.text.strip())}</pre>"]
    if report.claims:
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(part))}</td>" for part in claim) + "</tr>"
            for claim in report.claims
        )
        body.append(f"<table><tr><th>source</th><th>statement</th><th>result</th><th>holds</th></tr>{rows}</table>")
    body += [
        f'<p><img src="figures/{stem}.{style.FORMATS[0]}" alt="{html.escape(stem)}"></p>' for stem in report.figures
    ]
    for stem, table in report.tables.items():
        shown = table.head(_ROWS_SHOWN).to_html(index=False, float_format=lambda value: f"{value:.4g}", border=0)
        body.append(f'<h2><a href="{stem}.csv">{stem}.csv</a>, {len(table)} rows</h2>{shown}')
    return _PAGE.format(title=html.escape(name), body="\n".join(body))


def write(report: Report, out: Path, name: str, configuration: str) -> None:
    """Writes a report into the output folder of its study, and prints its text and where everything is.

    Args:
      report: what to write.
      out: the folder, which exists.
      name: the study's name.
      configuration: the short name of what decides its results, kept in every figure.

    Raises:
      OSError: the folder cannot be written.
    """
    for stem, figure in report.figures.items():
        style.save(figure, out / "figures", stem, configuration)
    for stem, table in report.tables.items():
        table.to_csv(out / f"{stem}.csv", index=False, float_format=report.float_formats.get(stem, "%.6g"))
    (out / "report.html").write_text(_page(report, name, configuration))
    print(report.text)
    for stem in list(report.figures)[:1]:
        print(f"figure: {out / 'figures' / stem}.{style.FORMATS[0]}")
    for stem, table in report.tables.items():
        print(f"{stem}: {out / stem}.csv ({len(table)} rows)")
