"""`kdbench score`: make rows of anomaly maps and image scores of another program."""

from kdbench.cli import documents
from kdbench.cli.options import REPORT, Out, options_of, unusual
from kdbench.cli.report import write
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.terminal import note, say, say_next
from kdbench.grid.score import ScoreRequest
from kdbench.grid.score import score as measure


@for_scripts
@options_of(ScoreRequest)
def score(request: ScoreRequest, out: Out = None) -> Answer:
    """Compute the metrics of maps or image scores of another program, as rows beside those of kdbench."""
    given = measure(request)
    if given.left_out:
        note(f"no maps or scores for {', '.join(given.left_out)}: they get no rows")
    what = "image scores" if request.maps is None else "maps"
    say(f"{request.name}: rows of the {what} of {', '.join(given.categories)}")
    page, *_ = write(request.results, out or REPORT)
    where = (*unusual("--results", request.results, "results"), *unusual("--out", out or REPORT, REPORT))
    say_next("a page with figures", "kdbench", "report", *where)
    document = documents.Scored(
        name=request.name,
        results=request.results,
        categories=tuple(given.categories),
        left_out=tuple(given.left_out),
        report=str(page),
    )
    return Answer(document=document)
