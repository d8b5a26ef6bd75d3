"""What code a file is made of, read without importing it."""

import sys

import pytest

from dpobench.artifacts.code_hash import code_hash, local_modules, module_file
from dpobench.evaluation.registry import judges
from dpobench.losses.registry import variants

TREE = {
    "main.py": "import json\nimport near\nfrom pack import inner\nimport torch\nimport dpobench\n\ndef f():\n    import late\n",
    "near.py": "import far\nK = 1\n",
    "far.py": "K = 1\n",
    "late.py": "K = 1\n",
    "stranger.py": "K = 1\n",
    "pack/__init__.py": "K = 1\n",
    "pack/inner.py": "from . import sister\nfrom .deep.low import x\n",
    "pack/sister.py": "import pack.main\n",
    "pack/main.py": "K = 1\n",
    "pack/other.py": "K = 1\n",
    "pack/deep/low.py": "x = 1\n",
}
OF_MAIN = {"near", "far", "late", "pack/__init__", "pack/inner", "pack/sister", "pack/main", "pack/deep/low"}


@pytest.fixture
def project(tmp_path):
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(folder, files):
    return {file.relative_to(folder).with_suffix("").as_posix() for file in files}


def test_local_modules_are_followed_through_one_another_and_nothing_else_is(project):
    assert names(project, local_modules(project / "main.py")) == OF_MAIN
    assert names(project, local_modules(project / "pack" / "inner.py")) == {
        "pack/__init__",
        "pack/sister",
        "pack/main",
        "pack/deep/low",
    }
    assert not set(sys.modules) & {"near", "far", "pack"}, "nothing is imported"


@pytest.mark.parametrize("name", sorted(TREE))
def test_code_that_is_imported_counts_and_comments_do_not(project, name):
    first = code_hash(project / "main.py")
    file = project / name
    file.write_text('"""Words."""\n# a remark\n' + file.read_text())
    file.write_text(file.read_text().replace('"""Words."""\n', ""))
    assert code_hash(project / "main.py") == first
    file.write_text(file.read_text() + "\nMORE = 1\n")
    assert (code_hash(project / "main.py") != first) == (name == "main.py" or name[:-3] in OF_MAIN)


def test_where_a_project_lies_does_not_count(project):
    moved = project.with_name("elsewhere")
    first = code_hash(project / "main.py")
    project.rename(moved)
    assert code_hash(moved / "main.py") == first


def test_a_local_module_that_cannot_be_parsed_counts_by_its_bytes(project):
    (project / "far.py").write_text("def (")
    first = code_hash(project / "main.py")
    (project / "far.py").write_text("def ((")
    assert code_hash(project / "main.py") != first


def test_judges_are_made_of_the_pieces_they_share_and_losses_of_one_file():
    assert [file.name for file in local_modules(judges.get("api").file)] == [
        "_comparison.py",
        "_endpoint.py",
        "_endpoint_settings.py",
    ]
    assert [file.name for file in local_modules(judges.get("local").file)] == ["_comparison.py"]
    assert not [name for name in variants.names() if local_modules(variants.get(name).file)]


def test_a_module_is_located_without_importing_its_package(project, monkeypatch):
    (project / "pack" / "__init__.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(project)
    assert module_file("pack.deep.low") == project / "pack" / "deep" / "low.py"
    assert module_file("pack") == project / "pack" / "__init__.py"
    for absent in ("pack.deep.lower", "near.far", "no_such_module", "__main__", "sys"):
        assert module_file(absent) is None
