"""The command lines in the code blocks of a document."""

import re
import shlex

CODE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def command_lines(text: str, program: str = "directalign") -> list[list[str]]:
    """The words of every line of `program` in code blocks, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    blocks = [code for _, code in CODE.findall(joined)]
    blocks += re.findall(r"(?:^    .*\n)+", joined, re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    own = (line.split(" #")[0] for line in lines if line.startswith(f"{program} "))
    return [shlex.split(line) for line in own]
