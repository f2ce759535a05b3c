"""The rules of the house (CONTRIBUTING.md), enforced."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hfbatch"
FILES = sorted(PACKAGE.rglob("*.py"))
# May import torch, beside tasks within their functions.
TORCH = frozenset(
    "model engine lanes devices packing readout packer prepacked compiled loading layout precision results".split()
)
RAY = frozenset("source cluster onemachine watch passes worker startup metrics jobserver trial raydata".split())
# Later layers may import earlier ones, never the other way round. Modules of one line share a layer.
LAYERS = [
    "errors",
    "origin sequences faults stopping kinds heads words bar tokens",
    "modelspec gates guards gates.spec guards.passages guards.patterns guards.pii guards.repetition guards.language",
    "guards.spec",
    "guards.rules",
    "spec",
    "tasks.base batch shapes histograms charts gates.shift",
    "tasks.text store_errors schemas layout results precision watchdog readout tuning devices prepacked",
    "tasks access media packing",
    "columns explain schema files disk store store_remote text arrowipc place hub_errors where_syntax trust weights "
    "download frames guards.apply",
    "where formats hub draft checkpoint partitions cron",
    "gates.golden gates.sql job load shards parcel jobserver schedule launch",
    "records kuberay",
    "changes",
    "limit guards.bind binding gates.check ledger lease logs",
    "carry reading hashing recent known reuse",
    "planner preprocess postprocess report tally budget verdict remembered startup",
    "loading streaming packer compiled lanes",
    "engine",
    "onemachine",
    "source model sink cluster status objects metrics sample gates.judge gates.audit",
    "isolation",
    "chain",
    "steps inprocess resident",
    "html pictures",
    "failed examine garbage turn pages forecast previewing addition raydata",
    "pairing comparison comparison_html tallies comparing",
    "again",
    "recheck",
    "watch trial worker",
    "passes",
    "pipeline",
    "submit",
    "enrichment",
    "__init__",
    "cli",
]


# Files of hfbatch/tasks/ that tasks share; they define no task.
FAMILIES = (
    "text pairs generation sampling chat seq2seq windows pooling entities images scores audio speech adapted "
    "template sights room slots choosing decoders decoding padded prefill asking options"
).split()


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def layer(module):
    for number, names in enumerate(LAYERS):
        if module in names.split() or any(module.startswith(f"{n}.") for n in names.split() if n in ("cli",)):
            return number
    if module.startswith("tasks."):
        return layer("tasks")
    raise AssertionError(f"{module} has no layer: add it to LAYERS where it belongs")


def imports(path, typing=False):
    """(module, at top level) for each import; those under `if TYPE_CHECKING` only on request."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING" and not typing
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in tree.body
            yield from ((f"{node.module}.{alias.name}", node in tree.body) for alias in node.names)


def calls(path):
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path):
    own, modules = layer(module_of(path)), {module_of(file) for file in FILES}
    for name, top_level in imports(path):
        target = name.removeprefix("hfbatch.")
        if not name.startswith("hfbatch.") or target not in modules or not top_level:
            continue
        assert layer(target) <= own, f"{module_of(path)} imports {target}, which is of a later layer"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_heavy_imports_and_output_stay_in_their_rooms(path):
    module, roots = module_of(path), {name.split(".")[0] for name, _ in imports(path)}
    top = {name.split(".")[0] for name, top_level in imports(path) if top_level}
    assert "ray" not in roots or module in RAY
    assert "ray" not in top or module != "startup", "it starts Ray beside what else is imported"
    assert "torch" not in roots or module in TORCH or (module.startswith("tasks.") and "torch" not in top)
    assert "yaml" not in roots or module == "load"
    assert "transformers" not in top
    if not module.startswith("cli"):
        assert not {"print", "sys.exit"} & calls(path)


@pytest.mark.parametrize("path", sorted((PACKAGE / "tasks").glob("[a-z]*.py")), ids=module_of)
def test_a_task_knows_no_ray_no_path_no_job_file_and_no_other_task(path):
    names = {name for name, _ in imports(path, typing=True) if name.startswith("hfbatch.")}
    families = {f"hfbatch.tasks.{name}" for name in FAMILIES}
    allowed = tuple(f"hfbatch.{name}" for name in "tasks.base sequences errors kinds checkpoint tokens".split())
    assert all(name.startswith(allowed) or {name, name.rpartition(".")[0]} & families for name in names)
    assert not {"ray", "yaml", "pathlib", "fsspec", "os"} & {name.split(".")[0] for name, _ in imports(path)}


def test_no_file_has_a_grab_bag_name():
    assert not {file.stem for file in FILES} & {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_functions_and_parameter_lists_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 50, node.name
            # A command's parameters are its options.
            is_command = module_of(path) in {"cli.jobs", "cli.outputs", "cli.cluster", "cli.schedule"}
            assert is_command or len(node.args.args) + len(node.args.kwonlyargs) <= 7, node.name


def test_every_module_opens_with_its_contract():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("command", [["check", "jobs/quickstart.yaml"], ["tasks"], ["--help"], ["schema"]])
def test_light_commands_import_neither_torch_nor_ray(command):
    code = (
        "import sys\nfrom hfbatch.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    heavy = {'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AssertionError" not in done.stderr
