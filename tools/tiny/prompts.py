"""The prompts: those of the shipped templates, read from their files, and those of tasks without a template."""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|begin|>", "<|start|>", "<|end|>")

TAUGHT = {  # the texts of each template that training uses
    "graph_extraction": ("SYSTEM", "NODES", "EDGES"),
    "json_extraction": ("SYSTEM", "USER"),
    "self_consistency": ("SYSTEM", "USER"),
}
CLASSIFY = """Say which label fits the document. Answer with JSON: {"label": one of the labels}.
Labels: {labels}"""
REPAIR = "Repair the broken JSON. Answer with the whole corrected JSON only."
CITE = """Answer the question from the numbered sentences, shortly, and name the sentence.
Answer with JSON: {"answer": text or null, "source": number or null}."""


def template(name: str) -> ModuleType:
    """Load the module templates/<name>/<name>.py."""
    path = ROOT / "templates" / name / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tiny_prompts_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digests() -> dict[str, str]:
    """Return the SHA-256 of the prompts that the model learns from each template, by template."""
    return {name: _digest(name, parts) for name, parts in TAUGHT.items()}


def learnt_as_list(weights: Path) -> bool:
    """Return whether the weights in a folder learnt the earlier form of graph_extraction, by their recipe."""
    recipe = json.loads((weights / "recipe.json").read_text(encoding="utf-8"))
    earlier = _digest("graph_extraction", ("SYSTEM", "LIST_NODES", "LIST_EDGES"))
    return bool(recipe["prompts"]["graph_extraction"] == earlier)


def _digest(name: str, parts: tuple[str, ...]) -> str:
    module = template(name)
    return hashlib.sha256("\n".join(getattr(module, part) for part in parts).encode()).hexdigest()


def turn(role: str, content: str) -> str:
    return f"<|start|>{role}\n{content}<|end|>\n"


def render(messages: list[dict[str, str]]) -> str:
    """Render the chat template in plain Python, up to the start of the assistant's answer."""
    return "".join(turn(m["role"], m["content"]) for m in messages) + "<|start|>assistant\n"
