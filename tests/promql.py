"""What a PromQL expression is made of, as far as tests of dashboards and alarms look into it."""

import re

_KEYWORDS = {"and", "or", "unless", "bool", "offset"}
_PAIRED = r"^(\s*(on|ignoring|group_left|group_right)\s*\([^)]*\))+"  # how a comparison pairs what it compares
_MATCHING = r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"


def metric_names(expression: str) -> set[str]:
    """The metric names: its words that are no function, label, keyword or Grafana variable."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", expression)
    words = re.findall(r"\$?\b[a-zA-Z_:][\w:]*\b(?!\s*\()", re.sub(_MATCHING, " ", bare))
    return {word for word in words if not word.startswith("$")} - _KEYWORDS


def operands(expression: str) -> list[str]:
    """The parts between comparisons, `and`, `or` and `unless` that stand in no parentheses; numbers left out. An alarm that does not fire
    gives no data; these must.
    """
    parts, depth, current = [], 0, ""
    for token in re.findall(r"[(){}\[\]]|\"[^\"]*\"|[<>=!]=|[<>]|\s+|[^\s(){}\[\]\"<>=!]+|[=!]~?", expression):
        depth += (token in "([{") - (token in ")]}") if len(token) == 1 else 0
        if depth == 0 and token in (">", "<", ">=", "<=", "==", "!=", "and", "or", "unless"):
            parts.append(current)
            current = ""
        else:
            current += token
    found = [re.sub(_PAIRED, "", part).strip() for part in (*parts, current)]
    return [part for part in found if not re.fullmatch(r"[\d.]+", part)]
