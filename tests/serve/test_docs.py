import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "serve.md"


def test_the_client_of_the_documentation_runs(live, video, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "dogs.mp4").write_bytes(video)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://127.0.0.1:8000", str(live.base_url)), {})
    assert len(capsys.readouterr().out.splitlines()) == 6
