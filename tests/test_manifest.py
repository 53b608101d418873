"""What a manifest may contain, and the errors for everything else."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tourkit.errors import ManifestError
from tourkit.manifest import manifest, models, paths

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEAD = 'schema = 1\nname = "mine"\n'
VARIANT = """
[[models.my-model.variants]]
format = "gguf"
quant = "Q4_K_M"
repo = "me/my-model-GGUF"
revision = "main"
files = ["*Q4_K_M*.gguf"]
"""
MODEL = (
    """
[models.my-model]
repo = "me/my-model"
license = "apache-2.0"
context = 4096
"""
    + VARIANT
)
ROLES = '[roles]\ntool = ["my-model"]\n'
GOOD = HEAD + ROLES + MODEL


@pytest.fixture
def written(tmp_path):
    """Write a manifest, and return its path."""

    def write(text: str, name: str = "mine.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path | str) -> str:
    with pytest.raises(ManifestError) as caught:
        manifest.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_set_may_define_a_model_of_its_own(written):
    path = written(GOOD)

    mine = manifest.load(path)

    assert mine.name == "mine"
    assert mine.roles == {"tool": ("my-model",)}
    assert mine.models["my-model"] == models.Model(
        id="my-model",
        repo="me/my-model",
        license="apache-2.0",
        context=4096,
        family=None,
        gated=None,
        params=None,
        arch=None,
        summary="",
        variants=(models.Variant("gguf", "Q4_K_M", "me/my-model-GGUF", "main", ("*Q4_K_M*.gguf",)),),
    )
    assert mine.path == path
    assert mine.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_that_the_set_does_not_define_comes_from_the_catalogue(written):
    path = written(HEAD + '[roles]\nbrain = ["my-model", "phi-3-mini-4k-instruct"]\n' + MODEL)

    mine = manifest.load(path)

    assert mine.models["phi-3-mini-4k-instruct"] == manifest.catalogue()["phi-3-mini-4k-instruct"]


def test_a_model_in_the_set_hides_the_catalogues_of_the_same_id(written):
    path = written(GOOD.replace("my-model", "phi-3-mini-4k-instruct"))

    assert manifest.load(path).models["phi-3-mini-4k-instruct"].context == 4096
    assert len(manifest.load(path).models["phi-3-mini-4k-instruct"].variants) == 1


def test_models_holds_exactly_what_the_roles_name_in_the_order_of_preference(written):
    path = written(HEAD + '[roles]\ngraph = ["my-model", "gemma-2-9b-it"]\ntool = ["my-model"]\n' + MODEL)

    mine = manifest.load(path)

    assert list(mine.models) == ["my-model", "gemma-2-9b-it"]
    assert list(mine.roles) == ["tool", "graph"], "roles come in the order of ROLES"


def test_all_optional_fields_are_read(written):
    arch = "".join(
        f"{key} = {value}\n"
        for key, value in {
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "head_dim": 8,
            "hidden_size": 32,
            "vocab_size": 100,
        }.items()
    )
    fields = 'family = "tiny"\ngated = false\nparams = 205\nsummary = "Малая"\n'
    text = GOOD.replace("context = 4096\n", f"context = 4096\n{fields}[models.my-model.arch]\n{arch}")

    model = manifest.load(written(text)).models["my-model"]

    assert (model.family, model.gated, model.params, model.summary) == ("tiny", False, 205, "Малая")
    assert model.arch == models.Arch(2, 4, 2, 8, 32, 100)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def renamed(id_: str) -> str:
    return GOOD.replace('["my-model"]', f'["{id_}"]').replace("models.my-model", f'models."{id_}"')


BAD = {
    "no schema": (changed("schema = 1\n", ""), ["schema: missing", "schema = 1"]),
    "another schema": (changed("schema = 1", "schema = 2"), ["schema: 2 is refused", "schema = 1"]),
    "no name": (changed('name = "mine"\n', ""), ["name: missing"]),
    "a name that is no file name": (changed('"mine"', '"../mine"'), ["name: '../mine' is refused"]),
    "no roles": (HEAD + MODEL, ["roles: missing"]),
    "empty roles": (HEAD + "[roles]\n" + MODEL, ["roles: {} is refused", "at least one role"]),
    "unknown key": ('sumary = "x"\n' + GOOD, ["sumary: unknown key", "did you mean 'summary'?"]),
    "unknown key, nothing near": ("zzz = 1\n" + GOOD, ["zzz: unknown key", "known: assets, defaults, formats, models"]),
    "unknown key with a newline": ('"a\\nb" = 1\n' + GOOD, ['"a\\nb": unknown key']),
    "model id with a newline": (renamed("a\\nb"), ['models."a\\nb"', "cannot be a model id"]),
    "unknown role": (changed("tool =", "brian ="), ["roles.brian: unknown key", "did you mean 'brain'?"]),
    "empty role": (changed('["my-model"]', "[]"), ["roles.tool: [] is refused", "at least one"]),
    "role not a list": (changed('["my-model"]', '"my-model"'), ["roles.tool: 'my-model' is refused", "list"]),
    "a model twice in a role": (
        changed('["my-model"]', '["my-model", "my-model"]'),
        ["roles.tool: 'my-model' is named twice"],
    ),
    "unknown model": (
        changed('["my-model"]', '["my-model", "phi-3-mini-4k-instuct"]'),
        ["roles.tool[1]: unknown model", "did you mean 'phi-3-mini-4k-instruct'?"],
    ),
    "a model no role names": (
        changed('tool = ["my-model"]', 'tool = ["gemma-2-9b-it"]'),
        ["models.my-model: no role names this model"],
    ),
    "no licence": (changed('license = "apache-2.0"\n', ""), ["models.my-model.license: missing", '"unknown"']),
    "unknown model key": (
        changed("context =", "contxt = 1\ncontext ="),
        ["models.my-model.contxt: unknown key", "did you mean 'context'?"],
    ),
    "context as text": (changed("4096", '"4k"'), ["models.my-model.context: '4k' is refused", "tokens"]),
    "context of zero": (changed("4096", "0"), ["models.my-model.context: 0 is refused", "1 to"]),
    "context as boolean": (changed("4096", "true"), ["models.my-model.context: True is refused"]),
    "gated as text": (changed("context =", 'gated = "no"\ncontext ='), ["gated: 'no' is refused", "true"]),
    "part of arch": (
        changed(VARIANT, "[models.my-model.arch]\nn_layers = 2\n" + VARIANT),
        ["models.my-model.arch.n_heads: missing", "(and 4 more)"],
    ),
    "no variants": (changed(VARIANT, ""), ["models.my-model.variants: missing"]),
    "unknown variant key": (
        changed('quant = "Q4', 'qaunt = "x"\nquant = "Q4'),
        ["models.my-model.variants[0].qaunt: unknown key", "did you mean 'quant'?"],
    ),
    "unknown format": (changed('"gguf"', '"ggml"'), ["variants[0].format: 'ggml' is refused", "known: gguf, onnx"]),
    "repo with a scheme": (changed('"me/my-model-GGUF"', '"a:b/c"'), ["variants[0].repo: 'a:b/c' is refused"]),
    "repo of three parts": (changed('"me/my-model"', '"me/my/model"'), ["models.my-model.repo", "owner/name"]),
    "repo without an owner": (
        changed('"me/my-model"', '"smollm2"'),
        ["models.my-model.repo: 'smollm2' is refused", '"owner/name"', "its page on the hub"],
    ),
    "repo of files without an owner": (
        changed('"me/my-model-GGUF"', '"smollm2"'),
        ["models.my-model.variants[0].repo: 'smollm2' is refused", '"owner/name"'],
    ),
    "repo that climbs": (changed('"me/my-model"', '"../model"'), ["models.my-model.repo: '../model'"]),
    "empty revision": (changed('"main"', '""'), ["variants[0].revision: '' is refused", "40-hex commit"]),
    "revision that climbs": (changed('"main"', '"a/../b"'), ["variants[0].revision: 'a/../b' is refused"]),
    "revision with a newline": (changed('"main"', '"main\\n"'), ["variants[0].revision", "refused"]),
    "quant with a slash": (changed('quant = "Q4_K_M"', 'quant = "a/b"'), ["variants[0].quant: 'a/b' is refused"]),
    "quant that is a device": (changed('quant = "Q4_K_M"', 'quant = "NUL"'), ["'NUL' is a device name"]),
    "quant with a dot at the end": (changed('quant = "Q4_K_M"', 'quant = "Q4."'), ["ends with a dot"]),
    "the same quant twice": (GOOD + VARIANT, ["variants[1].quant: 'Q4_K_M' names the same folder"]),
    "quants that differ by case": (
        GOOD + VARIANT.replace('"Q4_K_M"', '"q4_k_m"'),
        ["variants[1].quant: 'q4_k_m' names the same folder as 'Q4_K_M'"],
    ),
    "no files": (changed('["*Q4_K_M*.gguf"]', "[]"), ["variants[0].files: [] is refused"]),
    "empty file": (changed("*Q4_K_M*.gguf", ""), ["variants[0].files[0]: '' is refused"]),
    "the same file twice": (
        changed('["*Q4_K_M*.gguf"]', '["x.gguf", "x.gguf"]'),
        ["files: 'x.gguf' is named twice"],
    ),
    "upper-case model id": (GOOD.replace("my-model", "My-Model"), ["models.My-Model: 'My-Model' cannot be"]),
    "model id with a space": (renamed("my model"), ["'my model' cannot be a model id"]),
    "model id that climbs": (renamed(".."), ["'..' cannot be a model id"]),
    "model id that is a device": (renamed("aux"), ["'aux' cannot be a model id"]),
    "filter that is empty": ("formats = []\n" + GOOD, ["formats: [] is refused", "leave the key out"]),
    "filter with an unknown format": ('formats = ["ggml"]\n' + GOOD, ["formats[0]: 'ggml' is refused"]),
    "filter with an unknown quant": ('quants = ["Q4_K"]\n' + GOOD, ["quants[0]", "'Q4_K'", "mean 'Q4_K_M'?"]),
    "defaults of a role that the set does not have": (
        GOOD + "[defaults.brain]\ntemperature = 1\n",
        ["defaults.brain: [roles] has no 'brain'", "remove this table"],
    ),
    "defaults of a role without text": (GOOD + "[defaults.embed]\ntop_k = 1\n", ["defaults.embed: unknown key"]),
    "defaults that say nothing": (GOOD + "[defaults.tool]\n", ["defaults.tool: {} is refused", "at least one default"]),
    "unknown default": (GOOD + "[defaults.tool]\ntop_q = 1\n", ["defaults.tool.top_q: unknown key", "mean 'top_p'?"]),
    "a temperature above 2": (
        GOOD + "[defaults.tool]\ntemperature = 2.1\n",
        ["defaults.tool.temperature: 2.1", "to 2"],
    ),
    "a temperature that is no number": (GOOD + "[defaults.tool]\ntemperature = nan\n", ["tool.temperature: nan is no"]),
    "a top_p that leaves nothing": (GOOD + "[defaults.tool]\ntop_p = 0.0\n", ["defaults.tool.top_p: 0.0 is refused"]),
    "a top_k with a fraction": (GOOD + "[defaults.tool]\ntop_k = 1.5\n", ["defaults.tool.top_k: 1.5 is refused"]),
    "unknown effort": (
        GOOD + '[defaults.tool]\nreasoning_effort = "hi"\n',
        ["defaults.tool.reasoning_effort: 'hi' is refused", "did you mean 'high'?"],
    ),
    "thinking that is on and off": (
        GOOD + '[defaults.tool]\nthinking = true\nreasoning_effort = "none"\n',
        ["defaults.tool.reasoning_effort", "remove one of them"],
    ),
    "sampling of a model that is no number": (
        changed(VARIANT, "[models.my-model.sampling]\nmin_p = nan\n" + VARIANT),
        ["models.my-model.sampling.min_p: nan is no number"],
    ),
    "filter that empties a role": ('formats = ["onnx"]\n' + GOOD, ["roles.tool", "leave no variant of my-model"]),
}


@pytest.mark.parametrize(("text", "fragments"), BAD.values(), ids=BAD.keys())
def test_a_bad_manifest_is_refused_with_file_key_and_fix(written, text, fragments):
    path = written(text)

    message = refusal(path)

    assert message.startswith(f"{path}: ")
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert ": " in message.removeprefix(f"{path}: ")


HOSTILE_FILES = {
    "/abs/model.gguf": "absolute path",
    "../model.gguf": "leaves its folder",
    "a/../../model.gguf": "leaves its folder",
    "a//model.gguf": "empty or '.' part",
    "./model.gguf": "empty or '.' part",
    "folder/": "empty or '.' part",
    "C:\\\\model.gguf": "Windows",
    "a\\\\b.gguf": "Windows",
    "a:b.gguf": "Windows",
    "a|b.gguf": "Windows",
    "a\\u0000b.gguf": "Windows",
    "con.gguf": "device name",
    "LPT1.gguf": "device name",
    "model.gguf.": "ends with a dot",
    "folder /model.gguf": "ends with a dot or a space",
    "*.bin": "pickle",
    "pytorch_model.bin": "pickle",
    "*.PTH": "pickle",
    "original/*.pth": "pickle",
    "model.ckpt": "pickle",
    "model.pkl": "pickle",
    "model*.pt": "pickle",
}


@pytest.mark.parametrize(("pattern", "reason"), HOSTILE_FILES.items())
def test_a_hostile_file_or_pattern_is_refused(written, pattern, reason):
    message = refusal(written(changed("*Q4_K_M*.gguf", pattern)))

    assert "models.my-model.variants[0].files[0]: " in message
    assert reason in message


@pytest.mark.parametrize("pattern", ["*", "*.gguf", "a/b/[0-9]*.gguf", "model-0000?-of-*.safetensors", "x[!a].gguf"])
def test_fnmatch_patterns_are_taken(written, pattern):
    mine = manifest.load(written(changed("*Q4_K_M*.gguf", pattern)))

    assert mine.models["my-model"].variants[0].files == (pattern,)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", COMMIT])
def test_branches_tags_and_commits_are_taken(written, revision):
    mine = manifest.load(written(changed('"main"', f'"{revision}"')))

    assert mine.models["my-model"].variants[0].revision == revision


def test_every_problem_is_counted_and_the_first_is_told(written):
    message = refusal(written(changed("4096", "0").replace('"main"', '""').replace('"gguf"', '"x"')))

    assert message.endswith("(and 2 more)")


def test_the_details_are_all_problems_and_one_problem_has_none(written):
    with pytest.raises(ManifestError) as three:
        manifest.load(written(changed("4096", "0").replace('"main"', '""').replace('"gguf"', '"x"')))
    with pytest.raises(ManifestError) as one:
        manifest.load(written(changed("4096", "0")))

    assert [line.split(":")[0].removeprefix("models.my-model.") for line in three.value.details] == [
        "context",
        "variants[0].format",
        "variants[0].revision",
    ]
    assert one.value.details == ()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'schema = 1\nname = "mine\n', 2),
        (b"schema = 1\nschema = 1\n", 2),
        (b"schema = 1\n[roles]\n[roles]\n", 3),
        (b"schema = 1\nname = [", 2),
        (b'schema = 1\n\nname = "\xff"\n', 3),
    ],
)
def test_a_toml_error_names_the_line(tmp_path, content, line):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)

    assert refusal(path).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000])
def test_a_value_beyond_all_measure_is_refused(written, value):
    assert "too long or too deep" in refusal(written(f"schema = {value}\n"))


def test_a_missing_file_and_a_folder_are_no_manifest(tmp_path):
    assert "no such manifest" in refusal(tmp_path / "absent.toml")
    assert "no such manifest" in refusal(tmp_path)
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))


def test_a_wrong_name_of_a_built_in_set_gets_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert "did you mean 'tour-20gb'?" in refusal("tour-20g")


def test_load_takes_the_text_of_a_path_and_the_name_of_a_set(written):
    assert manifest.load(str(written(GOOD))).name == "mine"
    assert manifest.load("cpu-16gb").name == "cpu-16gb"


def test_filters_keep_what_they_name_and_pass_over_models_left_with_nothing(written):
    """`formats` and `quants` choose variants. A model without variants is skipped if its role has another model."""
    onnx = VARIANT.replace("gguf", "onnx").replace("Q4_K_M", "ONNX-INT4")
    other = MODEL.replace("my-model", "other").replace("Q4_K_M", "Q8_0")
    text = HEAD + '[roles]\ntool = ["other", "my-model"]\n' + MODEL + onnx + other

    mine = manifest.load(written('formats = ["gguf"]\nquants = ["Q4_K_M"]\n' + text))

    assert mine.roles == {"tool": ("my-model",)}
    assert {id_: [v.quant for v in model.variants] for id_, model in mine.models.items()} == {"my-model": ["Q4_K_M"]}


SAME = {
    "a comment": GOOD + "# a word\n",
    "a summary": 'summary = "Mine"\n' + GOOD,
    "a model's summary": changed("context =", 'summary = "x"\ncontext ='),
    "the context": changed("4096", "8192"),
    "the licence": changed("apache-2.0", "mit"),
    "a filter that changes nothing": 'formats = ["gguf"]\n' + GOOD,
}
OTHER = {
    "the name": changed('"mine"', '"yours"'),
    "the roles": changed("tool =", "fast ="),
    "a quant": changed('quant = "Q4_K_M"', 'quant = "Q4"'),
    "a repository": changed("me/my-model-GGUF", "you/my-model-GGUF"),
    "a revision": changed('"main"', '"v1"'),
    "a pattern": changed("*Q4_K_M*.gguf", "*Q4_K_M.gguf"),
    "a format": changed('"gguf"', '"onnx"'),
    "one more variant": GOOD + VARIANT.replace('"Q4_K_M"', '"Q8_0"'),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME.keys())
def test_the_digest_stays_when_nothing_that_a_lock_pins_changes(written, text):
    assert manifest.load(written(text, "a.toml")).digest == manifest.load(written(GOOD, "b.toml")).digest


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER.keys())
def test_the_digest_changes_with_what_a_lock_pins(written, text):
    assert manifest.load(written(text, "a.toml")).digest != manifest.load(written(GOOD, "b.toml")).digest


@pytest.mark.parametrize(
    "path",
    ["model.gguf", "a/b/c.safetensors", ".gitattributes", "модель.gguf", "a b.json", "console.gguf", "x" * 255],
)
def test_plain_paths_pass(path):
    paths.check_path(path, "here")


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a", "..", "a/..", "a./b", "a ", "~/../w"),
        *("a\\b", "a*b", "a?b", 'a"b', "<a>", "a\tb", "a\x7fb", "\ud800"),
        *("nul", "COM¹.txt", "x" * 256, "й" * 128),
        *("w.bin", "W.CKPT", "d/w.pt"),
    ],
)
def test_paths_that_some_system_refuses_are_refused(path):
    with pytest.raises(ManifestError, match=r"^here: .*: "):
        paths.check_path(path, "here")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a.json", "A.json"], ["'a.json'", "'A.json'"]),
        (["Folder/a", "folder/b"], ["'Folder/'", "'folder/'"]),
        (["a", "A/b"], ["'a'", "'A/'"]),
        (["a/b", "a"], ["'a/'", "'a'"]),
        (["\u00e9", "e\u0301"], ["'\u00e9'"]),
        (["a", "a"], ["named twice"]),
    ],
)
def test_names_that_a_case_insensitive_drive_takes_for_one_are_refused(given, names):
    with pytest.raises(ManifestError) as caught:
        paths.check_distinct(given, "here")

    assert all(name in str(caught.value) for name in names), str(caught.value)


def test_distinct_names_in_one_folder_pass():
    paths.check_distinct(["a/b", "a/c", "b", "ab"], "here")


@pytest.mark.starts
def test_importing_costs_no_validator():
    """Only reading a manifest loads jsonschema: `tourkit --help` must be fast."""
    code = "import sys, tourkit.manifest.lock; print(sorted({'jsonschema', 'huggingface_hub'} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
