"""Text answers of vision-language models read per second, on one core.

    python benchmarks/answer_text.py [LINES]

Every format: from the lines of a file (`{"id", "text", "width", "height", "input_width", "input_height"}`) to boxes in
pixels of the image, reading and JSON included. Numbers are random; one answer in twenty is a refusal, one in fifty text
without a box. The last row is all of `evaluate --predictions`: joined to a store, scored and collected, without the
report.
"""

import json
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from refcli.answers.formats import ANSWER_FORMATS, AnswerNotation
from refcli.answers.stated import AnswerReading, answer_of
from refcli.answers.text_lines import read_text_lines
from refcli.contracts.example import Example, Region
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split
from refcli.evaluation.predictions import score_file
from refcli.text.vlm_text import TEXT_FORMATS

ROUNDS = 3
SPLIT = "made:test"
REFUSAL, FAILURE = "There is no such object in the image.", "It is the one on the left, beside the window."


def write_answers(path: Path, name: str, count: int) -> None:
    """Lines whose texts are the example of the format with other digits."""
    generator = random.Random(0)
    example = TEXT_FORMATS[name].example
    with path.open("w") as file:
        for number in range(count):
            text = re.sub(r"(?<=\d)\d", lambda _: str(generator.randrange(10)), example)
            text = REFUSAL if number % 20 == 7 else FAILURE if number % 50 == 3 else text
            sizes = {"width": 640, "height": 480, "input_width": 644, "input_height": 476}
            file.write(json.dumps({"id": f"made/{number}", "text": text, **sizes}) + "\n")


def seconds_of(work: Callable[[], object]) -> float:
    """The best of several rounds, in processor time, which other programs do not affect."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def read_all(path: Path, name: str, example: Example) -> tuple[int, int]:
    """Read a file to boxes in pixels: (number of boxes, number of parse failures)."""
    notation = AnswerNotation(name, ANSWER_FORMATS[name].coordinates)
    reading = AnswerReading(path, notation, lambda kind, number, message: sys.exit(f"{kind}: {number}: {message}"))
    num_boxes = num_failures = 0
    for stated in read_text_lines(reading):
        answer = answer_of(stated, example, notation)
        num_boxes += len(answer.targets)
        num_failures += answer.parse_failure
    return num_boxes, num_failures


def processor() -> str:
    """The name of the processor."""
    known = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", known.read_text()) if known.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    print(f"{processor()}, one core, Python {platform.python_version()}, {count:,} answers in each format")
    regions = (Region((10.0, 20.0, 300.0, 400.0)),)
    examples = [
        Example(f"made/{number}", "made", "test", "a.jpg", "a", 640, 480, "the cup", regions) for number in range(count)
    ]
    slowest = float("inf")
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        for name in TEXT_FORMATS:
            path = folder / f"{name}.jsonl"
            write_answers(path, name, count)
            num_boxes, num_failures = read_all(path, name, examples[0])
            speed = count / seconds_of(lambda path=path, name=name: read_all(path, name, examples[0]))
            slowest = min(slowest, speed)
            print(f"{name:16} {speed:10,.0f} answers/s  ({num_boxes:,} boxes, {num_failures:,} parse failures)")
        print(f"{'slowest':16} {slowest:10,.0f} answers/s")
        write_manifest(folder / "store", [write_split(folder / "store", "made", "test", examples)])
        split = Store(folder / "store").split(SPLIT)
        notation = AnswerNotation.declare("qwen3-vl")
        path = folder / "qwen3-vl.jsonl"
        speed = count / seconds_of(lambda: score_file(path, {SPLIT: split}, notation=notation))
        print(f"{'joined, scored':16} {speed:10,.0f} answers/s  (qwen3-vl)")


if __name__ == "__main__":
    main()
